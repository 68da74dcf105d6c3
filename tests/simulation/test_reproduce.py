"""The papers' figures measured again, on small files with the authors' columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from typer.testing import CliRunner

import personainfer as pi
from personainfer.cli.commands import app
from personainfer.evaluation.judge import LikelihoodJudge
from personainfer.exceptions import (
    AuthenticationError,
    DataError,
    InvalidArgumentError,
    PersonaInferError,
    UnknownOptionError,
)
from personainfer.simulation import reproduce
from personainfer.simulation.published_figures import _TAILORED, _published_responses
from personainfer.testing import FakeLLM, Fault, Reply

from ..builders import pairs
from ..scoring_server import ScoringServer

SHORT = "The user is busy and prefers short answers."
LONG = "The user is curious and prefers long answers."
SMALL = Path(__file__).parents[2] / "examples" / "data"


def tailored(count: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"Question {n}?",
            "chosen_persona": SHORT,
            "rejected_persona": LONG,
            "response_for_chosen_persona": f"Short {n}.",
            "response_for_rejected_persona": f"Long {n}, and longer.",
            "generic_response": f"Middle {n}.",
            "complete": n != 3,
        }
        for n in range(count)
    ]


def published(count: int = 8) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "chosen_persona_gold": SHORT,
            "rejected_persona_gold": LONG,
            "chosen_persona_retr": SHORT,
            "rejected_persona_retr": LONG,
        }
        for row in pairs(count)
    ]


def by_wish(body: dict[str, Any]) -> dict[str, str]:
    """Picks the response that the persona prefers; without a persona, the one that is no "Middle"."""
    text = body["messages"][-1]["content"]
    first = text.split("<response_1>", 1)[1].split("</response_1>", 1)[0]
    if "short answers" in text:
        return {"answer": "1" if "Short" in first else "2"}
    if "long answers" in text:
        return {"answer": "1" if "Long" in first else "2"}
    return {"answer": "1" if "Middle" not in first else "2"}


def measured(paper: Any, data: Any, script: Callable[[dict[str, Any]], Any], **options: Any) -> Any:
    with FakeLLM(script) as server:
        return reproduce(
            paper, data, judge="judge", api_base=server.api_base, max_attempts=1, **options
        )


def test_published_personas_are_judged_on_their_responses() -> None:
    found = measured("pi", tailored(), by_wish)
    overall = found.figures[0]
    assert (overall.published, overall.ours.value, overall.ours.n) == (0.91, 1.0, 3)
    assert "2501.11549" in overall.source
    assert any("1 rows with a response that was cut off" in one for one in found.differs)
    assert any("not the pairs from" in one for one in found.differs)
    text = str(found)
    assert re.search(r"^accuracy, all personas +0.91 +1.000 \[.*\] \(n = 3\)$", text, re.MULTILINE)
    assert re.search(r"^accuracy, chosen personas +none +1.000 ", text, re.MULTILINE)
    assert "Published:\n  - arXiv 2501.11549, results of persona inference" in text
    assert "What differs:" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_authors_columns_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in published()), encoding="utf-8")
    found = measured("pi", path, by_wish, limit=5)
    assert (found.figures[0].ours.value, found.figures[0].ours.n) == (1.0, 5)


def test_personas_that_are_not_there_are_inferred() -> None:
    with FakeLLM() as server:
        found = reproduce("pi", pairs(3), model="writer", judge="judge", api_base=server.api_base)
    assert found.figures[0].ours.n == 3
    assert any("personas by writer" in one for one in found.differs)
    with pytest.raises(InvalidArgumentError, match="no model is named"):
        reproduce("pi", pairs(3), judge="judge")


def test_published_responses_are_compared_with_generic_ones() -> None:
    found = measured("pt", tailored(), by_wish)
    values = {figure.name: figure.ours.value for figure in found.figures}
    assert values == {
        "100 ΔPQ, chosen (SFT published)": 100.0,
        "100 ΔPQ, chosen (DPO published)": 100.0,
        "100 ΔPQ, rejected": 100.0,
    }
    assert [figure.published for figure in found.figures] == [23.0, 41.6, None]


COLUMNS = [*_TAILORED.values(), "prompt", "generic_response", "chosen_persona", "rejected_persona"]


@pytest.mark.heavy
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("odd", ["missing", None, 5, {"a": 1}, "\ud800"], ids=repr)
def test_a_row_with_an_odd_or_missing_cell_costs_itself(odd: object, place: int) -> None:
    """Also with the judge by likelihood, which reads the rows before they are compared."""

    class ByLength(pi.Likelihood):
        def log_likelihood(self, prompts: Any, personas: Any, responses: Any, **how: Any) -> Any:
            assert all(isinstance(text, str) for text in (*prompts, *responses))
            return np.array(
                [len(f"{who}{said}") for who, said in zip(personas, responses, strict=True)]
            )

    def length(prompt: Any, first: str, second: str, persona: Any) -> int:
        return 1 if len(first) > len(second) else 2

    for judge in (LikelihoodJudge(ByLength(), progress=False), length):
        for column in COLUMNS:
            rows = tailored(3)
            rows[place][column] = odd
            if odd == "missing":
                del rows[place][column]
            figures, _ = _published_responses(rows, {"judge": judge, "progress": False})
            chosen, _, rejected = figures
            whole = {"chosen": 3, "rejected": 3}
            for side in whole:
                if column in ("prompt", "generic_response", f"{side}_persona", _TAILORED[side]):
                    whole[side] = 2
            assert (chosen.ours.n, rejected.ours.n) == (whole["chosen"], whole["rejected"]), column


def test_columns_that_the_first_row_lacks_are_found() -> None:
    rows = tailored(3)
    del rows[0]["generic_response"], rows[1]["chosen_persona"]
    found = measured("pt", rows, by_wish)
    assert [figure.ours.value for figure in found.figures] == [100.0] * 3
    del rows[0]["response_for_chosen_persona"]
    assert measured("pi", rows, by_wish).figures[0].ours.n == 2


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("mark", "left"),
    [("False", 2), ("no", 2), (0, 2), (None, 3), (float("nan"), 3), ("perhaps", 2)],
)
def test_marks_of_responses_that_were_cut_off_are_read_as_flags(mark: object, left: int) -> None:
    rows = [*tailored(2), {**tailored(3)[2], "complete": mark}]
    for paper in ("pi", "pt"):
        found = measured(paper, rows, by_wish)
        assert found.figures[0].ours.n == left
        said = "1 rows with a response that was cut off are left out"
        assert (said in found.differs) is (left == 2)


def test_lines_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ["{broken", '"a text"', *map(json.dumps, tailored(3)), "{broken"]
    path.write_text("\n".join(lines), encoding="utf-8")
    for paper in ("pi", "pt"):
        assert (
            measured(paper, path, by_wish)
            .differs[-1]
            .startswith("3 rows that cannot be read: line 1")
        )
        few = measured(paper, path, by_wish, limit=3)
        assert few.differs[-1].startswith("2 rows that cannot be read")


@pytest.mark.heavy
def test_a_judge_that_prefers_generic_responses_brings_a_loss() -> None:
    def generic(body: dict[str, Any]) -> dict[str, str]:
        text = body["messages"][-1]["content"]
        first = text.split("<response_1>", 1)[1].split("</response_1>", 1)[0]
        return {"answer": "1" if "Middle" in first else "2"}

    assert {one.ours.value for one in measured("pt", tailored(), generic).figures} == {-100.0}


def test_responses_that_are_not_there_are_written_by_the_model() -> None:
    def script(body: dict[str, Any]) -> Any:
        if body["model"] == "judge":
            text = body["messages"][-1]["content"].split("<response_1>", 1)[1]
            return {"answer": "1" if "somebody" in text.split("</response_1>", 1)[0] else "2"}
        said = body["messages"][-1]["content"]
        return f"for somebody {len(body['messages'])}" if "prefer" in said else "for nobody"

    found = measured("pt", published(), script, model="writer")
    assert [figure.published for figure in found.figures] == [46.3, 55.0]
    assert {figure.ours.n for figure in found.figures} == {4}
    assert any("5 worked examples" in one for one in found.differs)
    with pytest.raises(InvalidArgumentError, match="no model is named"):
        reproduce("pt", published(), judge="judge")


def test_the_budget_is_that_of_all_calls_together() -> None:
    taken: list[int] = []

    def script(body: dict[str, Any]) -> Reply:
        taken.append(100)
        said = {"answer": "1"} if body["model"] == "judge" else f"Text {len(taken)}"
        return Reply(said, completion_tokens=100)

    limits: dict[str, Any] = {"budget": 1500, "prices": (0, 1e6), "max_tokens": 100}
    with suppress(PersonaInferError):  # what is left does not pay for the judge
        measured("pt", published(), script, model="writer", cache=False, **limits)
    assert 1000 < sum(taken) <= 1500


@pytest.mark.heavy
def test_a_judge_of_another_provider_is_not_told_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeLLM() as writer, FakeLLM({"answer": "1"}) as judge:
        monkeypatch.setenv("OPENAI_BASE_URL", writer.api_base)
        monkeypatch.setenv("GROQ_API_BASE", judge.api_base)
        monkeypatch.setenv("GROQ_API_KEY", "own")
        told = {"api_key": "secret", "extra_headers": {"X-Secret": "secret"}}
        reproduce("pi", pairs(2), model="openai/w", judge="groq/j", cache=False, **told)  # type: ignore[arg-type]
        for server, is_told in ((writer, True), (judge, False)):
            sent = {text for headers in server.headers for text in headers.values()}
            assert (bool({"secret", "Bearer secret"} & sent), "Bearer own" in sent) == (
                is_told,
                not is_told,
            )


def test_personas_without_a_verdict_are_told_of() -> None:
    def script(body: dict[str, Any]) -> Any:
        away = body["model"] == "judge" and "Question 0?" in str(body["messages"][-1])
        return Fault.status(500) if away else {"answer": "1"} if body["model"] == "judge" else None

    found = measured("pi", pairs(3), script, model="writer", cache=False)
    assert "2 without a usable reply: the endpoint failed (500)" in str(found.differs)


def test_a_judge_that_cannot_be_called_is_an_error_before_the_model_is_paid() -> None:
    with FakeLLM() as server, pytest.raises(InvalidArgumentError):
        reproduce("pi", pairs(2), model="m", judge=" ", api_base=server.api_base, cache=False)
    assert server.calls == 0


@pytest.mark.heavy
def test_so_is_a_judge_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    with FakeLLM() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.api_base)
        with pytest.raises(AuthenticationError):
            reproduce("pi", pairs(2), model="openai/w", judge="groq/j", api_key="key", cache=False)
    assert server.calls == 0


@pytest.mark.heavy
def test_users_of_personal_llm_disagree() -> None:
    found = reproduce("personalllm", SMALL / "personalllm", limit=200)
    assert [figure.published for figure in found.figures] == [0.5, 0.6]
    assert all(0 <= figure.ours.value <= 1 for figure in found.figures)
    assert any("200 users" in one for one in found.differs)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "heterogeneity of simulated users: round numbers of the text" in " ".join(text.split())


@pytest.mark.heavy
def test_prefixes_of_famous_people_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScoringServer("vllm") as scores, FakeLLM() as server:
        scorer = pi.Likelihood("tiny", api_base=scores.api_base)
        monkeypatch.setattr(
            "personainfer.simulation.published_figures._likelihood", lambda judge: scorer
        )
        found = reproduce(
            "wikipersonas", SMALL / "famous_persona", model="writer", api_base=server.api_base
        )
    names = {figure.name for figure in found.figures}
    assert {"accuracy, none, divergent", "accuracy, persona, divergent"} <= names
    assert all("2505.13257" in figure.source for figure in found.figures)
    assert max(map(len, str(found).splitlines())) <= 80


@pytest.mark.heavy
def test_test_choices_that_are_in_training_in_other_words_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each would end the run, after its personas were paid for."""
    for split in ("train", "test"):
        text = (SMALL / "famous_persona" / f"{split}.jsonl").read_text()
        (tmp_path / f"{split}.jsonl").write_text(text)
    seen = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    other_case = {**seen, "prompt": f" {seen['prompt'].upper()}"}
    turned = {**seen, "chosen": seen["rejected"], "rejected": seen["chosen"]}
    with (tmp_path / "test.jsonl").open("a") as file:
        file.writelines(f"{json.dumps(row)}\n" for row in (seen, other_case, turned))
    with ScoringServer("vllm") as scores, FakeLLM() as server:
        scorer = pi.Likelihood("tiny", api_base=scores.api_base)
        monkeypatch.setattr(
            "personainfer.simulation.published_figures._likelihood", lambda judge: scorer
        )
        found = reproduce("wikipersonas", tmp_path, model="writer", api_base=server.api_base)
    assert "3 people, 15 choices" in found.differs


