"""Two models compared by judges that do as they are told: every count and rate is computed by hand."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest

import personainfer as pi
from personainfer.evaluation.paired_responses import pair_responses
from personainfer.evaluation.results import ResponseComparison
from personainfer.exceptions import (
    AuthenticationError,
    DataError,
    InvalidArgumentError,
    ModelError,
    UnknownOptionError,
)
from personainfer.testing import FakeLLM, Fault

PERSONA = pi.Persona(trait="busy", preference="short answers")
Seen = list[tuple[Any, str, str, Any]]


def judge_by(verdicts: dict[str, str], seen: Seen | None = None) -> Callable[..., Any]:
    """A judge whose verdict is written in the prompt's name: quality then personalization.

    "w" picks the test model's response in both orders, "l" the base's, "1" always the first one, "n"
    neither, "?" is no answer at all.
    """

    def judge(prompt: Any, first: str, second: str, persona: Any) -> Any:
        if seen is not None:
            seen.append((prompt, first, second, persona))
        code = verdicts[str(prompt)][0 if persona is None else 1]
        test_is_first = first.startswith("test")
        return {
            "w": 1 if test_is_first else 2,
            "l": "2" if test_is_first else "1",
            "1": 1,
            "n": "neither",
            "?": "I like both",
        }[code]

    return judge


def compare(codes: Sequence[str], seen: Seen | None = None, **options: Any) -> ResponseComparison:
    """One prompt for each two letters of `judge_by`."""
    prompts = [f"prompt {n}" for n in range(len(codes))]
    arguments: dict[str, Any] = {
        "prompts": prompts,
        "base": [f"base {n}" for n in range(len(codes))],
        "test": [f"test {n}" for n in range(len(codes))],
        "personas": [PERSONA] * len(codes),
        "judge": judge_by(dict(zip(prompts, codes, strict=True)), seen),
    }
    return pi.compare_responses(**{**arguments, **options})


def counts(found: Any) -> tuple[int, int, int]:
    return found.win_rate.wins, found.win_rate.ties, found.win_rate.losses


# The numbers


def test_rates_and_delta_pq_by_hand() -> None:
    found = compare(["ww", "ww", "wl", "lw", "1w", "n1"])
    assert counts(found.quality) == (3, 2, 1)
    assert counts(found.personalization) == (4, 1, 1)
    assert found.quality.win_rate.rate.value == 3 / 4
    assert found.personalization is not None
    assert found.personalization.win_rate.rate.value == 4 / 5
    assert found.delta_pq is not None
    assert found.delta_pq.value == pytest.approx(4 / 5 + 3 / 4 - 1)
    assert found.delta_pq.low < found.delta_pq.value < found.delta_pq.high
    assert found.delta_pq.n == 5  # prompts with a win or a loss: the last one has neither
    assert found.quality.win_rate.rate_with_ties.value == (3 + 2 / 2) / 6
    # "1" is inconsistent, and "neither" says nothing about consistency: 4 of 5, and 5 of 6.
    assert found.quality.consistency.value == 4 / 5
    assert found.personalization.consistency.value == 5 / 6
    assert (found.failed, found.skipped, found.same) == (0, 0, 0)


@pytest.mark.parametrize(
    ("policy", "quality", "personalization", "expected"),
    [
        ("drop", (2, 0, 1), (1, 1, 1), 2 / 3 + 1 / 2 - 1),
        ("tie", (2, 1, 1), (1, 2, 1), 2 / 3 + 1 / 2 - 1),
        ("loss", (2, 0, 2), (1, 1, 2), 2 / 4 + 1 / 3 - 1),
    ],
)
def test_a_missing_judgement_is_never_a_win(
    policy: Any, quality: Any, personalization: Any, expected: float
) -> None:
    found = compare(["ww", "w?", "?l", "l1"], unparsable=policy)
    assert counts(found.quality) == quality
    assert counts(found.personalization) == personalization
    assert found.delta_pq is not None
    assert found.delta_pq.value == pytest.approx(expected)
    assert found.failed == 2
    assert found.columns["quality"] == ["test", "test", None, "base"]
    assert found.columns["quality_score"] == [1.0, 1.0, None, 0.0]
    assert "not 1, 2 or 'neither'" in found.columns["error"][1]
    assert found.columns["error"][1].startswith("personalization: ")
    assert "2 without a usable reply" in str(found)


def test_a_judge_may_count_with_numpy() -> None:
    def longer(prompt: Any, first: str, second: str, persona: Any) -> Any:
        return 1 + np.argmax([len(first), len(second)])

    found = pi.compare_responses(["Tea?"], ["Yes."], ["Yes, gladly."], judge=longer)
    assert found.columns["quality"] == ["test"]


def test_a_win_needs_both_orders() -> None:
    found = compare(["11", "11", "11"])
    assert counts(found.quality) == (0, 3, 0)
    assert found.columns["personalization"] == ["tie"] * 3
    assert found.columns["personalization_score"] == [0.5] * 3
    assert math.isnan(found.quality.win_rate.rate.value)
    assert found.delta_pq is not None
    assert math.isnan(found.delta_pq.value)
    assert "no conclusion" in str(found)  # such a judge is worth nothing, and the view says so


def test_the_persona_is_hidden_for_quality_and_shown_for_personalization() -> None:
    seen: Seen = []
    compare(["ww"], seen)
    assert [(first, persona) for _, first, _, persona in seen] == [
        ("test 0", None),
        ("base 0", None),
        ("test 0", PERSONA),
        ("base 0", PERSONA),
    ]


def test_without_personas_only_quality_is_judged() -> None:
    seen: Seen = []
    found = compare(["ww", "lw"], seen, personas=None)
    assert len(seen) == 4
    assert found.personalization is None
    assert found.delta_pq is None
    assert "personalization" not in found.columns
    assert "ΔPQ" not in str(found)


def test_lengths_of_both_sides_are_reported_and_controlled_for() -> None:
    """A judge that picks the longer response; the test model's is the longer one in 3 of 4."""
    base = ["b" * n for n in (10, 20, 30, 30)] * 10
    test = ["t" * n for n in (30, 40, 50, 10)] * 10

    def longer(prompt: Any, first: str, second: str, persona: Any) -> int:
        return 1 if len(first) > len(second) else 2

    found = pi.compare_responses([str(n) for n in range(40)], base, test, judge=longer)
    assert (found.length.base.value, found.length.test.value) == (22.5, 32.5)
    assert found.length.difference.value == 10
    assert found.length.difference.low < 10 < found.length.difference.high
    assert found.columns["test_length"][:4] == [30, 40, 50, 10]
    assert found.quality.win_rate.rate.value == 0.75
    assert found.quality.win_rate.rate.low > 0.55
    assert found.quality.length_controlled.value < 0.65


