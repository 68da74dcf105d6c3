"""`audit_personas` on users whose tastes are known, with a scorer that reads what personas say."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import personainfer as pi
from personainfer.evaluation import Estimate
from personainfer.exceptions import DataError, InvalidArgumentError, UnknownOptionError
from personainfer.records import FloatArray, Message, Usage
from personainfer.scoring.choice_models import LongerWins, length_only
from personainfer.tailoring import LowRankRewards
from personainfer.testing import FakeLLM
from personainfer.users import PersonaAudit, UserPersona, UserPersonas
from personainfer.users.audit_verdict import choices_needed, verdict_of
from personainfer.users.groups import other_users, strangers
from personainfer.users.records import UserRow

from ..audit_world import Kind, World, read

FREE = ("longer", "majority")
VERDICTS: list[object] = [
    ("knows", {}, "knows its user"),
    pytest.param("knows", {"longer": 0.2}, "knows its user", marks=pytest.mark.heavy),
    pytest.param("people in general", {}, "knows people in general", marks=pytest.mark.heavy),
    pytest.param("longer", {"longer": 0.3}, "no better than length", marks=pytest.mark.heavy),
    pytest.param("longer", {}, "no better than length", marks=pytest.mark.heavy),
    pytest.param(
        "own length", {"own_length": 0.3}, "no better than length", marks=pytest.mark.heavy
    ),
    pytest.param("nothing", {}, "no better than none", marks=pytest.mark.heavy),
]


@pytest.mark.heavy
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "tastes", "verdict"), VERDICTS)
def test_the_verdict_is_what_the_personas_know(
    kind: Kind, tastes: dict[str, float], verdict: str, seed: int
) -> None:
    world = World(seed, users=60, choices=60, **tastes)
    found = pi.audit_personas(world.personas(kind), world.choices, read, baselines=FREE)
    assert found.verdict == verdict


def test_few_choices_are_too_few_and_it_says_how_many_more() -> None:
    world = World(0, users=8, choices=6)
    found = pi.audit_personas(world.personas("nothing"), world.choices, read, baselines=FREE)
    assert found.verdict.startswith("cannot tell: too few choices, about ")
    more = int(found.verdict.split("about ")[1].split(" ")[0].replace(",", ""))
    # 0.5 is the variance of the difference of two guesses: 48 choices are there, 1,570 are needed.
    assert 500 < more < 5_000


def audited(**arguments: object) -> PersonaAudit:
    world = World(3, users=20, choices=12)
    asked: dict[str, object] = {"baselines": FREE, **arguments}
    return pi.audit_personas(world.personas("knows"), world.choices, read, **asked)  # type: ignore[arg-type]


class Mute:
    """A baseline that predicts no choice."""

    def fit(self, choices: Sequence[pi.Preference]) -> Mute:
        return self

    def predict(self, choices: Sequence[pi.Preference]) -> FloatArray:
        return np.full(len(choices), np.nan)


def test_a_baseline_that_predicts_nothing_hides_no_other() -> None:
    world = World(3, users=4, choices=5)
    found = pi.audit_personas(
        world.personas("knows"),
        world.choices,
        read,
        baselines={"mute": Mute(), "longer": LongerWins()},
        history=history_of(World(3, users=4), 2),
    )
    assert found.best_baseline == "longer"
    gain = found.own.value - found.baselines["longer"].value
    assert found.own_minus_best_baseline.value == pytest.approx(gain)


@pytest.mark.heavy
def test_the_numbers_are_those_of_the_margins() -> None:
    found = audited()
    own, shuffled = found.margins.own[0], found.margins.shuffled[0]
    assert found.own.value == pytest.approx(((np.sign(own) + 1) / 2).mean())
    assert found.own_minus_shuffled.value == pytest.approx(
        ((np.sign(own) - np.sign(shuffled)) / 2).mean()
    )
    assert found.own.n == 20
    assert found.own_minus_none.value == pytest.approx(found.own.value - found.none.value)
    best = max(one.value for one in found.baselines.values())
    assert found.own_minus_best_baseline.value == pytest.approx(found.own.value - best)
    longer = np.array([len(c.chosen) - len(c.rejected) for c in found.choices])
    assert found.baselines["longer"].value == pytest.approx(((np.sign(longer) + 1) / 2).mean())
    for one in (found.own, found.own_minus_shuffled, found.unseen.own, found.clashing.shuffled):
        assert one.low <= one.value <= one.high
    assert found.tokens["own persona"].value > found.tokens["none"].value


def history_of(world: World, seed: int) -> list[pi.Preference]:
    """Other choices of the same users."""
    other = World(seed, users=len(world.users), choices=12)
    other.topic, other.sign = world.topic, world.sign
    return [other._choice(user, 100 + n) for user in world.users for n in range(12)]


@pytest.mark.heavy
def test_all_baselines_are_fitted_on_the_history() -> None:
    pytest.importorskip("scipy")
    world = World(4, users=20, choices=12)
    found = pi.audit_personas(
        world.personas("knows"), world.choices, read, history=history_of(world, 5)
    )
    assert list(found.baselines) == [
        "longer",
        "majority",
        "similar users",
        "few-shot",
        "low-rank",
        "pooled",
    ]
    assert not found.left_out
    assert found.baselines["pooled"].low > 0.5  # all users like a kind tone
    assert found.tokens["few-shot"].value > found.tokens["own persona"].value


@pytest.mark.heavy
def test_without_a_history_the_result_says_what_is_left_out() -> None:
    found = audited(baselines=None)
    assert list(found.baselines) == ["longer", "majority"]
    assert set(found.left_out) == {"similar users", "few-shot", "low-rank", "pooled"}
    assert "'low-rank' is left out: it needs history=" in str(found)


@pytest.mark.heavy
def test_a_baseline_of_your_own() -> None:
    found = audited(
        baselines={"mine": LowRankRewards(2)}, history=history_of(World(3, users=20), 9)
    )
    assert list(found.baselines) == ["mine"]


# Choices that the personas were made from


def made(world: World, **row: object) -> UserPersonas:
    """Personas as `infer_user_personas` returns them."""
    rows = []
    for user, text in world.personas("knows").items():
        mine = [choice for choice in world.choices if choice.user == user]
        used = tuple(c.model_copy(update={"id": str(n)}) for n, c in enumerate(mine[:4]))
        persona = UserPersona(user=user, background=text, preferences=text, pairs=4)
        rows.append(UserRow(user=user, persona=persona, choices=used))
    return UserPersonas(tuple(rows), {}, Usage(), {})


def test_choices_that_a_persona_was_made_from_are_refused() -> None:
    world = World(0, users=5, choices=8)
    with pytest.raises(DataError, match=r"20 of 40 held-out choices .* user 'u0'"):
        pi.audit_personas(made(world), world.choices, read)


def test_swapped_and_respelled_choices_are_refused_too() -> None:
    world = World(0, users=5, choices=8)
    leak = world.choices[0]
    leak = leak.swapped.model_copy(update={"prompt": f"  {leak.prompt} ".upper()})
    with pytest.raises(DataError, match="1 of 1 held-out"):
        pi.audit_personas(made(world), [leak], read)


@pytest.mark.parametrize("form", [str.upper, partial(unicodedata.normalize, "NFD")])
def test_a_choice_in_another_spelling_gives_no_answer_away(form: Callable[[str], str]) -> None:
    """The same in each function that keeps choices apart."""
    texts = {"prompt": "Où est le café?", "chosen": "À côté.", "rejected": "Là-bas."}
    [known] = history = [pi.Preference(user="ann", **texts)]
    again = pi.Preference(user="ann", **{name: form(text) for name, text in texts.items()})
    with pytest.raises(DataError, match="1 of 1 held-out"):
        pi.audit_personas({"ann": "calm"}, [again], read, history=history)
    persona = UserPersona(user="ann", background="calm", preferences="", pairs=1)
    rows = (UserRow(user="ann", persona=persona, choices=(known,)),)
    prefix = pi.persona_prefix("persona", personas=UserPersonas(rows))
    with pytest.raises(DataError, match="1 of 1 held-out"):
        pi.evaluate_prefixes({"persona": prefix}, [again], read)
    examples = pi.persona_prefix("few-shot", history=history)
    assert examples.before(again).text == examples.text("ann", again.prompt) == ""


def test_choices_with_the_ids_of_the_evidence_are_refused() -> None:
    world = World(0, users=5, choices=8)
    personas, rows = world.personas_with_evidence(3)
    with pytest.raises(DataError, match="5 of 40 held-out"):
        pi.audit_personas(personas, rows, read)
    assert pi.audit_personas(personas, world.choices, read, baselines=FREE)  # ids of the data only


def test_a_history_that_holds_the_choices_is_refused() -> None:
    world = World(0, users=5, choices=8)
    with pytest.raises(DataError, match="40 of 40"):
        pi.audit_personas(world.personas("knows"), world.choices, read, history=world.choices)


def test_other_choices_pass_and_are_the_history() -> None:
    world = World(0, users=5, choices=8)
    held_out = [c for user in world.users for c in world.choices if c.user == user][4::8]
    found = pi.audit_personas(made(world), held_out, read, baselines=("few-shot", "similar users"))
    assert set(found.baselines) == {"few-shot", "similar users"}


def test_places_in_two_files_are_no_ids() -> None:
    """Without ids of its own, a choice has its place in the data; other data has the same places."""
    world = World(0, users=5, choices=8)
    other = World(1, users=5, choices=4)
    rows = [c.model_copy(update={"prompt": f"{c.prompt} Say."}) for c in other.choices]
    assert pi.audit_personas(made(world), rows, read, baselines=FREE).own.n == 5


# What the scorer is asked


class Counting:
    """A scorer that notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(
        self, conversations: Sequence[Sequence[Message]], responses: Sequence[str]
    ) -> FloatArray:
        self.calls.append(len(responses))
        rows = list(zip(map(tuple, conversations), responses, strict=True))
        assert len(set(rows)) == len(rows)  # nothing is asked twice
        return read(conversations, responses)