def test_progress_is_shown_as_asked_while_personas_of_people_are_inferred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def infer(history: object, model: str, **options: Any) -> None:
        asked.append(options["progress"])
        raise DataError("no persona.")

    monkeypatch.setattr("personainfer.simulation.published_figures.infer_user_personas", infer)
    with pytest.raises(DataError, match="no persona"):
        reproduce("wikipersonas", SMALL / "famous_persona", model="writer", progress=False)
    assert asked == [False]


@pytest.mark.heavy
def test_a_likelihood_judges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScoringServer("vllm") as scores:
        scorer = pi.Likelihood("tiny", api_base=scores.api_base)
        monkeypatch.setattr(
            "personainfer.simulation.published_figures._likelihood", lambda judge: scorer
        )
        for paper in ("pi", "pt"):
            found = reproduce(paper, tailored())
            assert found.figures[0].ours.n == 3
            assert "likelihood of tiny" in found.differs[0]


def test_a_judge_by_likelihood_scores_each_text_once() -> None:
    """It is asked twice for quality and twice for each persona; scoring is what takes long."""

    class Counted(pi.Likelihood):
        rows: ClassVar[list[Any]] = []

        def log_likelihood(self, prompts: Any, personas: Any, responses: Any, **how: Any) -> Any:
            self.rows.extend(zip(prompts, personas, responses, strict=True))
            return np.array([-len(said) for said in responses], dtype=float)

    judge = LikelihoodJudge(Counted(), progress=False)
    judge.read(["Tea?"], [SHORT], ["Yes."], ["Of course."])
    assert len(Counted.rows) == 4
    found = pi.compare_responses(
        ["Tea?"], ["Of course."], ["Yes."], judge, personas=[SHORT], progress=False
    )
    assert len(Counted.rows) == 4
    assert found.columns["quality"] == ["test"]  # the likelier one
    assert found.columns["personalization"] == ["tie"]  # the persona lifts neither