def test_what_the_judge_of_quality_leaves_open_changes_no_number_of_personalization() -> None:
    base = ["b" * (n % 7 + 1) for n in range(20)]
    test = ["t" * (n % 5 + 1) for n in range(20)]

    def found(refused: int) -> ResponseComparison:
        def judge(body: dict[str, Any]) -> Any:
            number = int(between(body, "prompt"))
            if number < refused and "<persona>" not in body["messages"][-1]["content"]:
                return Fault.status(400)
            test_is_first = between(body, "response_1").startswith("t")
            return {"answer": "1" if test_is_first == (number % 3 > 0) else "2"}

        with FakeLLM(judge) as llm:
            address = llm.api_base
            prompts = list(map(str, range(20)))
            return pi.compare_responses(
                prompts, base, test, "judge", personas=PERSONA, api_base=address
            )

    whole, part = found(0), found(12)
    assert part.quality.win_rate.rate.n == 8
    assert part.personalization == whole.personalization
    assert part.length == whole.length


# The same result


def codes(count: int) -> list[str]:
    draw = random.Random(3)
    return ["".join(draw.choices("wl1n?", weights=[5, 3, 2, 1, 1], k=2)) for _ in range(count)]


def numbers(found: ResponseComparison) -> dict[str, Any]:
    return {k: v for k, v in found.to_dict().items() if k != "judge"}


OTHER = {"base": "test", "test": "base"}


