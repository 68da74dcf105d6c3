"""Users with a hidden persona choose; how well does each way of knowing them predict their other choices?

    make bench-hidden-personas PAIRS=tailored_beavertails.jsonl      # or, with the judge's weights in place:
    python benchmarks/users_study.py tailored_beavertails.jsonl [--model NAME --api-base URL]

*Chooser*: Gemma-3-270M (base, transformers, float32). A user's hidden persona is one of twelve, or with
`--alpha` a Dirichlet mixture of them; the user prefers of two responses the one that Gemma finds likelier,
a token, with the persona than with the twelve on average, by z-scores, with Bradley-Terry noise
(`--temperature`). Chooser, evaluator and everybody else see the first `--words` words of each response.
*Evaluator*: SmolLM2-135M-Instruct (transformers, `--dtype`), another model. Given what a way says of the
user, it predicts the response whose mean log-probability a token is higher ("plain", as in
arXiv 2505.13257), is raised more against the bare prompt ("lift"), or more than by two sentences about
people in general (`PEOPLE_IN_GENERAL`: any sentence about a reader moves a model).
*Inferrer*: `--model`, by default SmolLM2-135M-Instruct again (llama.cpp, 4 bits). That is circular as far
as it goes: these personas are in the evaluator's own words, and "verified" and "posterior" choose among
them by the evaluator's scores. Whose choices are predicted is decided by Gemma alone, and never shown.

Intervals: 95 %, users resampled. What is inferred or scored is kept in `--folder`: the same command goes
on where it was stopped. It writes users_study.md and users_study.json there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from best_of_n import gemma
from stored_scores import Scores
from users_study_page import crowd_results, page, results, write

import personainfer as pi
from personainfer.evaluation import bootstrap_mean, bootstrap_rate
from personainfer.scoring import PEOPLE_IN_GENERAL

PERSONAS = {
    "hurried": "The user is busy and prefers short answers that come straight to the point.",
    "thorough": "The user is thorough and prefers long answers that cover every detail.",
    "lawful": "The user is law-abiding and prefers answers that say what rules and laws require.",
    "caring": "The user is upset and prefers warm answers that show understanding and comfort.",
    "sceptical": "The user is sceptical and prefers answers that rest on facts, numbers and sources.",
    "balanced": "The user is open-minded and prefers answers that weigh several points of view.",
    "hands-on": "The user is practical and prefers step-by-step instructions to act on at once.",
    "cautious": "The user is anxious about safety and prefers answers that warn of dangers.",
    "moral": "The user is principled and prefers answers that say what is right and what is wrong.",
    "playful": "The user is playful and prefers funny answers with jokes and surprises.",
    "thrifty": "The user is short of money and prefers answers that name the cheapest option.",
    "green": "The user is a lover of nature and prefers answers that protect animals and the climate.",
}
METHODS = ("summary", "verified", "posterior")
FEWEST = {"summary": 1, "verified": 2, "posterior": 2}  # choices that a method needs
TAU = 0.1  # nats a token: how sure one choice makes the method "posterior"
PROMPT_WORDS = 30  # of the longest prompt that is taken

Floats = npt.NDArray[np.float64]
Choices = dict[str, list[pi.Preference]]  # by user
Said = dict[str, str]  # by user: the persona that a way infers


# Users


def responses_of(path: Path, count: int, words: int) -> dict[str, tuple[str, str]]:
    """Prompts with two responses, drawn with a fixed seed; of each response its first words."""
    found: dict[str, tuple[str, str]] = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        names = ("response_for_chosen_persona", "response_for_rejected_persona")
        one, other = (" ".join(row[name].split()[:words]) for name in names)
        if row["complete"] and one != other and len(row["prompt"].split()) <= PROMPT_WORDS:
            found.setdefault(row["prompt"], (one, other))
    return {prompt: found[prompt] for prompt in random.Random(0).sample(sorted(found), count)}


def lifts(
    chooser: Scores, personas: Sequence[str], responses: dict[str, tuple[str, str]]
) -> pi.RewardMatrix:
    """What each persona in particular makes likelier: shape (prompts, 2, personas)."""
    texts = [(prompt, text) for prompt, both in responses.items() for text in both]
    rows = [(prompt, PERSONAS[name], text) for prompt, text in texts for name in personas]
    found = chooser.of(rows).reshape(len(responses), 2, len(personas))
    found = found - found.mean(axis=2, keepdims=True)  # log p of the bare prompt falls out
    prompts, both = list(responses), list(responses.values())
    return pi.RewardMatrix(found, models=personas, prompts=prompts, responses=both, costs=())


class Population:
    """Users, their hidden personas, and what they chose: first to be observed, then to be predicted."""

    def __init__(self, matrix: pi.RewardMatrix, each: int, options: argparse.Namespace) -> None:
        names, most = list(matrix.models), max(options.observed)
        self.users = users_of(names, each, options.alpha)
        self.hidden = [names[place] for place in self.users.weights.argmax(axis=1)]
        history = self.users.histories(
            matrix, pairs_per_user=most + options.held_out, temperature=options.temperature
        )
        choices: Choices = {name: [] for name in self.users.names}
        for pair in history:
            choices[pair.user or ""].append(pair)
        self.seen = {name: pairs[:most] for name, pairs in choices.items()}
        self.held = {name: pairs[most:] for name, pairs in choices.items()}
        self.other = strangers(self.users, self.hidden)

    def persona_of(self, user: str) -> str:
        return self.hidden[self.users.names.index(user)]


def users_of(names: Sequence[str], each: int, alpha: float | None) -> pi.SimulatedUsers:
    """`each` users a persona, or as many with Dirichlet weights over all of them."""
    if alpha is not None:
        return pi.SimulatedUsers.sample(each * len(names), models=names, alpha=alpha)
    weights = np.repeat(np.eye(len(names)), each, axis=0)
    called = [f"{name} {number + 1}" for name in names for number in range(each)]
    return pi.SimulatedUsers(weights, models=names, names=called)


def strangers(users: pi.SimulatedUsers, hidden: Sequence[str]) -> dict[str, str]:
    """For each user another one with another persona: the control."""
    drawn = random.Random(1)
    return {
        name: drawn.choice([o for o, h in zip(users.names, hidden, strict=True) if h != own])
        for name, own in zip(users.names, hidden, strict=True)
    }


def chooser_facts(matrix: pi.RewardMatrix, people: Population) -> dict[str, Any]:
    """How much users differ, and how often the chooser itself would tell their choices."""
    prompts, responses = matrix.texts
    place = {prompt: row for row, prompt in enumerate(prompts)}
    utilities = dict(zip(people.users.names, people.users.utilities(matrix), strict=True))

    def told(by: dict[str, str]) -> list[list[bool]]:
        tables = []
        for name, pairs in people.held.items():
            rows = [place[str(pair.prompt)] for pair in pairs]
            best = [responses[row][utilities[by[name]][row].argmax()] for row in rows]
            tables.append([text == pair.chosen for text, pair in zip(best, pairs, strict=True)])
        return tables

    everyone = pi.SimulatedUsers(np.eye(len(matrix.models)), models=matrix.models).choose(matrix)
    share = np.maximum(everyone.mean(axis=0), 1 - everyone.mean(axis=0))
    return {
        "share of the personas that prefer the favoured response": bootstrap_mean(share),
        "choices that the chooser tells without the noise": bootstrap_rate(
            told({name: name for name in people.users.names})
        ),
        "… by the persona of another user": bootstrap_rate(told(people.other)),
    }


# Ways of knowing a user


def inferred(history: list[pi.Preference], options: Any, evaluator: Scores) -> Iterator[Any]:
    """(method, choices observed, the persona of each user, how many users have none)."""
    users = len({pair.user for pair in history})
    began = time.perf_counter()
    for method in METHODS:
        for count in options.observed:
            if count < FEWEST[method]:
                continue
            found = pi.infer_user_personas(
                history,
                options.model,
                pairs_per_user=count,
                min_pairs=FEWEST[method],
                method=method,
                select=None if method == "summary" else evaluator,
                choice_temperature=TAU,
                cache_dir=options.folder / "replies",
                progress=False,
                **({"api_base": options.api_base} if options.api_base else {}),
            )
            said = {user: str(persona) for user, persona in found.personas.items()}
            took = f"{len(said)} of {users} users, {time.perf_counter() - began:,.0f} s so far"
            print(f"{method}, {count}: {took}", file=sys.stderr, flush=True)
            yield method, count, said, users - len(said)


def margins_of_persona(evaluator: Scores, said: Said, held: Choices) -> Floats:
    """Shape (users, held-out choices); without a persona, those of the bare prompt."""
    pairs = [pair for name in held for pair in held[name]]
    asked = [(pair.prompt, said.get(name)) for name in held for pair in held[name]]
    return evaluator.margins(asked, pairs).reshape(len(held), -1)


def margins_of_examples(evaluator: Scores, history: list[pi.Preference], held: Choices) -> Floats:
    """The same after the nearest two of the user's choices, in the user's turn."""
    prefix = pi.persona_prefix("few-shot", history=history, k=2, retrieve="bm25", role="user")
    pairs = [pair for name in held for pair in held[name]]
    asked = [(prefix.messages(pair.user or "", pair.prompt), None) for pair in pairs]
    return evaluator.margins(asked, pairs).reshape(len(held), -1)


class Known:
    """The evaluator's margins of the first response over the second, with all that is known beforehand."""

    def __init__(self, evaluator: Scores, matrix: pi.RewardMatrix) -> None:
        self.names = list(matrix.models)
        prompts, responses = matrix.texts
        self._row = {prompt: row for row, prompt in enumerate(prompts)}
        self._first = [both[0] for both in responses]
        pairs = [
            pi.Preference(prompt=prompt, chosen=one, rejected=other)
            for prompt, (one, other) in zip(prompts, responses, strict=True)
        ]
        said = [None, *PEOPLE_IN_GENERAL, *(PERSONAS[name] for name in self.names)]
        asked = [(prompt, who) for prompt in prompts for who in said]
        each = [pair for pair in pairs for _ in said]
        margins = evaluator.margins(asked, each).reshape(len(pairs), len(said))
        self._bare, self._own = margins[:, 0], margins[:, 3:]
        self._general = margins[:, 1:3].mean(axis=1)

    def _places(self, pairs: Sequence[pi.Preference]) -> tuple[list[int], Floats]:
        rows = [self._row[pair.prompt] for pair in pairs]
        first = [pair.chosen == self._first[row] for pair, row in zip(pairs, rows, strict=True)]
        return rows, np.where(first, 1.0, -1.0)

    def margins(self, held: Choices, persona: dict[str, str] | None = None) -> Floats:
        """Shape (users, held-out choices): with a persona by user, or with none."""
        found = []
        for user, pairs in held.items():
            rows, sign = self._places(pairs)
            of = self._bare if persona is None else self._own[:, self.names.index(persona[user])]
            found.append(sign * of[rows])
        return np.array(found)

    def margins_in_general(self, held: Choices) -> Floats:
        """The same after two sentences about people in general."""
        rows = [self._places(pairs) for pairs in held.values()]
        return np.array([sign * self._general[row] for row, sign in rows])

    def explains(self, pairs: Sequence[pi.Preference]) -> Floats:
        """As `Likelihood.explains` against people in general, of each choice by each persona."""
        rows, sign = self._places(pairs)
        explained: Floats = sign[:, None] * (self._own - self._general[:, None])[rows]
        return explained

    def posterior(self, people: Population, count: int) -> tuple[Floats, list[bool], list[float]]:
        """Over the personas: p of held-out choices, whether it names the hidden one, p of that one.

        Its temperature is fitted on the held-out choices of the other half of the users.
        """
        posteriors = [
            pi.PersonaPosterior(self.names).update(self.explains(pairs[:count]))
            for pairs in people.seen.values()
        ]
        later = [self.explains(pairs) for pairs in people.held.values()]
        fit = pi.PersonaPosterior.fit_common_temperature
        taus = [fit(posteriors[half::2], later[half::2]) for half in (0, 1)]
        for half in (0, 1):
            for posterior in posteriors[half::2]:
                posterior.temperature = taus[1 - half]
        sure = np.array([one.predict(rows) for one, rows in zip(posteriors, later, strict=True)])
        both = list(zip(posteriors, people.hidden, strict=True))
        named = [one.top == own for one, own in both]
        return sure, named, [float(one.probabilities[self.names.index(own)]) for one, own in both]


