"""What `print` shows of each result: no name or reason in it acts on a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import personainfer as pi
from personainfer.evaluation.benchmark import ModelBenchmark
from personainfer.evaluation.human import HumanRatings
from personainfer.evaluation.results import Findings
from personainfer.evaluation.salience import SalientWord
from personainfer.evaluation.statistics import Estimate
from personainfer.simulation.heterogeneity import FeatureRegression
from personainfer.simulation.published_figures import Figure, Reproduction
from personainfer.simulation.user_responses import BaselineScore, BaselineScores
from personainfer.tailoring.export import Export
from personainfer.users import UserPersonas
from personainfer.users.audit_verdict import PersonaAudit
from personainfer.users.results import PrefixEvaluation

from .audit_world import World
from .builders import table

BAD = "a\x1b[31mb\u202ec\x07"
SOME = Estimate(0.5, 0.4, 0.6, 10)

_SHOWS = "\n    def __str__"


class Told(Findings):
    """Any result of a judge: all of them have this class's text."""

    def grid(self) -> list[tuple[str, ...]]:
        return [("", BAD), (BAD, "1")]


def audited() -> PersonaAudit:
    world = World(0, users=4, choices=6)
    people = {user: f"{text} {BAD}" for user, text in world.personas("knows").items()}
    groups = {BAD: {user: f"{n % 2}{BAD}" for n, user in enumerate(people)}}
    return pi.audit_personas(
        people,
        world.choices,
        lambda asked, said: [float(len(text)) for text in said],
        baselines=["longer"],
        groups=groups,
    )


def evaluated() -> PrefixEvaluation:
    world = World(0, users=4, choices=6)
    prefix = pi.persona_prefix("persona", personas=world.personas("knows"))
    groups = {BAD: {user: f"{n % 2}{BAD}" for n, user in enumerate(world.users)}}
    return pi.evaluate_prefixes(
        {BAD: prefix},
        world.choices,
        lambda asked, said: [float(len(text)) for text in said],
        groups=groups,
    )


RESULTS: dict[str, Callable[[], object]] = {
    "BaselineScores": lambda: BaselineScores(
        {BAD: BaselineScore(reward=SOME, win_rate=SOME, gain=SOME, failed=0)},
        SOME,
        cells=(),
        utilities={},
    ),
    "Export": lambda: Export({BAD: Path(BAD)}, Path(BAD), {BAD: 1}, {BAD: 1}, 0),
    "FeatureRegression": lambda: FeatureRegression((BAD,), np.ones((3, 1)), np.ones(3)),
    "Findings": lambda: Told(
        judge=BAD, skipped=0, failed=1, problems={BAD: 1}, notes=(BAD,), usage=pi.Usage()
    ),
    "HumanRatings": lambda: HumanRatings(
        question="choice",
        raters=(BAD,),
        means={BAD: {BAD: SOME}},
        agreement={BAD: SOME},
        kappas={(BAD, BAD): SOME},
        judge=None,
        judge_kappa=None,
        problems=(BAD,),
        values={},
    ),
    "ModelBenchmark": lambda: ModelBenchmark(
        model=BAD,
        shares={BAD: SOME},
        seconds=None,
        failed=0,
        usage=pi.Usage(),
        notes=(BAD,),
        table=table(),
    ),
    "PersonaAudit": audited,
    "PersonaTable": lambda: pi.PersonaTable.from_data(
        [{"prompt": BAD, "chosen": BAD, "rejected": "b", "chosen_persona": f"{BAD} is calm"}],
        rejected_persona=None,
    ),
    "PrefixEvaluation": evaluated,
    "Reproduction": lambda: Reproduction("pi", (Figure(BAD, 0.5, BAD, SOME),), (BAD,)),
    "SalientWord": lambda: SalientWord(BAD, "chosen", 1, 0, SOME, SOME, 1.0, 0.5, 0.5),
    "UserPersonas": lambda: UserPersonas((), skipped={BAD: 1}),
}
# Numbers alone; a path and numbers; and what is text itself, which goes into requests and files.
OTHERS = {
    "Estimate",
    "WinRate",
    "Votes",
    "PersonaBatch",
    "Persona",
    "UserPersona",
}


@pytest.mark.parametrize("name", RESULTS)
def test_no_name_in_a_result_acts_on_a_terminal(name: str) -> None:
    shown = str(RESULTS[name]())
    assert ascii(BAD)[1:-1] in shown
    assert not {"\x1b", "\u202e", "\x07"} & set(shown)


def test_every_class_that_is_printed_is_known() -> None:
    found: set[str] = set()
    for path in Path(str(pi.__file__)).parent.rglob("*.py"):
        _, *classes = re.split(r"^class ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        found |= {each.partition("(")[0].partition(":")[0] for each in classes if _SHOWS in each}
    assert found == {*RESULTS, *OTHERS}