def test_swapped_sides_mirror_the_result() -> None:
    given = codes(40)
    found = compare(given)
    sides: dict[str, Any] = {
        "base": [f"test {n}" for n in range(40)],
        "test": [f"base {n}" for n in range(40)],
    }
    swapped = compare(given, **sides)
    for name in ("quality", "personalization"):
        one, other = getattr(found, name), getattr(swapped, name)
        assert counts(other) == counts(one)[::-1]
        assert other.win_rate.rate.value == pytest.approx(1 - one.win_rate.rate.value)
        assert other.length_controlled.value == pytest.approx(1 - one.length_controlled.value)
        assert other.consistency == one.consistency
    assert found.delta_pq is not None
    assert swapped.delta_pq is not None
    mirrored = (-swapped.delta_pq.value, -swapped.delta_pq.high, -swapped.delta_pq.low)
    expected = (found.delta_pq.value, found.delta_pq.low, found.delta_pq.high)
    assert mirrored == pytest.approx(expected, abs=0.02)


def test_shuffled_rows_give_the_same_result() -> None:
    given = codes(30)
    found = compare(given)
    order = list(range(30))
    random.Random(1).shuffle(order)
    shuffled = compare(
        given,
        prompts={n: f"prompt {n}" for n in order},
        base={n: f"base {n}" for n in reversed(order)},
        test={n: f"test {n}" for n in range(30)},
        personas=PERSONA,
    )
    assert shuffled.columns["id"] == [str(n) for n in order]
    assert [shuffled.columns["quality"][order.index(n)] for n in range(30)] == found.columns[
        "quality"
    ]
    one, other = numbers(found), numbers(shuffled)
    one["problems"] = other["problems"] = None  # the most common first: of equals, the first met
    assert one == other


def test_repeated_prompts_are_neither_merged_nor_new_evidence() -> None:
    given = codes(20)
    found = compare(given)
    times = {
        "prompts": [f"prompt {n % 20}" for n in range(60)],
        "base": [f"base {n}" for n in range(60)],
        "test": [f"test {n}" for n in range(60)],
        "personas": [PERSONA] * 60,
        "judge": judge_by({f"prompt {n}": code for n, code in enumerate(given)}),
    }
    tripled = pi.compare_responses(**times)  # type: ignore[arg-type]
    assert counts(tripled.quality) == tuple(3 * count for count in counts(found.quality))
    assert len(tripled.columns["id"]) == 60
    for one, other in [
        (tripled.delta_pq, found.delta_pq),
        (tripled.quality.win_rate.rate, found.quality.win_rate.rate),
        (tripled.quality.win_rate.rate_with_ties, found.quality.win_rate.rate_with_ties),
        (tripled.quality.consistency, found.quality.consistency),
    ]:
        assert one == other


def test_the_same_prompt_with_other_responses_keeps_its_own_verdict() -> None:
    def judge(prompt: Any, first: str, second: str, persona: Any) -> int:
        return 1 if "good" in first else 2

    found = pi.compare_responses(
        ["Tea?", "Tea?"], ["good tea", "bad tea"], ["bad tea", "good tea"], judge=judge
    )
    assert found.columns["quality"] == ["base", "test"]


# What belongs together


def test_every_form_of_ids_gives_the_same() -> None:
    given = ["wl", "lw", "w1"]
    texts: dict[str, Any] = {
        side: {f"q{n}": f"{side} {n}" for n in range(3)} for side in ("base", "test")
    }
    prompts = {f"q{n}": f"prompt {n}" for n in range(3)}
    mapping = compare(given, prompts=prompts, **texts, personas=dict.fromkeys(prompts, PERSONA))
    rows = compare(
        given,
        prompts=[{"id": key, "prompt": text} for key, text in prompts.items()],
        base=[{"id": key, "response": text} for key, text in texts["base"].items()],
        test=[{"id": key, "response": text} for key, text in reversed(texts["test"].items())],
        personas=[{"id": key, "persona": str(PERSONA)} for key in prompts],
    )
    series = compare(
        given,
        prompts=pd.Series(prompts),
        base=pd.Series(texts["base"])[["q2", "q0", "q1"]],
        test=pd.Series(texts["test"]),
        personas=PERSONA,
    )
    assert mapping.columns == rows.columns == series.columns
    assert mapping.columns["quality"] == ["test", "base", "test"]