def test_conditions_share_calls() -> None:
    world = World(0, users=10, choices=6)
    scorer = Counting()
    same = dict.fromkeys(world.users, "The user likes cats.")
    pi.audit_personas(same, world.choices, scorer, baselines=FREE)
    # In one call: own and shuffled are the same text, and there is none.
    texts = {(c.prompt, text) for c in world.choices for text in (c.chosen, c.rejected)}
    assert scorer.calls == [2 * len(texts)]


def test_a_curve_asks_for_nothing_twice() -> None:
    world = World(0, users=10, choices=6)
    scorer, asked = Counting(), []

    def personas(k: int) -> dict[str, str]:
        asked.append(k)
        return world.personas("knows" if k > 2 else "nothing")

    found = pi.audit_personas(personas, world.choices, scorer, baselines=FREE, k=(8, 2, 4))
    assert asked == [2, 4, 8]
    assert list(found.curve) == [2, 4, 8]
    assert found.curve[8].own == found.own
    assert found.curve[2].own.value < found.curve[8].own.value
    # None once; own and shuffled for "nothing" and for "knows", which k = 4 and k = 8 share.
    [count] = scorer.calls
    assert count <= 5 * 2 * 60


def test_users_without_a_persona_are_counted() -> None:
    world = World(0, users=10, choices=6)
    personas: dict[str, str] = world.personas("knows") | {"u3": " "}
    found = pi.audit_personas(personas, world.choices, read, baselines=FREE)
    assert (found.unknown, found.own.n, len(found.choices)) == (6, 9, 54)
    assert "6 held-out choices of users without a persona" in str(found)


