"""`Likelihood`: measure how much a persona raises a language model's log-probability of a response.

lift(persona, response) = log p(response | prompt, persona) - log p(response | prompt) is the pointwise mutual
information of persona and response, given the prompt. A persona explains a choice if it lifts the preferred
response more than the other one (inference to the best explanation). The scoring model may be another than
the model that inferred the persona. A `Scorer` of `llamacpp`, `transformers_scorer` or `vllm` computes log p.
"""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Container, Hashable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from ..api_keys import hide_key, hides_secrets, show_key
from ..arguments import Flag, check_argument, in_python
from ..exceptions import InvalidArgumentError, PersonaInferError, shown_when_made
from ..local.weights import files_of, whole_name
from ..personas.placement import PersonaPlace
from ..records import FloatArray, Persona, Preference
from .context import Cuts, FittedText, ScoredText, TextToFit, fit_prefixes
from .halving import ROUNDS, BothTexts, gaps_by_halving
from .interfaces import (
    PromptLike,
    Row,
    Scorer,
    TokenText,
    check_lengths,
    check_row,
    check_rows,
    ignored,
)
from .scorers import scorer_of

H = TypeVar("H", bound=Hashable)
T = TypeVar("T")


# Two opposite personas: on the development half of benchmarks/explanation.py their mean is a better
# baseline than either alone.
PEOPLE_IN_GENERAL = (
    "The user is practical and prefers a short response.",
    "The user is thorough and prefers a detailed response.",
)
_KEPT = 512  # how many texts with baseline personas keep their scores for later calls
_NOTHING: FloatArray = np.zeros(0)  # the scores of a response without tokens

_logger = logging.getLogger(__name__)