def test_a_list_is_in_the_order_of_the_prompts_whatever_their_ids() -> None:
    """As of a frame that was shuffled: its index says another order than its rows."""
    prompts = pd.Series({2: "prompt 2", 0: "prompt 0", 1: "prompt 1"})
    found = compare(
        ["wl", "lw", "w1"],
        prompts=prompts,
        base=["base 2", "base 0", "base 1"],
        test={n: f"test {n}" for n in range(3)},
        personas=[None, PERSONA, PERSONA],
    )
    assert found.columns["id"] == ["2", "0", "1"]
    assert found.columns["error"] == ["no persona", None, None]
    assert [pair.rejected for pair in paired(prompts, ["base 2", "base 0", "base 1"])] == [
        "base 2",
        "base 0",
        "base 1",
    ]


def test_a_dict_without_a_response_is_a_missing_one_and_the_ids_still_hold() -> None:
    prompts = [{"id": f"q{n}", "prompt": f"prompt {n}"} for n in range(3)]
    base = [
        {"id": "q2", "response": "base 2"},
        {"id": "q0", "error": "timeout"},
        {"id": "q1", "response": "base 1"},
    ]
    made = pair_responses(prompts, base, [f"test {n}" for n in range(3)])
    assert [one.pair and one.pair.rejected for one in made] == [None, "base 1", "base 2"]
    assert made[0].problem is not None


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (
            [{"id": 1, "output": "a"}, {"id": 0, "output": "b"}],
            "keys 'id', 'output': 'response' is",
        ),
        ([{"id": 1, "response": "a"}, {"response": "b"}], r"base\[1\] has no id"),
        ([{"id": 1, "response": "a"}, "b"], r"base\[1\] has no id"),
        ([{"id": 1, "response": "a"}, {"id": None, "response": "b"}], r"base\[1\] has no id"),
    ],
    ids=["another name", "no id", "no dict", "an id that is None"],
)
def test_ids_are_never_ignored(base: Any, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        pair_responses([{"id": n, "prompt": f"prompt {n}"} for n in range(2)], base, ["c", "d"])


@pytest.mark.parametrize("container", [list, tuple, iter, datasets.Dataset.from_list])
def test_ids_of_rows_hold_in_any_container(container: Any) -> None:
    rows = container([{"id": str(n), "prompt": f"prompt {n}"} for n in (2, 0, 1)])
    made = pair_responses(rows, {n: f"base {n}" for n in range(3)}, ["c", "d", "e"])
    assert [one.pair and one.pair.rejected for one in made] == ["base 2", "base 0", "base 1"]


def test_the_labels_of_a_series_are_no_places_of_a_list() -> None:
    frame = pd.DataFrame({"prompt": ["p 0", "p 1"], "base": ["b 0", "b 1"]}).iloc[[1, 0]]
    with pytest.raises(
        InvalidArgumentError, match="base= has ids in another order than 0 to 1, and pro"
    ):
        pair_responses(frame.prompt.tolist(), frame.base, ["c", "d"])
    for prompts, base in (
        (frame.prompt, frame.base),
        (frame.prompt.tolist(), frame.base.tolist()),
        (frame.prompt, frame.base.tolist()),
        (frame.prompt.tolist(), frame.base.reset_index(drop=True)),
    ):
        made = pair_responses(prompts, base, ["c", "d"])
        assert [one.pair and one.pair.rejected for one in made] == ["b 1", "b 0"]


def paired(prompts: Any, base: Any) -> list[pi.Preference]:
    made = pair_responses(prompts, base, [f"test of {text}" for text in base])
    return [one.pair for one in made if one.pair is not None]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": ["base 0"]}, r"base= \(1\) is not aligned with the 2 prompts.*such as '1'"),
        ({"test": ["a", "b", "c"]}, r"test= \(3\).*1 ids that they lack, such as '2'"),
        ({"base": {"x": "a", "y": "b"}}, "nothing for 2 of them, such as '0' and 2 ids"),
        ({"personas": [PERSONA]}, r"personas= \(1\) is not aligned"),
        ({"prompts": [{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}]}, "'1' twice"),
        ({"test": ["base 0", "base 1"]}, "compared with itself"),
        ({"base": "base 0"}, "base= is a single str"),
        ({"base": {"base 0", "base 1"}}, "base= is a single set"),  # which has no order
        ({"personas": {PERSONA, "another"}}, "personas= is a single set"),
        ({"base": 5}, "base=5 cannot be read"),
        ({"base": pd.DataFrame({"base": ["a", "b"]})}, "base= is a single DataFrame"),
        ({"prompts": [], "base": [], "test": []}, "prompts= is empty"),
        ({"personas": [5, 5]}, "the persona of '0' is of type int"),
        ({"unparsable": "win"}, "unparsable='win'"),
        ({"confidence": 95}, "confidence=95"),
        ({"temperature": 0.0}, "temperature: a function as judge= takes no options"),
    ],
)
def test_what_cannot_be_compared_is_an_error_before_anybody_is_asked(
    changed: dict[str, Any], message: str
) -> None:
    seen: Seen = []
    with pytest.raises(InvalidArgumentError, match=message):
        compare(["ww", "ww"], seen, **changed)
    assert seen == []


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UnknownOptionError, match=r"persona=.*personas="):
        compare(["ww"], persona=PERSONA)