def test_a_margin_that_is_no_number_is_left_out() -> None:
    world = World(0, users=10, choices=6)

    def scorer(chats: Sequence[Sequence[Message]], responses: Sequence[str]) -> FloatArray:
        found = read(chats, responses)
        found[[len(chat) > 1 and "Name: u3." in chat[0].content for chat in chats]] = np.nan
        return found

    found = pi.audit_personas(world.personas("knows"), world.choices, scorer, baselines=FREE)
    assert (found.failed, found.own.n) == (6, 9)
    assert "60 choices of 10 users" in str(found)  # as for the choices, of which 6 have no margin


@pytest.mark.heavy
def test_a_score_that_is_infinite_or_very_large_spoils_no_number(tmp_path: Path) -> None:
    world = World(0, users=5, choices=4)

    def audited(own: float, other: float) -> PersonaAudit:
        def scorer(chats: Sequence[Sequence[Message]], responses: Sequence[str]) -> FloatArray:
            found = read(chats, responses)
            found[found == found.min()] = own
            found[found == found.max()] = other
            return found

        return pi.audit_personas(world.personas("knows"), world.choices, scorer, baselines=FREE)

    usual, found = audited(-2e3, 1e3), audited(-np.inf, 1e300)
    assert str(found) == str(usual)
    assert str(found.to_dict()) == str(usual.to_dict())
    pi.write_report(found, tmp_path / "audit.html")


