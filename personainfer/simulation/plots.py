"""Draw figures of personas and of users' votes with matplotlib, and compute the figures of a report.

Each `plot_` function draws on `ax`, or on a new figure (None), and returns the axes. The other functions
return plain values, which the template of a report shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import InstanceOf

from ..arguments import Count, check_argument, read_items
from ..data.table import PersonaTable
from ..evaluation.salience import FLOOR, SalientWord, salient_words
from ..evaluation.statistics import Estimate, bootstrap_mean
from ..evaluation.summary import SIDES, TableSummary, score_range, summarise
from ..exceptions import DataError, MissingExtraError, visible
from ..records import Usage
from ..users.records import UserPersonas
from .heterogeneity import FeatureRegression, Votes, WordEntropy
from .persona_groups import PersonaGroup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour-blind readers can tell these colours apart, also in print.
_COLOURS = {"overall": "#444b59", "chosen": "#0b6e99", "rejected": "#c4620f"}
_WORDS = 12  # shown of each side
_BINS = 24
SIDE_LABELS = {
    "overall": "both sides",
    "chosen": "prefers the chosen response",
    "rejected": "prefers the rejected response",
}

Json = dict[str, Any]


def plot_accuracy(table: PersonaTable, *, ax: Axes | None = None) -> Axes:
    """Plot the accuracy of a judge by side, from 0 to 1, with 95 % intervals.

    A dashed line marks the accuracy of a judge that guesses.

    Args:
        table: the `.table` of what `verify_personas` returns.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes.

    Raises:
        DataError: the table has no verdicts.
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    check_argument("table", table, InstanceOf[PersonaTable])
    summary = summarise(table)
    accuracy = {side: found for side, found in summary.accuracy.items() if found.n}
    if not accuracy:
        raise DataError(
            "the table holds no verdicts.", hint="Plot verify_personas(table, judge=…).table."
        )
    axes: Axes = _axes(ax, height=1.2 + 0.5 * len(accuracy))
    for place, (name, found) in enumerate(accuracy.items()):
        axes.errorbar(
            found.value,
            place,
            xerr=[[found.value - found.low], [found.high - found.value]],
            fmt="o",
            capsize=4,
            color=_COLOURS[name],
        )
    axes.axvline(summary.guess, linestyle="--", linewidth=1, color="grey")
    axes.set_yticks(range(len(accuracy)), list(accuracy))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"accuracy (a guess: {summary.guess:.2f})")
    return axes


def plot_scores(table: PersonaTable, *, bins: int = 30, ax: Axes | None = None) -> Axes:
    """Plot a histogram for each side of the scores of the best candidates.

    A candidate with a score above 0 explains the choice. A dashed line marks 0.

    Args:
        table: a table whose candidates have scores, as from `infer_personas(…, candidates=8, select=…)`.
        bins: how many bins.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes.

    Raises:
        DataError: no candidate has a score.
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    check_argument("table", table, InstanceOf[PersonaTable])
    bins = check_argument("bins", bins, Count)
    scores = summarise(table).scores
    if not scores:
        raise DataError(
            "the table holds no scores.",
            hint="Infer with candidates=8, select=Likelihood(…): see infer_personas.",
        )
    axes: Axes = _axes(ax, height=3.2)
    for side, values in scores.items():
        axes.hist(
            values, bins, range=score_range(scores), alpha=0.6, label=side, color=_COLOURS[side]
        )
    axes.axvline(0, linestyle="--", linewidth=1, color="grey")
    axes.set_xlabel("score of the best candidate (above 0: it explains the choice)")
    axes.set_ylabel("personas")
    axes.legend(frameon=False)
    return axes


def plot_salient_words(
    words: PersonaTable | Sequence[SalientWord], *, limit: int = _WORDS, ax: Axes | None = None
) -> Axes:
    """Plot the words that mark each side most, as log-odds with their intervals.

    Args:
        words: a table, or the result of `salient_words`.
        limit: the most words of each side.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes.

    Raises:
        DataError: no word is frequent enough, or a side of the table has no personas.
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    limit = check_argument("limit", limit, Count)
    found: Sequence[SalientWord] = (
        salient_words(words) if isinstance(words, PersonaTable) else read_items("words", words)
    )
    for one in found:
        check_argument("words", one, InstanceOf[SalientWord])
    of_side = {side: [word for word in found if word.side == side][:limit] for side in SIDES}
    drawn = [(side, word) for side, words_of in of_side.items() for word in words_of]
    if not drawn:
        raise DataError("no word is frequent enough.", hint="Lower floor= of salient_words.")
    drawn.sort(key=lambda pair: pair[1].log_odds.value)
    axes: Axes = _axes(ax, height=1.0 + 0.26 * len(drawn))
    for place, (side, word) in enumerate(drawn):
        odds = word.log_odds
        axes.barh(place, odds.value, color=_COLOURS[side], alpha=0.85)
        axes.hlines(place, odds.low, odds.high, color="black", linewidth=1)
    axes.set_yticks(range(len(drawn)), [visible(word.word) for _, word in drawn], parse_math=False)
    axes.axvline(0, linewidth=1, color="grey")
    axes.set_xlabel("log-odds: rejected  ←  →  chosen")
    return axes