def test_a_row_that_cannot_be_judged_costs_only_itself() -> None:
    found = compare(
        ["ww", "ww", "ww", "lw"],
        base=["base 0", None, "base 2", "base 3"],
        personas=[PERSONA, PERSONA, None, "The user is calm and prefers peace."],
    )
    assert found.columns["quality"] == ["test", None, None, "base"]
    assert found.columns["error"][0] is None
    assert "'base' is missing" in found.columns["error"][1]
    assert found.columns["error"][2] == "no persona"
    assert found.skipped == 2
    assert found.length.base.n == 2
    assert "1 not judged: no persona." in str(found)
    assert "1 not judged: 'base' is missing (null).\n" in str(found)
    with pytest.raises(DataError, match=r"none of the 1 rows can be judged.*no persona"):
        compare(["ww"], personas=[float("nan")])


def test_text_that_no_request_can_hold_costs_only_its_row() -> None:
    with FakeLLM({"answer": "1"}) as server:
        found = compare(
            ["ww", "ww"], test=["\ud800", "test 1"], judge="judge", api_base=server.api_base
        )
    assert found.columns["quality"] == [None, "tie"]
    assert "not UTF-8" in found.columns["error"][0]


def test_equal_responses_are_a_tie_that_nobody_is_asked_about() -> None:
    seen: Seen = []
    found = compare(["ww", "ww"], seen, test=["base 0", "test 1"])
    assert len(seen) == 4
    assert counts(found.quality) == (1, 1, 0)
    assert found.same == 1
    assert found.columns["quality"] == ["tie", "test"]
    assert found.columns["quality_score"] == [None, 1.0]
    assert "1 with equal responses are ties." in str(found)


# A model as the judge


def between(body: dict[str, Any], tag: str) -> str:
    content = body["messages"][-1]["content"]
    return str(content.split(f"<{tag}>\n", 1)[1].split(f"\n</{tag}>", 1)[0])