def test_groups_and_fitted_users() -> None:
    world = World(0, users=12, choices=6)
    found = pi.audit_personas(
        world.personas("knows"),
        world.choices,
        read,
        baselines=FREE,
        groups={"topic": world.topic},
        fitted_users=world.users[:4],
    )
    assert [one.measure for one in found.by_group] == ["accuracy", "own - shuffled"]
    assert found.unseen.own.n == 8
    # A stranger of the same group likes the same topic.
    assert abs(found.own_minus_shuffled.value) < 0.2


def test_one_user_has_no_stranger() -> None:
    world = World(0, users=1, choices=6)
    found = pi.audit_personas(world.personas("knows"), world.choices, read, baselines=FREE)
    assert np.isnan(found.shuffled.value)
    assert found.verdict == "cannot tell: too few choices, about 1,600 more are needed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"baselines": ["lowrank"]}, "baselines='lowrank' is not known"),
        ({"baselines": {"mine": 3}}, "has no fit"),
        ({"k": 3}, "k=3 is for a function"),
        ({"smallest_effect": 5}, "smallest_effect=5 must lie between"),
        ({"smallest_effect": 1e-300}, "must lie between 0.0001 and 1"),
        ({"confidence": 95}, "confidence=95"),
        ({"draw_seed": -1}, "draw_seed=-1 must be a whole number from 0 up"),
        ({"role": "assistant"}, "role='assistant' is not known"),
        ({"groups": ["a"]}, "is not a mapping of attributes"),
        ({"temperature": 1.0}, "configures a model"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        audited(**arguments)


def test_bad_personas_and_data() -> None:
    world = World(0, users=3, choices=3)
    with pytest.raises(InvalidArgumentError, match="neither UserPersonas nor a mapping"):
        pi.audit_personas([1, 2], world.choices, read)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"personas\['u0'\]=3 is not a persona"):
        pi.audit_personas({"u0": 3}, world.choices, read)  # type: ignore[dict-item]
    with pytest.raises(DataError, match="no held-out choice is of a user with a persona"):
        pi.audit_personas({"somebody": "The user likes tea."}, world.choices, read)
    with pytest.raises(InvalidArgumentError, match="k= does not say"):
        pi.audit_personas(lambda k: {}, world.choices, read)
    with pytest.raises(UnknownOptionError, match="baselines="):
        audited(baseline=["longer"])


# The parts