def test_a_response_without_a_score_has_no_verdict() -> None:
    class Silent(pi.Likelihood):
        def log_likelihood(self, prompts: Any, personas: Any, responses: Any, **how: Any) -> Any:
            return np.array([np.nan for _ in responses])

    assert LikelihoodJudge(Silent(), progress=False)("Tea?", "Yes.", "No.", None) is None


@pytest.mark.parametrize(
    ("paper", "data", "options", "words"),
    [
        ("x", [], {}, "paper="),
        ("pi", [], {"limit": 0}, "limit=0"),
        ("pi", [], {"judge": 5}, "judge=5"),
        ("pi", [], {"judge": "judge"}, "no rows"),
        ("pi", "folder", {"judge": "judge"}, "not a file that is read"),
        ("pt", [{"prompt": "q", "chosen": "a", "rejected": "b"}], {"judge": "judge"}, "neither"),
        ("wikipersonas", "x", {"judge": "judge"}, "needs a model"),
    ],
)
def test_what_cannot_be_reproduced_is_refused(
    paper: Any, data: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises((InvalidArgumentError, DataError), match=words):
        reproduce(paper, data, **options)


def test_an_option_that_does_not_exist_is_refused_for_each_paper() -> None:
    for paper, data in (("pi", tailored()), ("personalllm", SMALL / "personalllm")):
        with pytest.raises(UnknownOptionError, match="Did you mean temperature="):
            reproduce(paper, data, temperatur=1.0)  # type: ignore[arg-type, call-arg]


@pytest.mark.parametrize(
    ("paper", "data"), [("pi", tailored()), ("pt", tailored()), ("personalllm", SMALL)]
)
def test_options_that_no_model_takes_are_refused(paper: Any, data: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="none is called here") as caught:
        reproduce(
            paper, data, judge="likelihood:local:smollm2", budget=1.0, api_key="of-the-environment"
        )
    assert caught.value.argument == "budget"


def test_a_model_that_writes_no_persona_is_the_error(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(3)), encoding="utf-8")
    with FakeLLM(Fault.status(400)) as server:
        command = ["reproduce", "pi", "--data", str(path), "-m", "writer", "--judge", "judge"]
        ended = CliRunner().invoke(app, [*command, "--api-base", server.api_base])
    assert (ended.exit_code, "3 rows without a persona: the endpoint" in ended.stderr) == (4, True)


