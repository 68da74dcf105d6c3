"""Parts of `calibration.py`: evaluation, attribution and simulation of users."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from calibration_evaluation import Finding, covers

sys.path.insert(0, str(Path(__file__).parents[1]))
import personainfer as pi
from personainfer.exceptions import DataError
from personainfer.records import Message, Persona
from personainfer.scoring.choice_models import LongerWins
from personainfer.simulation import RewardMatrix, SimulatedUsers, score_responses, votes
from personainfer.simulation.heterogeneity import Votes, entropy_by_word
from personainfer.simulation.user_responses import UserResponse
from personainfer.tailoring import reward_accuracy
from personainfer.users.attribution import attribute_prefix
from personainfer.users.hypotheses import UserAtWork, explains_of, predicting
from personainfer.users.predictors import Case, Predictions
from personainfer.users.records import Hypothesis
from tests.audit_world import World, read

PHI = NormalDist().cdf
MEANS = {"own": 0.4, "bare": 0.1, "other": 0.2, "untuned": 0.0}  # of the users' margins
SPREAD = 0.6  # of the users around these means


# evaluate_prefixes


def drawn_users(random: np.random.Generator, users: int) -> dict[str, Any]:
    """Margins of users' choices with each prefix; users differ in how well they are predicted."""
    counts = random.integers(5, 16, size=users)
    place = np.repeat(np.arange(users), counts)
    ability = random.normal(size=users)
    drawn: dict[str, Any] = {"user": place}
    for name, mean in MEANS.items():
        of_user = mean + SPREAD * (0.6 * ability + 0.8 * random.normal(size=users))
        drawn[name] = of_user[place] + random.normal(size=len(place))
    return drawn


def accuracy(name: str) -> float:
    """The share of choices that are predicted, over all users that there could be."""
    return PHI(MEANS[name] / (1 + SPREAD**2) ** 0.5)


def baseline_correlation() -> float:
    """Pearson's r of users' accuracies, over very many users."""
    drawn = drawn_users(np.random.default_rng(99), 400_000)
    counts = np.bincount(drawn["user"])
    means = [np.bincount(drawn["user"], drawn[name] > 0) / counts for name in ("own", "untuned")]
    return float(np.corrcoef(*means)[0, 1])


def evaluation(seed: int, correlation: float) -> Iterator[Finding]:
    random = np.random.default_rng([1, seed])
    users = 40
    drawn = drawn_users(random, users)
    data = [
        {"user_id": f"u{user}", "id": str(n), "prompt": str(n), "chosen": "c", "rejected": "r"}
        for n, user in enumerate(drawn["user"])
    ]
    for row in data:
        row |= {"chosen": f"c{row['id']}", "rejected": f"r{row['id']}"}
    said = {f"u{user}": f"u{user}" for user in range(users)}
    persona = pi.persona_prefix("persona", personas=said)
    texts = {persona.text(user, ""): user for user in said}

    def scorer(tuned: bool) -> Any:
        def score(chats: Sequence[Sequence[Message]], responses: Sequence[str]) -> list[float]:
            scores = []
            for chat, response in zip(chats, responses, strict=True):
                choice = int(chat[-1].content)
                mine = f"u{drawn['user'][choice]}"
                of = texts.get(chat[0].content)
                name = "bare" if of is None else "own" if of == mine else "other"
                margin = drawn[name if tuned else "untuned"][choice]
                scores.append(margin if response.startswith("c") else 0.0)
            return scores

        return score

    group = {user: random.choice(["a", "b", "c"]) for user in said}
    found = pi.evaluate_prefixes(
        {"persona": persona},
        data,
        scorer(True),
        untuned=scorer(False),
        groups={"group": group},
        questions={row["id"]: random.choice(["x", "y"]) for row in data},
        draw_seed=seed,
    )
    one = found.prefixes["persona"]
    name = "evaluate_prefixes"
    own, bare, other, untuned = map(accuracy, MEANS)
    yield covers(f"{name}: accuracy", one.accuracy, own)
    yield covers(f"{name}: questions", one.questions["x"], own)
    yield covers(f"{name}: gain", one.gain, own - bare)
    yield covers(f"{name}: shuffled", one.shuffled, other)
    yield covers(f"{name}: own_gain", one.own_gain, own - other)
    yield covers(f"{name}: over_untuned", one.over_untuned, own - untuned)
    yield covers(f"{name}: with_baseline", one.with_baseline, correlation)
    for equity in found.equity:
        if equity.prefix == "persona":
            what = f"{name}: equity, {equity.measure}, p"
            yield Finding(what, "rejection under the null", equity.p < 0.05)
    group_a = found.equity[-1].groups["a"]
    yield covers(f"{name}: equity, a group's mean", group_a, own - untuned)
    any_group = any(equity.adjusted_p < 0.05 for equity in found.equity)
    yield Finding(f"{name}: equity, any adjusted_p", "rejection under the null", any_group)