def test_strangers_have_other_words_and_are_near() -> None:
    texts = {f"u{n}": "x" * (10 + n % 50) + f" {n % 7}" for n in range(200)}
    choices = [
        pi.Preference(prompt=f"{n % 4}", chosen="a", rejected="b", user=f"u{n}") for n in range(200)
    ]
    group = {user: str(n % 2) for n, user in enumerate(texts)}
    found = other_users(texts, choices, {"group": group}, 0)
    assert found == other_users(texts, choices, {"group": group}, 0)
    for user, other in found.items():
        assert texts[user] != texts[other]
        assert group[user] == group[other]
        assert int(user[1:]) % 4 == int(other[1:]) % 4  # the same prompt
        assert abs(len(texts[user]) - len(texts[other])) <= 0.25 * len(texts[user]) + 4
    assert len(set(found.values())) > 60  # no few who stand in for all


def test_strangers_are_those_whose_scores_are_there() -> None:
    """Users of two groups chose between the same statements, each in pairs of their own."""
    texts = {f"u{n}": f"likes {n:02}" for n in range(8)}
    group = {user: str(n % 2) for n, user in enumerate(texts)}
    pairs = [("a", "b"), ("b", "c"), ("c", "a")]
    choices = [
        pi.Preference(prompt="?", chosen=one, rejected=other, user=user)
        for n, user in enumerate(texts)
        for one, other in [pairs[n % 3], (f"d{n}", f"e{n}"), pairs[(n + 1) % 3]]
    ]
    scored = {(c.user, text) for c in choices for text in (c.chosen, c.rejected)}
    found = strangers(texts, choices, {"group": group}, 0)
    assert found == strangers(texts, choices, {"group": group}, 0)
    for choice, other in zip(choices, found, strict=True):
        assert other is not None
        assert other != choice.user
        assert group[other] == group[choice.user or ""]
        free = {(other, choice.chosen), (other, choice.rejected)} <= scored
        assert free == (not choice.chosen.startswith("d"))


def test_another_persona_is_about_as_long_even_if_others_are_scored() -> None:
    texts = {"ann": "likes cats", "eve": "likes maths " * 9}
    texts |= {f"bob{n}": f"likes ship{n}" for n in range(6)}
    choices = [
        pi.Preference(prompt="?", chosen="a", rejected="b", user=user) for user in ("ann", "eve")
    ]
    choices += [
        pi.Preference(prompt="?", chosen="c", rejected="d", user=f"bob{n}") for n in range(6)
    ]
    assert strangers(texts, choices, {}, 0)[0] != "eve"
    assert strangers({"ann": "x"}, choices[:1], {}, 0) == [None]


@pytest.mark.heavy
def test_the_time_to_find_strangers_does_not_grow_with_the_square_of_the_users() -> None:
    """All users answer the same questions; each was compared with each other one for each choice."""
    choices = [
        pi.Preference(prompt=f"q{question}", chosen=said, rejected=other, user=f"u{user}")
        for user in range(600)
        for question in range(10)
        for said, other in [("a", "b") if (user + question) % 2 else ("b", "a")]
    ]
    texts = {f"u{user}": f"The user {user} is patient." for user in range(600)}
    started = time.process_time()
    found = strangers(texts, choices, {}, 0)
    assert time.process_time() - started < 2  # of 0.2; it took 6
    assert all(other != choice.user for other, choice in zip(found, choices, strict=True))


def test_a_rule_of_length_follows_the_persona() -> None:
    users = np.array(["a"] * 4 + ["b"] * 4)
    lengths = np.array([3, -1, 2, -5, 1, 1, -4, 2])
    toward_longer = np.array([1, 1, 1, 1, -1, -1, -1, -1])
    margins = toward_longer * np.sign(lengths) * 0.3
    assert length_only(margins, lengths, users).tolist() == np.sign(margins).tolist()