@hides_secrets
class Likelihood:
    """Scores responses by a language model's log-probability; a `select=` for `infer_personas`.

    Args:
        model: "local:smollm2", "local" or "local:/path/model.gguf": llama.cpp runs it, without torch. A
            Hugging Face id, a folder, the path of a .gguf file or the folder of a LoRA adapter (peft),
            with or without "transformers:" in front: transformers runs it. With `api_base`: the model's
            name at the server.
        batch_size: transformers: texts in one forward pass; a server: requests in flight (at most 8 for
            "local"). It does not change the result.
        max_response_tokens: score only the first N tokens of a response; None: all of them.
        device: a device of transformers ("cpu", "cuda", "cuda:1", "mps"); None: "cuda" if there is one, else
            "cpu". With a "local" model, transformers then runs the weights in place of llama.cpp.
        persona_in: where the persona stands: "user": at the end of the last user message, in the user's
            words, "Write the response that I would prefer. I am …"; "system": in the system message;
            "plain": in labelled text without a chat template, for models that have none.
        baseline: what `explains` subtracts. Empty: the score of the prompt alone, as in `lift`. Or
            personas: the mean of their scores. Any sentence about the reader changes which responses a model
            finds likely: for example, it prefers longer ones. With `PEOPLE_IN_GENERAL` as the baseline, only
            what is particular to a persona counts. The baseline changes which scores are above 0, but
            not the order of the candidates for one side.
        max_prompt_tokens: the most tokens before a response, with persona and chat template; None: what
            the model's context leaves. Of a longer conversation the oldest messages are left out, but not
            the persona, a system message, or the last user message and what follows it. A row that is still
            too long gets NaN.
        dtype: a type of torch, for transformers; None: float32 on a CPU, the checkpoint's own on a GPU.
        api_base: the address of a llama.cpp server, or of an endpoint that knows vLLM's
            `prompt_logprobs`. `Likelihood` finds out which of the two it is.
        api_key: the key of that server; None: no key, but for an https address of OpenAI or Azure that of the
            environment.
        timeout: seconds for one request to that server.

    Attributes:
        cuts: how many texts were cut, or not scored, so far: see `Cuts`.

    Only the tokens of the response are scored: neither the prefix nor the token that ends the turn. Prefix
    and response are tokenized separately and then joined, for all engines.

    A row gets NaN if the server fails at its text at every attempt, or the chat template refuses it. The
    first such text gives a warning, and `cuts` counts all. If all texts fail, or the first ones, an error is
    raised. The first call that scores loads the weights or asks the server, and blocks meanwhile. (With a
    `device`, the weights of a "local" model are fetched when the object is made.)

    Raises:
        InvalidArgumentError: a value that cannot work.
        MissingExtraError: a package is not installed.
        ModelNotFoundError: weights that are needed at once cannot be fetched.
    """

    def __init__(
        self,
        model: str = "local:smollm2",
        *,
        batch_size: int = 16,
        max_response_tokens: int | None = None,
        device: str | None = None,
        persona_in: PersonaPlace = "user",
        baseline: Sequence[Persona | str] = (),
        max_prompt_tokens: int | None = None,
        dtype: str | None = None,
        api_base: str | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self._options = {name: in_python(value) for name, value in given.items()}
        if api_base is None and isinstance(model, str):  # scored, or unpickled, in another folder
            self._options["model"] = whole_name(model)
        count = weakref.WeakMethod(self._count_failed)  # weights go with this object, at once
        self._make = scorer_of(self._options, lambda *told: (count() or ignored)(*told))
        self.model = model
        self.cuts = Cuts()
        self._place = persona_in
        self._baseline = tuple(str(persona) for persona in baseline) or (None,)
        self._max_response: int | None = self._options["max_response_tokens"]
        self._max_prompt: int | None = self._options["max_prompt_tokens"]
        self._made: Scorer | None = None
        self._known: dict[TokenText, FloatArray] = {}  # scores of texts with baseline personas
        self._lock = threading.Lock()

    @shown_when_made
    def __repr__(self) -> str:
        base = self._options["api_base"]
        return f"Likelihood({self.model!r}{f', api_base={base!r}' if base else ''})"

    def __getstate__(self) -> dict[str, Any]:
        return {**hide_key(self._options), "files": files_of(self.model)}  # for fingerprints

    def __setstate__(self, state: dict[str, Any]) -> None:
        options = {name: value for name, value in show_key(state).items() if name != "files"}
        self.__init__(**options)  # type: ignore[misc]

    def log_likelihood(
        self,
        prompts: Sequence[PromptLike],
        personas: Sequence[Persona | str | None],
        responses: Sequence[str],
        *,
        per_token: bool = False,
    ) -> FloatArray:
        """Compute log p(response | prompt, persona) for each row.

        Args:
            prompts: n texts, or conversations as sequences of `Message`.
            personas: n personas, as records or text; None: the prompt alone.
            responses: n texts. An empty one has log p = 0.
            per_token: return the mean over a response's tokens, which does not grow with its length, in place
                of the sum.

        Returns:
            Shape (n,), in nats, or nats a token; NaN for a row without a score.

        Raises:
            InvalidArgumentError: the arguments differ in length, or hold something else; or the chat template
                refuses all prompts.
            ModelError: the model cannot be loaded or reached, or the server failed at all texts, or at the
                first ones.
        """
        per_token = check_argument("per_token", per_token, Flag)
        scored = self.score(prompts, personas, responses)
        return np.array([one.mean if per_token else one.sum for one in scored], dtype=float)

    def score(
        self,
        prompts: Sequence[PromptLike],
        personas: Sequence[Persona | str | None],
        responses: Sequence[str],
        *,
        groups: Sequence[Hashable] | None = None,
    ) -> list[ScoredText]:
        """Compute log p of each token of each row's response, and report what was left out of the row.

        Args:
            prompts, personas, responses: as for `log_likelihood`.
            groups: n labels. If a conversation is too long, all rows with the same label and prompt lose the
                same messages, so that their scores can be compared. None: each row loses its own.

        Returns:
            The score of each row, in the order of the rows.

        Raises:
            InvalidArgumentError, ModelError: as `log_likelihood`.
        """
        rows = check_rows(prompts, personas, responses)
        labels = range(len(rows)) if groups is None else groups
        check_lengths(prompts=rows, groups=labels)
        return self._score(rows, labels)

    def lift(
        self,
        prompts: Sequence[PromptLike],
        personas: Sequence[Persona | str | None],
        responses: Sequence[str],
    ) -> FloatArray:
        """Compute log p(response | prompt, persona) - log p(response | prompt) for each row.

        The arguments and errors are those of `log_likelihood`.

        Returns:
            Shape (n,), in nats, summed over the response's tokens; 0 for the persona None, NaN for a row
            without a score.
        """
        rows = check_rows(prompts, personas, responses)
        without = [(prompt, None, response) for prompt, _, response in rows]
        groups = [*range(len(rows)), *range(len(rows))]
        sums = [one.sum for one in self._score([*rows, *without], groups)]
        return np.subtract(sums[: len(rows)], sums[len(rows) :], dtype=float)

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[Persona | str | None]
    ) -> FloatArray:
        """Compute how well each persona explains that `chosen` was preferred.

        The score is g(chosen) - g(rejected). g(response) is the lift a token: the mean over the tokens of
        log p(token | prompt, persona, tokens before) - log p(token | prompt, tokens before). With
        `baseline`, the second term is the mean over the baseline's personas. g is a mean, since a sum
        would grow with the length of a response.

        Args:
            preferences: n pairs.
            personas: n personas, one a pair. None scores 0.

        Returns:
            Shape (n,), in nats a token. Above 0: the persona explains the choice better than the baseline
            does. NaN for a pair without a score, such as one that does not fit into the model's context.

        Raises:
            InvalidArgumentError, ModelError: as `log_likelihood`.
        """
        check_lengths(preferences=preferences, personas=personas)
        pairs = list(zip(preferences, personas, strict=True))
        rows = [
            row
            for number, (pair, persona) in enumerate(pairs)
            for row in _rows_of_pair(number, pair, (persona, *self._baseline))
        ]
        a_pair = 2 + 2 * len(self._baseline)
        found = self._score(rows, [row // a_pair for row in range(len(rows))], self._baseline)
        means = np.array([one.mean for one in found])
        gaps = means.reshape(len(pairs), 1 + len(self._baseline), 2) @ (1.0, -1.0)
        gained = gaps[:, 0] - gaps[:, 1:].mean(axis=1)
        return np.where([persona is None for _, persona, _ in rows[::a_pair]], 0.0, gained)

    def explains_candidates(
        self, preferences: Sequence[Preference], candidates: Sequence[Sequence[Persona | str]]
    ) -> list[FloatArray]:
        """Compute `explains` for several candidates a pair, precisely enough to find the best of them.

        llama.cpp takes a decoding step for each scored token. There, after 8, 32 and 128 tokens of each
        response, the worse half of a pair's candidates is dropped, except candidates within half a standard
        error of the best. A candidate that was never dropped has the score of `explains`. A dropped
        candidate's score is an estimate: the best score, minus how far this candidate was behind the leader
        of its last round. Other engines read texts in one pass, and drop no candidate.

        Args:
            preferences: n pairs.
            candidates: for each pair its candidate personas, none of them None.

        Returns:
            For each pair an array of scores, shape (candidates,), in nats a token; NaN for a candidate
            without a score, such as one that does not fit into the model's context.

        Raises:
            InvalidArgumentError, ModelError: as `log_likelihood`.
        """
        check_lengths(preferences=preferences, candidates=candidates)
        rows, groups = list[Row](), list[int]()
        for number, (pair, personas) in enumerate(zip(preferences, candidates, strict=True)):
            new = _rows_of_pair(number, pair, (*self._baseline, *personas))
            rows, groups = [*rows, *new], [*groups, *[number] * len(new)]
        texts = iter([one.text for one in self._fitted(rows, groups)])
        baselines, races = list[TokenText | None](), list[list[BothTexts | None]]()
        for personas in candidates:
            baselines += islice(texts, 2 * len(self._baseline))
            both = [(next(texts), next(texts)) for _ in personas]
            races.append([(one, other) if one and other else None for one, other in both])
        scores = self._log_probabilities(baselines, [True] * len(baselines))
        means = [ScoredText(score).mean for score in scores]
        gaps = np.reshape(means, (len(races), -1, 2)) @ (1.0, -1.0)
        scorer = self._scorer()  # reading the prefixes anew each round costs more than it saves
        found = gaps_by_halving(scorer.score, races, ROUNDS if scorer.decodes else ())
        return [gap - base.mean() for gap, base in zip(found, gaps, strict=True)]

    def _score(
        self, rows: Sequence[Row], groups: Sequence[Hashable], kept: Container[str | None] = ()
    ) -> list[ScoredText]:
        """Score each row. The scores of rows with the personas in `kept` are remembered for later calls."""
        fitted = self._fitted(rows, groups)
        found = self._log_probabilities(
            [one.text for one in fitted], [row[1] in kept for row in rows]
        )
        return [
            ScoredText(scores, one.turns_left_out, one.tokens_left_out)
            for scores, one in zip(found, fitted, strict=True)
        ]

    def _fitted(self, rows: Sequence[Row], groups: Sequence[Hashable]) -> list[FittedText]:
        """Tokenize each row, cut so that it fits. `cuts` counts what was left out."""
        scorer = self._scorer()
        tokens = _once(scorer.encode, [response for _, _, response in rows])
        responses = {said: ids and ids[: self._max_response] for said, ids in tokens.items()}
        asked = [
            TextToFit(prompt, who, len(responses[said] or ()), group)
            for (prompt, who, said), group in zip(rows, groups, strict=True)
        ]
        prefixes = fit_prefixes(scorer, asked, self._place, self._max_prompt)
        fitted = list[FittedText]()
        for prefix, (_, _, said) in zip(prefixes, rows, strict=True):
            before, part = prefix.tokens, responses[said]
            text = None if before is None or part is None else TokenText(before, part)
            cut = len(tokens[said] or ()) - len(part or ())
            fitted.append(FittedText(text, prefix.turns_left_out, cut, prefix.is_too_long))
        self._report(rows, fitted)
        return fitted

    def _log_probabilities(
        self, texts: Sequence[TokenText | None], kept: Sequence[bool]
    ) -> list[FloatArray | None]:
        """Compute log p of each text's tokens; None for a text that is None, or at which the scorer failed.

        Equal texts are scored once. The scores of texts with a True in `kept` are remembered.
        """
        known = self._known  # replaced, never changed: several threads may score
        new = [text for text in texts if text and text.response and text not in known]
        found = known | _once(self._scorer().score, new)
        asked = zip(texts, kept, strict=True)
        again = {t: s for t, keep in asked if t and keep and (s := found.get(t)) is not None}
        older = [(text, score) for text, score in known.items() if text not in again]
        self._known = dict([*older, *again.items()][-_KEPT:])
        return [None if text is None else found.get(text, _NOTHING) for text in texts]

    def _report(self, rows: Sequence[Row], fitted: Sequence[FittedText]) -> None:
        """Count in `cuts` what did not fit, and log a warning the first time."""
        pairs = list(zip(rows, fitted, strict=True))
        prompts = {row[0] for row, one in pairs if one.turns_left_out}
        responses = {row[2] for row, one in pairs if one.tokens_left_out}
        too_long = {row for row, one in pairs if one.is_too_long}
        if not (prompts or responses or too_long):
            return
        with self._lock:  # several threads may score
            old = self.cuts
            first = replace(old, failed=0) == Cuts()
            self.cuts = replace(
                old,
                prompts=old.prompts + len(prompts),
                responses=old.responses + len(responses),
                too_long=old.too_long + len(too_long),
            )
        if first:
            _logger.warning(
                "a text is too long: %d conversations lost their oldest turns, %d responses their end,"
                " and %d rows have no score (max_prompt_tokens=, max_response_tokens=, or the model's"
                " context). Later ones are counted in Likelihood.cuts.",
                len(prompts),
                len(responses),
                len(too_long),
            )

    def _count_failed(self, count: int, first: PersonaInferError) -> None:
        """Count in `cuts` the texts at which the scorer failed, and warn the first time."""
        with self._lock:
            before = self.cuts.failed
            self.cuts = replace(self.cuts, failed=before + count)
        if not before:
            warnings.warn(
                f"{count:,} text{'s' * (count != 1)} could not be scored: no score for what holds them"
                f" (later ones are counted in Likelihood.cuts). {first}",
                stacklevel=2,
            )

    def _scorer(self) -> Scorer:
        """Return the scorer. The first call makes it, which may load weights or ask the server."""
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _rows_of_pair(
    number: int, pair: Preference, personas: Sequence[Persona | str | None]
) -> list[Row]:
    """Make two rows for each persona: one with each response of the pair."""
    if not isinstance(pair, Preference):
        raise InvalidArgumentError(f"preferences[{number}]={pair!r:.80} is not a Preference.")
    both = (pair.chosen, pair.rejected)
    return [check_row(number, pair.prompt, one, said) for one in personas for said in both]


def _once(function: Callable[[list[H]], Sequence[T]], items: Sequence[H]) -> dict[H, T]:
    """Call a function on the distinct items, and map each item to its result."""
    distinct = list(dict.fromkeys(items))
    return dict(zip(distinct, function(distinct), strict=True)) if distinct else {}