def known_ways(known: Known, people: Population) -> dict[tuple[str, int], Floats]:
    """What needs no inference, shape (users, held-out choices) each."""
    own = {user: people.persona_of(user) for user in people.held}
    return {
        ("no prefix", 0): known.margins(people.held),
        ("people in general", 0): known.margins_in_general(people.held),
        ("shuffled persona", 0): known.margins(
            people.held, {user: own[people.other[user]] for user in own}
        ),
        ("true persona", 0): known.margins(people.held, own),
    }


# The study


def study(options: argparse.Namespace, chooser: Scores, evaluator: Scores) -> dict[str, Any]:
    names = list(PERSONAS)[: options.personas]
    responses = responses_of(options.path, options.pairs, options.words)
    matrix = lifts(chooser, names, responses)
    crowd = Population(matrix, options.crowd, options)
    people = Population(matrix, options.users_per_persona, options)
    known = Known(evaluator, matrix)
    ways, posterior, missing = known_ways(known, people), dict[int, Any](), dict[str, int]()
    for count in options.observed:
        observed = [pair for pairs in people.seen.values() for pair in pairs[:count]]
        ways["few-shot", count] = margins_of_examples(evaluator, observed, people.held)
        posterior[count] = known.posterior(people, count)
    observed = [pair for pairs in people.seen.values() for pair in pairs]
    for method, count, said, without in inferred(observed, options, evaluator):
        ways[method, count] = margins_of_persona(evaluator, said, people.held)
        missing[f"{method}, {count}"] = without
        if count == max(options.observed):
            swapped = {u: said[o] for u, o in people.other.items() if o in said}
            margins = margins_of_persona(evaluator, swapped, people.held)
            ways[f"{method}, another user's", count] = margins
    return {
        "chooser": chooser_facts(matrix, crowd),
        **results(ways, posterior),
        "crowd": crowd_results(
            known_ways(known, crowd), {n: known.posterior(crowd, n) for n in options.observed}
        ),
        "a guess names it": 1 / len(names),
        "users without a persona": missing,
    }