def test_the_power_calculation_is_that_of_independent_choices() -> None:
    random = np.random.default_rng(0)
    differences = random.choice([-1.0, 0.0, 1.0], p=[0.25, 0.5, 0.25], size=4000)
    more = choices_needed(differences, np.arange(4000), 0.02)
    assert more == choices_needed(differences.tolist(), [*range(4000)], 0.02)
    for smallest in (0, -0.1, "a"):
        with pytest.raises(InvalidArgumentError, match="smallest="):
            choices_needed(differences, np.arange(4000), smallest)  # type: ignore[arg-type]
    assert more == pytest.approx(0.5 * (2.8016 / 0.02) ** 2 - 4000, rel=0.1)


def test_a_persona_that_harms_is_no_better_than_none() -> None:
    better, worse = Estimate(0.1, 0.05, 0.15, 50), Estimate(-0.1, -0.15, -0.05, 50)
    own = Estimate(0.6, 0.55, 0.65, 50)
    assert (
        verdict_of(better, worse, better, own=own, smallest=0.05, more=9) == "no better than none"
    )


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        (Estimate(0.6, 0.51, 0.7, 50), "knows"),
        (Estimate(0.35, 0.3, 0.4, 50), "no better than none"),
        (Estimate(0.6, 0.45, 0.75, 50), "cannot tell"),
    ],
    ids=["above a guess", "below", "not known"],
)
@pytest.mark.parametrize("whose", ["its user", "people in general"])
def test_a_persona_that_predicts_no_better_than_a_guess_knows_nothing(
    own: Estimate, verdict: str, whose: str
) -> None:
    """Whatever it is better than: a judge that answers "neither" is worse than a guess without it."""
    better, same = Estimate(0.1, 0.06, 0.15, 50), Estimate(0.0, -0.01, 0.01, 50)
    over_other = better if whose == "its user" else same
    found = verdict_of(over_other, better, better, own=own, smallest=0.05, more=9)
    assert found.startswith(f"knows {whose}" if verdict == "knows" else verdict)


@pytest.mark.parametrize(
    ("own", "over_other", "over_none"),
    [
        (Estimate(0.518, 0.501, 0.534, 60), (0.024, 0.004, 0.044), (0.014, -0.009, 0.036)),
        (Estimate(0.511, 0.492, 0.529, 60), (0.017, -0.007, 0.04), (0.031, 0.006, 0.056)),
        (Estimate(0.512, 0.497, 0.527, 60), (0.039, 0.018, 0.06), (0.022, -0.001, 0.045)),
        (Estimate(0.507, 0.49, 0.525, 60), (0.023, -0.005, 0.051), (-0.007, -0.029, 0.013)),
    ],
    ids=["another user's by chance", "none by chance", "clearly", "not excluded"],
)
def test_a_small_difference_beside_a_guess_is_nothing(
    own: Estimate, over_other: tuple[float, float, float], over_none: tuple[float, float, float]
) -> None:
    """Personas that say nothing: one of two intervals is above 0 in one of 20 audits."""
    other, none = (Estimate(*values, 60) for values in (over_other, over_none))
    over_length = Estimate(0.01, -0.02, 0.03, 60)

    def verdict(own: Estimate, over_length: Estimate) -> str:
        return verdict_of(other, none, over_length, own=own, smallest=0.05, more=9)

    assert verdict(own, over_length) == "no better than none"
    assert verdict(Estimate(0.6, 0.58, 0.62, 60), over_length) != "no better than none"


def test_a_judge_that_often_says_neither_is_told(llm: FakeLLM) -> None:
    llm.reply = lambda request: '{"answer": "neither"}'
    world = World(0, users=4, choices=3)
    found = pi.audit_personas(
        world.personas("knows"), world.choices, "fake", api_base=llm.api_base, baselines=FREE
    )
    assert found.margins.neither == found.to_dict()["neither"] == 1.0
    assert "answered “neither” in 100% of its answers, which counts as wrong" in str(found)
    assert not found.verdict.startswith("knows")