# attribute_prefix


def attribution(seed: int) -> Iterator[Finding]:
    """The margin is the sum of its sentences' noise, drawn for each choice: none of them does anything."""
    random = np.random.default_rng([2, seed])
    users, each, sentences = 30, 4, 4
    noise = random.normal(size=(users * each, sentences))
    base = random.normal(size=(users * each, 1))
    choices = [
        pi.Preference(prompt=str(n), chosen="c", rejected="r", user=f"u{n // each}", id=str(n))
        for n in range(users * each)
    ]

    def predict(cases: Sequence[Case]) -> Predictions:
        there = [[f"Idle {n}." in case.prefix for n in range(sentences)] for case in cases]
        rows = [int(case.choice.id or 0) for case in cases]
        return Predictions.of((noise[rows] * np.array(there)).sum(axis=1) + base[rows, 0])

    said = " ".join(f"Idle {n}." for n in range(sentences))
    prefix = pi.persona_prefix("persona", personas={f"u{n}": said for n in range(users)})
    found = attribute_prefix("p", prefix, choices, predict, limit=None, seed=seed)
    for place in found.places[:1]:
        yield Finding("attribute_prefix: p", "rejection under the null", place.p < 0.05)
        yield covers("attribute_prefix: difference", place.difference, 0.0)
        yield covers("attribute_prefix: right", place.right, 0.0)
        yield covers("attribute_prefix: wrong", place.wrong, 0.0)
    any_place = any(place.adjusted_p < 0.05 for place in found.places)
    yield Finding("attribute_prefix: any adjusted_p", "rejection under the null", any_place)


# infer_user_personas, method="posterior"


def posterior(seed: int) -> Iterator[Finding]:
    """Two choices, two explanations; one is better on average, and either may come first."""
    random = np.random.default_rng([3, seed])
    better = int(random.integers(2))
    for name, means in (("one explains", (0.5, -0.5)), ("nothing explains", (-2.0, -2.0))):
        one = UserAtWork("u")
        for n in range(2):
            one.add(pi.Preference(prompt=str(n), chosen="c", rejected="r", id=str(n)), n)
        for n in range(2):
            score = random.normal(means[0] if n == better else means[1], 0.5)
            persona = Persona(trait=f"kind {n}", preference="answers")
            scores = ((str(1 - n), float(score)),)
            one.hypotheses.append(Hypothesis(pair=str(n), persona=persona, scores=scores))
        kept = predicting(one)
        what = f"posterior of two choices, {name}"
        if isinstance(kept, str):
            yield Finding(what, "an error", True)
            continue
        yield Finding(what, "an error", False)
        best = pi.PersonaPosterior([h.persona for h in one.hypotheses]).update(explains_of(one))
        first = max(kept, key=lambda n: best.probabilities[n])
        if name == "one explains":
            yield Finding(f"{what}: the better one is kept", "share", first == better)


# score_responses

MODELS = ("a", "b", "c", "d")
_FIXED = np.random.default_rng(7).normal(size=(12, 3, len(MODELS)))
_GIVEN = np.random.default_rng(8).normal(size=(3, 12, len(MODELS)))  # two baselines, the reference