def test_a_model_is_asked_in_both_orders_with_and_without_the_persona() -> None:
    def shorter_for_the_busy(body: dict[str, Any]) -> Any:
        texts = [between(body, "response_1"), between(body, "response_2")]
        wanted = min if "busy" in body["messages"][-1]["content"] else max
        return {"answer": str(1 + texts.index(wanted(texts, key=len)))}

    prompts = [f"How, {n}?" for n in range(8)]
    with FakeLLM(shorter_for_the_busy) as server:
        found = pi.compare_responses(
            prompts,
            ["Long, long answer."] * 8,
            [f"Short {n}." for n in range(8)],
            judge="judge",
            personas=[PERSONA] * 8,
            api_base=server.api_base,
        )
        sent = server.requests
    assert found.judge == "judge"
    assert found.usage.calls == server.calls == 32
    assert counts(found.quality) == (0, 0, 8)
    assert counts(found.personalization) == (8, 0, 0)
    assert found.delta_pq is not None
    assert found.delta_pq.value == 0.0
    assert found.delta_pq.low < -0.3  # eight prompts are not certainty
    shown = [body for body in sent if "<persona>" in body["messages"][-1]["content"]]
    assert len(shown) == 16
    assert {between(body, "persona") for body in shown} == {str(PERSONA)}
    hidden = [body for body in sent if body not in shown]
    assert "busy" not in json.dumps(hidden)
    assert "test" not in " ".join(m["content"] for body in sent for m in body["messages"])
    first = [between(body, "response_1").startswith("Long") for body in hidden]
    assert sum(first) == 8


def test_a_conversation_is_shown_whole() -> None:
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": "Tea?"},
    ]
    with FakeLLM({"answer": "1"}) as server:
        pi.compare_responses([turns], ["No."], ["Yes."], "judge", api_base=server.api_base)
    assert between(server.requests[0], "prompt") == "User: Hello.\n\nAssistant: Hi!\n\nUser: Tea?"


def test_a_model_that_always_fails_is_an_error_that_says_why() -> None:
    with FakeLLM(Fault.refusal()) as server, pytest.raises(ModelError, match=r"any of 2.*refused"):
        compare(["ww"], judge="judge", api_base=server.api_base, max_attempts=1)
    with pytest.raises(ModelError, match="usable reply to any"):
        compare(["??"])
    with FakeLLM(api_key="right") as server, pytest.raises(AuthenticationError):
        compare(["ww"], judge="judge", api_base=server.api_base, api_key="wrong")


def test_the_second_run_makes_no_call() -> None:
    with FakeLLM({"answer": "1"}) as server:
        llm = pi.LLM("judge", api_base=server.api_base)
        compare(["ww", "ww"], judge=llm)
        again = compare(["ww", "ww"], judge=llm)
        assert server.calls == 8
    assert again.usage.cached == 8


# Views


def test_views_say_the_numbers() -> None:
    found = compare(codes(25))
    assert found.delta_pq is not None
    text, page = str(found), found._repr_html_()
    for view in (text, page):
        for said in ("quality", "personalization", "ΔPQ", str(found.delta_pq), "Characters"):
            assert said in view
    assert text.startswith("ResponseComparison by judge\n")
    frame = pd.DataFrame(found.columns)
    assert list(frame["id"]) == [str(n) for n in range(25)]
    assert frame["quality"].value_counts()["test"] == found.quality.win_rate.wins
    plain = json.dumps(found.to_dict())
    assert json.loads(plain)["delta_pq"]["value"] == pytest.approx(found.delta_pq.value)
    assert "verdicts" not in plain
    assert np.array_equal([v is not None for v in found.verdicts["quality"]], [True] * 25)


# Judges of other kinds


def two_prompts(judge: Any, **options: Any) -> ResponseComparison:
    return pi.compare_responses(
        ["p 0", "p 1"], ["base 0", "base 1"], ["test 0", "test 1"], judge, **options
    )


def test_a_function_may_be_async_and_is_asked_several_questions_at_once() -> None:
    running: list[int] = []
    most: list[int] = []

    async def judge(prompt: Any, first: str, second: str, persona: Any) -> int:
        running.append(1)
        most.append(len(running))
        await asyncio.sleep(0.01)
        running.pop()
        return 1 if first.startswith("test") else 2

    found = two_prompts(judge, personas=PERSONA)
    assert counts(found.quality) == (2, 0, 0)
    assert max(most) == 4
    assert found.judge == "judge"


def test_what_an_async_function_raises_is_its_callers_to_see() -> None:
    async def judge(prompt: Any, first: str, second: str, persona: Any) -> int:
        raise KeyError(prompt)

    with pytest.raises(KeyError):  # as of a plain function, and in no group
        two_prompts(judge)