def plot_top_share(votes: Votes, *, bins: int = 20, ax: Axes | None = None) -> Axes:
    """Plot a histogram over prompts of the share of users, from 0 to 1, who prefer the most popular response.

    Args:
        votes: what users prefer on each prompt, the result of `votes`.
        bins: how many bins.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    check_argument("votes", votes, InstanceOf[Votes])
    bins = check_argument("bins", bins, Count)
    axes: Axes = _axes(ax, height=3.2)
    axes.hist(votes.top_share, bins, range=(0, 1), color=_COLOURS["overall"])
    axes.axvline(0.5, linestyle="--", linewidth=1, color="grey")
    axes.set_xlabel("share of users who prefer the top response (dashed: a majority)")
    axes.set_ylabel("prompts")
    return axes


def plot_winners(votes: Votes, *, ax: Axes | None = None) -> Axes:
    """Plot how many prompts have 1, 2, … responses that at least one user prefers.

    Args:
        votes: what users prefer on each prompt, the result of `votes`.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    check_argument("votes", votes, InstanceOf[Votes])
    axes: Axes = _axes(ax, height=3.2)
    responses = votes.shares.shape[1]
    counts = [int((votes.winners == number).sum()) for number in range(1, responses + 1)]
    axes.bar(range(1, responses + 1), counts, color=_COLOURS["overall"])
    axes.set_xticks(range(1, responses + 1))
    axes.set_xlabel("responses that somebody prefers")
    axes.set_ylabel("prompts")
    return axes


def plot_vote_entropy(votes: Votes, *, bins: int = 20, ax: Axes | None = None) -> Axes:
    """Plot a histogram over prompts of the entropy of the users' votes, in nats.

    The entropy is 0 if all users prefer the same response, and at most the logarithm of the number of
    responses.

    Args:
        votes: what users prefer on each prompt, the result of `votes`.
        bins: how many bins.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes.

    Raises:
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    check_argument("votes", votes, InstanceOf[Votes])
    bins = check_argument("bins", bins, Count)
    axes: Axes = _axes(ax, height=3.2)
    most = math.log(votes.shares.shape[1])
    axes.hist(votes.entropy, bins, range=(0, most or 1.0), color=_COLOURS["overall"])
    axes.set_xlabel(f"entropy of the vote, nats (at most {most:.2f})")
    axes.set_ylabel("prompts")
    return axes


def plot_entropy_by_word(
    found: Sequence[WordEntropy], *, limit: int = _WORDS, ax: Axes | None = None
) -> Axes:
    """Plot the words of prompts on which users agree least and most: mean entropies with intervals, in nats.

    Args:
        found: the result of `entropy_by_word`.
        limit: the most words on which users agree least, and the most on which they agree most.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes.

    Raises:
        DataError: `found` is empty.
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    limit = check_argument("limit", limit, Count)
    found = read_items("found", found)
    for one in found:
        check_argument("found", one, InstanceOf[WordEntropy])
    if not found:
        raise DataError("no word is frequent enough.", hint="Lower floor= of entropy_by_word.")
    drawn = list(found) if len(found) <= 2 * limit else [*found[:limit], *found[-limit:]]
    return _intervals([(one.word, one.entropy) for one in drawn], "entropy of the vote, nats", ax)