def test_what_failed_is_told_and_is_exit_code_3(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in published()), encoding="utf-8")

    def failing(body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        is_judge = "<response_1>" in text
        wrong = "Question 3?" in text if is_judge else text.startswith("Question 5?")
        return Fault.status(400) if wrong else {"answer": "1"} if is_judge else text[-40:]

    with FakeLLM(failing) as server:
        command = ["reproduce", "pt", "--data", str(path), "-m", "writer", "--judge", "judge"]
        done = CliRunner().invoke(app, [*command, "--api-base", server.api_base, "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["failed"]) == (3, 7)
    assert any(
        one.startswith("3 responses that were not written: the endpoint")
        for one in found["differs"]
    )
    assert any(
        one.startswith("4 verdicts without a usable reply: the endpoint")
        for one in found["differs"]
    )


def test_the_command_prints_what_the_function_found(tmp_path: Path) -> None:
    path = tmp_path / "tailored.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tailored()), encoding="utf-8")
    with FakeLLM(by_wish) as server:
        line = ["reproduce", "pi", "--data", str(path), "--judge", "judge"]
        line += ["--api-base", server.api_base, "--no-progress"]
        said = CliRunner().invoke(app, line)
        machine = CliRunner().invoke(app, [*line, "--json"])
    assert (said.exit_code, machine.exit_code) == (0, 0)
    assert "arXiv 2501.11549" in said.stdout
    assert json.loads(machine.stdout)["figures"][0]["ours"]["value"] == 1.0