def response_truth() -> tuple[list[float], float]:
    """Mean rewards of both baselines and the second one's win rate, over very many users."""
    scale = RewardMatrix(_FIXED, models=MODELS)
    zscores = [scale.like(one[:, None, :]).zscores[:, 0] for one in _GIVEN]
    weights = SimulatedUsers.sample(400_000, models=MODELS, alpha=0.5, seed=10**6).weights
    rewards = [float((weights @ z.T).mean()) for z in zscores[:2]]
    return rewards, float(((weights @ (zscores[1] - zscores[2]).T) > 0).mean())


def responses(seed: int, truth: tuple[list[float], float]) -> Iterator[Finding]:
    scale = RewardMatrix(_FIXED, models=MODELS)
    users = SimulatedUsers.sample(40, models=MODELS, alpha=0.5, seed=seed)
    prompts = [str(n) for n in range(12)]
    rows = [
        UserResponse(baseline=str(which), user=user, prompt=n, response=str(which))
        for which in range(2)
        for user in users.names
        for n in range(12)
    ]

    def scorer(model: int) -> Any:
        return lambda asked, said: [
            _GIVEN[int(b), int(p), model] for p, b in zip(asked, said, strict=True)
        ]

    found = score_responses(
        rows,
        users,
        scale,
        {name: scorer(n) for n, name in enumerate(MODELS)},
        prompts=prompts,
        reference=["2"] * 12,
    )
    rewards, wins = truth
    second = found.baselines["1"]
    yield covers("score_responses: reward", second.reward, rewards[1])
    yield covers("score_responses: gain", second.gain, rewards[1] - rewards[0])
    yield covers("score_responses: win_rate", second.win_rate, wins)


# votes, entropy_by_word, feature_regression

_VOTERS = SimulatedUsers.sample(30, models=MODELS, alpha=0.3, seed=9)
_WORDS = ("tea", "rain", "fish")


def voted(random: np.random.Generator, prompts: int) -> Votes:
    """The votes of fixed users on three responses to each of some prompts."""
    scale = RewardMatrix(_FIXED, models=MODELS)
    shared = 0.8 * random.normal(size=(prompts, 3, 1))  # what all models see alike
    drawn = scale.like(shared + random.normal(size=(prompts, 3, len(MODELS))))
    return votes(_VOTERS.choose(drawn), 3)


def voting() -> Callable[[int], Iterator[Finding]]:
    truth = voted(np.random.default_rng(40), 100_000)
    values = (truth.top_share, truth.top_share > 0.5, truth.winners, truth.entropy)
    means = [float(one.mean()) for one in values]

    def part(seed: int) -> Iterator[Finding]:
        random = np.random.default_rng([41, seed])
        found = voted(random, 60)
        for (name, estimate), mean in zip(found.summary().items(), means, strict=True):
            yield covers(f"votes: {name}", estimate, mean)
        prompts = [str(random.choice(_WORDS)) for _ in range(60)]
        [first, *_] = sorted(entropy_by_word(found, prompts, floor=1), key=lambda one: one.word)
        yield covers("entropy_by_word", first.entropy, means[-1])

    return part


# reward_accuracy


def rewarded(seed: int) -> Iterator[Finding]:
    """Two pairs a prompt, whose rewards have the prompt's difficulty in common."""
    random = np.random.default_rng([42, seed])
    prompts = np.repeat(np.arange(40), 2)
    margins = 0.5 + 0.6 * random.normal(size=40)[prompts] + 0.8 * random.normal(size=80)
    found = reward_accuracy(margins, np.zeros(80), [f"Question {n}?" for n in prompts])
    yield covers("reward_accuracy", found, PHI(0.5))


def evaluating() -> Callable[[int], Iterator[Finding]]:
    correlation = baseline_correlation()
    return lambda seed: evaluation(seed, correlation)


def responding() -> Callable[[int], Iterator[Finding]]:
    truth = response_truth()
    return lambda seed: responses(seed, truth)


# audit_personas