@pytest.mark.heavy
def test_personas_that_were_inferred_know_their_choices(llm: FakeLLM) -> None:
    """Rows without ids: the place of a choice in one file is no id in the other."""
    world = World(0, users=4, choices=8)
    rows = [choice.model_dump(exclude={"id"}) for choice in world.choices]
    seen, held_out = [r for n, r in enumerate(rows) if n % 8 < 4], rows[4::8]
    personas = pi.infer_user_personas(seen, "fake", api_base=llm.api_base)
    assert len(personas.personas) == 4
    found = pi.audit_personas(personas, held_out, read)
    assert set(found.baselines) >= {"longer", "majority", "similar users", "few-shot"}
    with pytest.raises(DataError, match="4 of 8 held-out"):
        pi.audit_personas(personas, [*held_out, *seen[::4]], read)


def test_a_judge_can_be_asked(llm: FakeLLM) -> None:
    world = World(0, users=4, choices=3)
    found = pi.audit_personas(
        world.personas("knows"), world.choices, "fake", api_base=llm.api_base, baselines=FREE
    )
    assert found.own.n == 4
    # Both orders of 12 choices, with the own persona, another one, and none.
    assert len(llm.requests) == 2 * 12 * 3


def test_ids_that_start_anew_are_named_as_the_reason() -> None:
    row = UserRow(
        user="ann",
        persona=UserPersona(user="ann", background="x", preferences="x", pairs=1),
        choices=(pi.Preference(prompt="old?", chosen="yes", rejected="no", id="0"),),
    )
    again = [
        {"id": "0", "prompt": "new?", "chosen": "yes", "rejected": "never", "user_id": "ann"},
    ]
    with pytest.raises(DataError, match=r"1 of 1 held-out choices have ids of .*start anew"):
        pi.audit_personas(UserPersonas((row,)), again, read)


def test_a_baseline_that_is_named_is_not_left_out() -> None:
    world = World(0, users=4, choices=3)
    with pytest.raises(InvalidArgumentError, match=r"'low-rank', which learns.*Give history="):
        pi.audit_personas(world.personas("knows"), world.choices, read, baselines=["low-rank"])
    found = pi.audit_personas(world.personas("knows"), world.choices, read)
    assert "low-rank" in found.left_out


def test_groups_and_fitted_users_of_nobody_are_not_passed_over() -> None:
    world = World(0, users=4, choices=3)

    def audit(**options: Any) -> PersonaAudit:
        return pi.audit_personas(
            world.personas("knows"), world.choices, read, baselines=FREE, **options
        )

    with pytest.raises(InvalidArgumentError, match=r"groups\['diet'\] has none of the 4 users"):
        audit(groups={"diet": {"zoe": "vegan"}})
    with pytest.raises(InvalidArgumentError, match="fitted_users='u0' is not a list"):
        audit(fitted_users="u0")
    assert "None of the 1 users of fitted_users= is among" in str(audit(fitted_users=["zoe"]))


def test_users_of_a_column_with_gaps_are_those_of_the_data() -> None:
    """Pandas makes such a column floats, and its empty cells NaN."""
    rows = [
        {"user_id": float(user), "prompt": f"q{n}", "chosen": f"a{n}", "rejected": f"b{n}"}
        for user in range(1, 4)
        for n in range(2)
    ]
    said: dict[Any, Any] = {1.0: "The user likes a.", 2.0: "The user likes b.", 3.0: np.nan}
    group: dict[Any, str] = {1.0: "x", 2.0: "y"}
    found = pi.audit_personas(
        said,
        rows,
        read,
        baselines=FREE,
        groups={"kind": group},
        fitted_users=[2.0],  # type: ignore[list-item]
    )
    assert (len(found.choices), found.unknown, found.unseen.own.n) == (4, 2, 1)
    assert set(found.by_group[0].groups) == {"x", "y"}


def test_a_user_with_two_personas_is_named() -> None:
    world = World(0, users=4, choices=3)
    personas: dict[Any, str] = {"1": "x", 1: "y"}
    with pytest.raises(InvalidArgumentError, match="has '1' twice"):
        pi.audit_personas(personas, world.choices, read, baselines=FREE)
