"""Find the best of several candidates with few scored tokens, by successive halving.

Each round scores the candidates of a pair on more tokens of both responses, then drops the worse half of
them, except those that are close to the best. Only the candidates that are left after the last round are
scored on all tokens (Jamieson & Talwalkar 2016, arXiv 1502.07943).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..records import FloatArray
from .interfaces import TokenText

Score = Callable[[list[TokenText]], Sequence["FloatArray | None"]]
BothTexts = tuple[TokenText, TokenText]  # the chosen and the rejected response, given one persona

ROUNDS = (8, 32, 128)  # tokens of each response that are scored by the end of each round
_CLOSE = 0.5  # a candidate within this many standard errors of the best is not dropped


def gaps_by_halving(
    score: Score, pairs: Sequence[Sequence[BothTexts | None]], rounds: Sequence[int] = ROUNDS
) -> list[FloatArray]:
    """Compute the gap of each candidate: mean log p a token of the chosen response minus the rejected one's.

    The gap of a candidate that was never dropped is exact. The gap of a dropped candidate is an estimate:
    the best candidate's gap, minus how far the dropped one was behind the leader of its last round.

    Args:
        score: returns log p of each token of each response, or None, as `Scorer.score` does.
        pairs: for each pair a list with the two texts of each candidate; None: the candidate does not fit
            into the model's context.
        rounds: after this many tokens of each response, the worse half of a pair's candidates is dropped.

    Returns:
        For each pair an array of gaps, shape (candidates,), in nats a token; NaN for a candidate that does
        not fit, or that could not be scored.
    """
    races = [_Race(candidates) for candidates in pairs]
    for end in (*rounds, None):
        runners = [runner for race in races for runner in race.runners(end)]
        parts = [part for runner, goal in runners for part in runner.parts(goal)]
        distinct = list(dict.fromkeys(part for part in parts if part.response))
        found = dict(zip(distinct, score(distinct), strict=True)) if distinct else {}
        for runner, goal in runners:
            runner.take([found.get(part, _NOTHING) for part in runner.parts(goal)])
        for race in races:
            race.drop_failed()
            race.drop_the_worse_half()
    return [race.gaps() for race in races]


_NOTHING: FloatArray = np.zeros(0)


class _Runner:
    """One candidate: the texts of both responses, and the scores of their first tokens so far."""

    def __init__(self, texts: BothTexts) -> None:
        self.texts = texts
        self.scores: list[FloatArray] = [_NOTHING, _NOTHING]
        self.failed = False

    def parts(self, end: int | None) -> list[TokenText]:
        """Return, for both responses, the tokens up to `end` (None: all) that have no score yet."""
        found = []
        for text, scores in zip(self.texts, self.scores, strict=True):
            done = len(scores)
            after = text.prefix + text.response[:done]
            found.append(TokenText(after, text.response[done:end]))
        return found

    def take(self, scores: Sequence[FloatArray | None]) -> None:
        """Append the log p of the tokens that `parts` named.

        Args:
            scores: an array (tokens,) for the chosen and one for the rejected response. None: the text could
                not be scored, and the candidate has failed.
        """
        new = [score for score in scores if score is not None]
        self.failed = len(new) < len(scores)
        if not self.failed:
            self.scores = [np.concatenate(both) for both in zip(self.scores, new, strict=True)]

    @property
    def gap(self) -> float:
        """The mean log p a token of the chosen response (0 if empty) minus that of the rejected one."""
        chosen, rejected = (float(one.mean()) if len(one) else 0.0 for one in self.scores)
        return chosen - rejected


def _standard_error(some: Sequence[FloatArray], others: Sequence[FloatArray]) -> float:
    """Estimate the standard error of the difference between the gaps of two candidates.

    Args:
        some: log p of the tokens of the chosen and of the rejected response, two arrays (tokens,).
        others: the same tokens, with the other candidate. A response of fewer than two tokens adds 0.
    """
    differences = (one - other for one, other in zip(some, others, strict=True) if len(one) > 1)
    return float(np.sqrt(sum(each.var(ddof=1) / len(each) for each in differences)))


class _Race:
    """The candidates of one pair. `left` maps places to runners; a dropped candidate is not in it."""

    def __init__(self, candidates: Sequence[BothTexts | None]) -> None:
        self._count = len(candidates)
        self.left = {n: _Runner(texts) for n, texts in enumerate(candidates) if texts is not None}
        self._rounds: list[dict[int, float]] = []  # the gaps of all that ran, round by round

    def runners(self, end: int | None) -> list[tuple[_Runner, int | None]]:
        """Return the candidates to score, and up to which token: a single one to the end (None)."""
        goal = end if len(self.left) > 1 else None
        return [(runner, goal) for runner in self.left.values()]

    def drop_failed(self) -> None:
        """Remove candidates with a text that could not be scored, from earlier rounds, too."""
        for n in [n for n, runner in self.left.items() if runner.failed]:
            del self.left[n]
            for gaps in self._rounds:
                del gaps[n]

    def drop_the_worse_half(self) -> None:
        """Note the gaps of all candidates that are left. Drop the worse half, except those near the best."""
        gaps = {n: runner.gap for n, runner in self.left.items()}
        self._rounds.append(gaps)
        ranked = sorted(gaps, key=lambda n: -gaps[n])
        half = -(-len(ranked) // 2)
        close = [n for n in ranked[half:] if self._is_close(self.left[n], self.left[ranked[0]])]
        self.left = {n: self.left[n] for n in sorted([*ranked[:half], *close])}

    def _is_close(self, one: _Runner, best: _Runner) -> bool:
        """Whether a candidate's gap is within half a standard error of the best candidate's."""
        return best.gap - one.gap < _CLOSE * _standard_error(one.scores, best.scores)

    def gaps(self) -> FloatArray:
        """Return the gap or its estimate for each candidate, shape (candidates,); NaN: it has no score."""
        found: FloatArray = np.full(self._count, np.nan)
        if not self._rounds[-1]:
            return found
        *earlier, final = self._rounds
        best = max(final.values())
        below = np.nextafter(best, -np.inf)  # no dropped candidate may tie with the best
        for gaps in earlier:  # a later round overwrites an earlier one
            leading = max(gaps.values())
            found[list(gaps)] = [min(best - (leading - gap), below) for gap in gaps.values()]
        found[list(final)] = list(final.values())
        return found