AUDITS = {
    "knows its user": ("knows", {}),
    "knows people in general": ("people in general", {}),
    "no better than length": ("longer", {"longer": 0.3}),
    "no better than length (each user's own)": ("own length", {"own_length": 0.5}),
    "no better than none": ("nothing", {}),
}


def audits(seed: int) -> Iterator[Finding]:
    """Whether the verdict is what the personas know, and whether intervals hold the truth of no effect."""
    for truth, (kind, tastes) in AUDITS.items():
        # That a difference is small takes more choices than that it is large.
        users, each = (60, 60) if kind == "nothing" else (50, 40)
        world = World(1000 + seed, users=users, choices=each, **tastes)
        found = pi.audit_personas(
            world.personas(kind), world.choices, read, baselines=("longer", "majority")
        )
        name = f"audit_personas: {truth}"
        yield Finding(name, "right verdict", found.verdict == truth.partition(" (")[0])
        yield Finding(name, "cannot tell", found.verdict.startswith("cannot tell"))
    world = World(1000 + seed, users=20, choices=20)
    personas, rows = world.personas_with_evidence(1)
    try:
        pi.audit_personas(personas, rows, read, baselines=("longer",))
    except DataError:
        refused = True
    else:
        refused = False
    yield Finding("audit_personas: made from the held-out choices", "refused", refused)


class Kindness:
    """Predicts the response that is kindly."""

    def fit(self, choices: Sequence[pi.Preference]) -> Kindness:
        return self

    def predict(self, choices: Sequence[pi.Preference]) -> Any:
        return np.array([("kindly" in c.chosen) - float("kindly" in c.rejected) for c in choices])


RULES = {"longer": LongerWins(), "kind": Kindness()}  # which depend on no other choices


def audited(kind: Any, seed: int, users: int) -> pi.PersonaAudit:
    world = World(seed, users=users, choices=20, longer=0.1)
    earlier = [pi.Preference(prompt="-", chosen="a", rejected="b", user="u0")]  # rules need none
    return pi.audit_personas(
        world.personas(kind), world.choices, read, baselines=RULES, history=earlier
    )


def expected(kind: Any, users: int = 12_000) -> dict[str, float]:
    """What an audit of very many users would find, without intervals; strangers are the next users."""
    world = World(10**6, users=users, choices=20, longer=0.1)
    personas = world.personas(kind)
    following = dict(zip(world.users, [*world.users[1:], world.users[0]], strict=True))
    pairs = [text for c in world.choices for text in (c.chosen, c.rejected)]

    def accuracy(of: Callable[[str], str]) -> float:
        said = pi.persona_prefix("persona", personas=personas)
        heads = {user: said.messages(of(user), "?") for user in world.users}
        scores = read([heads[c.user or ""] for c in world.choices for _ in range(2)], pairs)
        return float((np.sign(scores[::2] - scores[1::2]) + 1).mean() / 2)

    own, shuffled = accuracy(lambda user: user), accuracy(lambda user: following[user])
    best = max(
        float((np.sign(rule.predict(world.choices)) + 1).mean() / 2) for rule in RULES.values()
    )
    return {
        "own": own,
        "own_minus_shuffled": own - shuffled if kind == "knows" else 0.0,
        "own_minus_best_baseline": own - best,
    }


def intervals() -> Callable[[int], Iterator[Finding]]:
    """Whether the intervals of an audit of 40 users hold what an audit of very many finds."""
    truth = {kind: expected(kind) for kind in ("knows", "people in general")}

    def part(seed: int) -> Iterator[Finding]:
        for kind, values in truth.items():
            found = audited(kind, 2000 + seed, 40)
            for name, value in values.items():
                yield covers(f"audit_personas, {kind}: {name}", getattr(found, name), value)

    return part


# What is simulated, by name: -> (seed -> findings).
PARTS: dict[str, Callable[[], Callable[[int], Iterator[Finding]]]] = {
    "evaluate_prefixes": evaluating,
    "attribution": lambda: attribution,
    "posterior": lambda: posterior,
    "responses": responding,
    "votes": voting,
    "reward_accuracy": lambda: rewarded,
    "audits": lambda: audits,
    "audit intervals": intervals,
}