def plot_feature_regression(found: FeatureRegression, *, ax: Axes | None = None) -> Axes:
    """Plot the coefficients of each feature for all users, and their mean with its 95 % interval.

    Args:
        found: the result of `feature_regression`.
        ax: where to draw; None: on a new figure.

    Returns:
        The axes. The feature with the highest mean is on top.

    Raises:
        InvalidArgumentError: a bad argument.
        MissingExtraError: `ax` is None, and matplotlib is not installed.
    """
    check_argument("found", found, InstanceOf[FeatureRegression])
    order = np.argsort(-found.coefficients.mean(axis=0), kind="stable")
    means = [(found.features[n], bootstrap_mean(found.coefficients[:, n])) for n in order]
    axes = _intervals(means, "more of it: chance of being the favourite, by user", ax)
    for place, feature in enumerate(order):
        users = found.coefficients[:, feature]
        axes.plot(users, [place] * len(users), "|", color="grey", alpha=0.4, zorder=0)
    axes.axvline(0, linewidth=1, color="grey")
    return axes


def _intervals(named: Sequence[tuple[str, Estimate]], label: str, ax: Axes | None) -> Axes:
    """Plot estimates with their intervals, one line for each name, the first on top."""
    axes: Axes = _axes(ax, height=1.2 + 0.3 * len(named))
    for place, (_, found) in enumerate(named):
        spread = [[found.value - found.low], [found.high - found.value]]
        axes.errorbar(
            found.value, place, xerr=spread, fmt="o", capsize=3, color=_COLOURS["overall"]
        )
    axes.set_yticks(range(len(named)), [visible(name) for name, _ in named], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(label)
    return axes


def _axes(ax: Axes | None, *, height: float) -> Any:
    if ax is not None:
        return ax
    MissingExtraError.require("matplotlib")
    from matplotlib.figure import Figure

    # Not pyplot: it would keep every figure, and choose a window where there is no screen.
    axes = Figure(figsize=(7, height), layout="constrained").add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


# On top of a report


def tiles(table: PersonaTable, found: TableSummary) -> list[Json]:
    """Return the counts of a table, its calls and its cost (USD) as texts, each with its label."""
    share = f" ({found.complete / found.rows:.0%})" if found.rows else ""
    # Personas that came with the data cost no calls, and have no flags.
    inferred = "personas_from" not in table.settings
    tiles = [
        ("rows", f"{found.rows:,}"),
        (f"with personas{share}", f"{found.complete:,}"),
        ("with an error", f"{found.errors:,}"),
        *([("unexplained", f"{found.unexplained:,}")] if found.unexplained else []),
        *([("flagged", f"{found.flagged:,}")] if inferred or found.flagged else []),
        *([_calls(table.usage)] if inferred else []),
    ]
    if table.usage.cost:
        tiles.append(("cost", f"${table.usage.cost:,.2f}"))
    return _tiles(tiles)


def user_tiles(found: UserPersonas) -> list[Json]:
    """Return the counts of personas of users, and of calls, as texts, each with its label."""
    made = list(found.personas.values())
    choices = f"{np.median([one.pairs for one in made]):g}" if made else "none"
    return _tiles(
        [
            ("users", f"{len(found):,}"),
            ("with a persona", f"{len(made):,}"),
            ("with an error", f"{sum(row.error is not None for row in found):,}"),
            ("choices behind a persona (median)", choices),
            _calls(found.usage),
        ]
    )


def _calls(usage: Usage) -> tuple[str, str]:
    stored = f", and {usage.cached:,} replies from the cache" if usage.cached else ""
    return f"calls{stored}", f"{usage.calls:,}"


def _tiles(values: Sequence[tuple[str, str]]) -> list[Json]:
    return [{"label": label, "value": value} for label, value in values]


def estimates(found: TableSummary) -> list[Json]:
    """Return the accuracy of each side: its text, and its interval in percent for a bar.

    A side without a verdict is left out. The interval of a single row has no width.
    """
    rows = []
    for side, one in found.accuracy.items():
        if not one.n:
            continue
        known = bool(np.isfinite(one.low))  # one row has no interval
        low, high = (one.low, one.high) if known else (one.value, one.value)
        rows.append(
            {
                "label": SIDE_LABELS[side],
                "side": side,
                "figure": f"{one.value:.2f}  "
                + (f"[{low:.2f}, {high:.2f}]" if known else "(one row)"),
                "low": round(100 * low, 2),
                "width": round(100 * (high - low), 2),
                "at": round(100 * one.value, 2),
            }
        )
    return rows


def histograms(found: TableSummary) -> list[Json]:
    """Return a histogram of each side's scores: bars with a height in percent of the highest bar.

    The list is empty if no candidate has a score.
    """
    if not found.scores:
        return []
    edges = np.linspace(*score_range(found.scores), _BINS + 1)
    counts = {side: np.histogram(scores, edges)[0] for side, scores in found.scores.items()}
    most = max(int(count.max()) for count in counts.values())
    return [
        {
            "label": SIDE_LABELS[side].capitalize(),
            "side": side,
            "low": f"{edges[0]:.2f}",
            "high": f"{edges[-1]:.2f}",
            "described": f"{(scores > 0).mean():.0%} of {len(scores):,} above 0, median"
            f" {np.median(scores):.3f}",
            "bars": [
                {"height": round(100 * int(n) / most, 1), "below": bool(edges[place + 1] <= 0)}
                for place, n in enumerate(counts[side])
            ],
        }
        for side, scores in found.scores.items()
    ]


def words(table: PersonaTable, found: Sequence[SalientWord] | None) -> tuple[list[Json], str]:
    """Return the words that mark each side (adjusted p below 0.05), and a sentence on why there are none.

    The sentence is "" if there are such words.

    Args:
        table: the personas.
        found: the result of `salient_words`; None: compute it.
    """
    if found is None:
        try:
            found = salient_words(table)
        except DataError as error:  # a side has no persona, so there is nothing to compare
            return [], str(error)
    if not found:
        return [], f"No word is in {FLOOR} personas or more, so none is compared."
    marked = [word for word in found if word.p_adjusted < 0.05]
    if not marked:
        several = f"None of {len(found):,} words marks"
        count = several if len(found) > 1 else "One word is compared, and it does not mark"
        return [], f"{count} a side more than chance would have it."
    most = max(abs(word.log_odds.value) for word in marked)
    sides = [
        {
            "label": f"Who {SIDE_LABELS[side]}",
            "side": side,
            "words": [
                {
                    "word": word.word,
                    "width": round(100 * abs(word.log_odds.value) / most, 1),
                    "figure": f"{word.chosen} : {word.rejected}",
                }
                for word in [w for w in marked if w.side == side][:_WORDS]
            ],
        }
        for side in SIDES
    ]
    return sides, ""


def groups(table: PersonaTable, found: Sequence[PersonaGroup]) -> list[Json]:
    """Return each group of personas as the template shows it: label, share, counts of sides, and examples.

    `table` is the table that was grouped. A bar's width is in percent of the largest group.
    """
    most = max((one.share for one in found), default=1.0)
    return [
        {
            "kind": f"group-{number}",
            "label": one.label,
            "share": f"{one.share:.0%}",
            "width": round(100 * one.share / most, 1),
            "chosen": one.chosen,
            "rejected": one.rejected,
            "of_chosen": round(100 * one.chosen / len(one.members), 1),
            "examples": [
                {"side": place.side, "text": str(getattr(table[place.row], place.side))}
                for place in one.examples
            ],
        }
        for number, one in enumerate(found, 1)
    ]