def expected_tokens(options: argparse.Namespace) -> dict[str, int]:
    """About how many tokens are scored at most, from the words of the texts; before any is."""
    both = responses_of(options.path, options.pairs, options.words)
    prompt = sum(len(text.split()) for text in both) * 1.4 / len(both) + 20
    response = sum(len(t.split()) for pair in both.values() for t in pair) * 1.3 / len(both) / 2
    pair, example = prompt + 35 + 2 * response, prompt + response + 25
    users = options.personas * options.users_per_persona
    held, counts = users * options.held_out, len(options.observed)
    explained = min(2 * options.pairs, users * max(options.observed)) * options.pairs
    return {
        "chooser": round(options.personas * options.pairs * pair),
        "evaluator, personas that are known": round((options.personas + 3) * options.pairs * pair),
        "evaluator, few-shot": round(counts * held * (pair + 2 * example)),
        "evaluator, explanations": round(explained * pair),
        "evaluator, written personas": round((2 * counts - 1 + 2) * held * (pair + 25)),
    }


def main() -> None:
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    planned = expected_tokens(options)
    for part, tokens in planned.items():
        print(f"about {tokens:,} tokens at most: {part}", file=sys.stderr)
    if options.plan:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if cores:
        os.environ["OMP_NUM_THREADS"] = str(cores)
    weights = f"local:{gemma(options.gemma)}"
    limit = 2 * options.words
    chooser = Scores(
        options.folder / "chooser.jsonl",
        pi.Likelihood(
            weights, device="cpu", persona_in="plain", baseline=(), max_response_tokens=limit
        ),
    )
    evaluator = Scores(
        options.folder / "evaluator.jsonl",
        pi.Likelihood(
            "local:smollm2", device="cpu", dtype=options.dtype, max_response_tokens=limit
        ),
    )
    began = time.perf_counter()
    found = study(options, chooser, evaluator)
    found["options"] = {name: str(value) for name, value in vars(options).items()}
    found["this run"] = {
        "seconds": round(time.perf_counter() - began, 1),
        "texts scored by the chooser": chooser.scored,
        "seconds of the chooser": round(chooser.seconds, 1),
        "texts scored by the evaluator": evaluator.scored,
        "seconds of the evaluator": round(evaluator.seconds, 1),
        "cores": cores,
        "tokens expected at most": planned,
    }
    write(options.folder, found)
    print(page(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--personas", type=int, default=len(PERSONAS), help="how many of them")
    parser.add_argument("--users-per-persona", type=int, default=1)
    parser.add_argument(
        "--crowd", type=int, default=20, help="users a persona, where nothing is inferred"
    )
    parser.add_argument("--observed", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--held-out", type=int, default=10, help="choices a user")
    parser.add_argument("--pairs", type=int, default=26, help="what users are asked, in all")
    parser.add_argument("--words", type=int, default=32, help="of a response that are read")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the choices")
    parser.add_argument("--alpha", type=float, help="Dirichlet weights instead of one persona each")
    parser.add_argument("--model", default="local:smollm2", help="writes the personas")
    parser.add_argument("--api-base", help="of that model")
    parser.add_argument(
        "--dtype", default="bfloat16", help="of the evaluator; float32: 3 times as long"
    )
    parser.add_argument("--folder", type=Path, default=Path(".venvs/users-study"))
    parser.add_argument("--gemma", type=Path, default=Path(".venvs/gemma"), help="pip's --target")
    parser.add_argument("--plan", action="store_true", help="only count the tokens")
    return parser.parse_args()


if __name__ == "__main__":
    main()