def test_an_async_function_that_is_cancelled_from_within_has_failed() -> None:
    async def judge(prompt: Any, first: str, second: str, persona: Any) -> int:
        if prompt == "p 1":
            raise asyncio.CancelledError
        return 1

    with pytest.raises(ModelError, match="judge was cancelled from within"):
        two_prompts(judge)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_an_async_function_that_fails_leaves_no_answer_that_nobody_awaits() -> None:
    begun: list[Any] = []

    async def judge(prompt: Any, *_: Any) -> int:
        begun.append(prompt)
        if prompt == "p 9":
            raise KeyError(prompt)
        await asyncio.sleep(0)
        return 1

    prompts, base, test = ([f"{kind} {n}" for n in range(40)] for kind in ("p", "base", "test"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError):
            pi.compare_responses(prompts, base, test, judge)
        gc.collect()
    assert 18 < len(begun) < 80


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_is_asked_each_question_once(is_async: bool) -> None:
    asked: list[Any] = []

    def judge(prompt: Any, first: str, second: str, persona: Any) -> int:
        asked.append((prompt, first))
        return 1 if first.startswith("test") else 2

    async def later(*question: Any) -> int:
        return judge(*question)

    function = later if is_async else judge
    first = two_prompts(function)
    assert len(asked) == 4
    again = two_prompts(function)
    assert len(asked) == 4
    assert counts(again.quality) == counts(first.quality) == (2, 0, 0)


def test_what_a_function_answered_before_it_failed_is_not_asked_again() -> None:
    asked: list[str] = []
    broken = True

    def judge(prompt: Any, first: str, second: str, persona: Any) -> int:
        asked.append(first)
        if broken and prompt == "p 1":
            raise TimeoutError
        return 1

    with pytest.raises(TimeoutError):
        two_prompts(judge)
    broken = False
    two_prompts(judge)
    assert sorted(asked) == ["base 0", "base 1", "test 0", "test 1", "test 1"]


@pytest.mark.parametrize(
    ("reply", "wins"),
    [
        ("Feedback: the first is better. [RESULT] {}", 2),
        ("**Feedback:** the other one is long.\n\n[RESULT] ({})", 2),
        ("I compared both. My verdict: [[{}]]", 2),
        ("[RESULT] Response {}.", 2),
    ],
)
def test_judges_that_grade_in_text_are_read(reply: str, wins: int) -> None:
    def script(body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"]
        return reply.format("A" if text.index("test") < text.index("base") else "B")

    with FakeLLM(script) as server:
        found = two_prompts("prometheus", api_base=server.api_base)
        assert len(server.requests) == 4  # nobody was asked twice
    assert (counts(found.quality), found.failed) == ((wins, 0, 0), 0)


@pytest.mark.parametrize(
    "reply", ["A is better.", "[RESULT] A, or rather [RESULT] B", "[RESULT] 4", "[RESULT]"]
)
def test_text_without_one_result_is_no_answer(reply: str) -> None:
    with FakeLLM(reply) as server, pytest.raises(ModelError, match="no usable reply"):
        two_prompts("prometheus", api_base=server.api_base, max_attempts=1)


def test_a_rubric_may_be_the_users_own() -> None:
    with FakeLLM({"answer": "1"}) as server:
        own = "Say which response is funnier."
        found = two_prompts(
            "judge", personas=PERSONA, rubrics={"quality": own}, api_base=server.api_base
        )
        told = {body["messages"][0]["content"] for body in server.requests}
    assert found.failed == 0
    mine = [text for text in told if own in text]
    assert len(told) == 2
    assert len(mine) == 1
    assert "Reply with JSON only" in mine[0]
    assert "correct, helpful, clear, safe" not in mine[0]


@pytest.mark.parametrize("rubrics", [{"humour": "x"}, {"quality": " "}, {"quality": 5}, "quality"])
def test_a_rubric_that_cannot_be_used_is_refused(rubrics: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="rubrics"):
        two_prompts("judge", rubrics=rubrics)
    with pytest.raises(InvalidArgumentError, match="rubrics"):
        two_prompts(lambda *_: 1, rubrics={"quality": "Be kind."})
