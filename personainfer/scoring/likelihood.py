"""Measure how likely a language model finds a response, with and without a persona.

lift(persona, response) = log p(response | prompt, persona) - log p(response | prompt): the pointwise mutual
information of the two, given the prompt. A persona explains a choice when it lifts the preferred
response more than the other one: inference to the best explanation, scored by a model that need not be
the one that inferred. The log-probabilities come from a `Scorer`: `llamacpp`, `transformers_scorer`, `vllm`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ..api_keys import hide_key, show_key
from ..arguments import Count, PositiveNumber, check_argument
from ..exceptions import InvalidArgumentError, ModelNotFoundError
from ..llm.weights import find_weights
from ..personas.placement import PersonaPlace, check_place
from ..records import FloatArray, Persona, Preference
from .context import Cuts, ScoredText, TextToFit, fit_prefixes
from .hf_models import check_installed
from .interfaces import Scorer, ScoringEndpoint, TokenText
from .llamacpp import EmbeddedEndpoint, ForcedDecoding
from .rows import PromptLike, Row, check_lengths, check_row, check_rows
from .transformers_scorer import TorchScorer
from .vllm import PromptLogprobs

H = TypeVar("H", bound=Hashable)
T = TypeVar("T")


# Two opposite personas: on the development half of benchmarks/explanation.py their mean is a better
# baseline than either alone.
PEOPLE_IN_GENERAL = (
    "The user is practical and prefers a short response.",
    "The user is thorough and prefers a detailed response.",
)
_KEPT = 512  # texts of the baseline whose scores are remembered
_NOTHING: FloatArray = np.zeros(0)  # the scores of a response without tokens

_logger = logging.getLogger(__name__)


class Likelihood:
    """Scores responses by a language model's log-probability; a `select=` for `infer_personas`.

    Args:
        model: "local:smollm2", "local" or "local:/path/model.gguf": llama.cpp, without torch. A
            Hugging Face id, a folder, the path of a .gguf file or the folder of a LoRA adapter (peft),
            with or without "transformers:" in front: transformers. With `api_base`, the name of what
            the server serves.
        batch_size: transformers: texts in one forward pass; a server: requests in flight (the
            embedded engine takes at most 8). The result does not depend on it.
        max_response_tokens: score only the first so many tokens of a response; None: all of them.
        device: of transformers ("cpu", "cuda", "cuda:1", "mps"); None: a GPU if there is one. With
            "local" it means: the same weights, by transformers.
        persona_in: where the persona stands: "user": the user says it at the end of the last message,
            "Write the response that I would prefer. I am …"; "system": in the system message; "plain":
            in labelled text without a chat template, for models that have none.
        baseline: what `explains` measures personas against. Empty: the prompt alone, as `lift` does.
            Or other personas, whose mean is taken. Any sentence about the reader changes what a model
            finds likely (longer responses, for one); measured against `PEOPLE_IN_GENERAL`, only what
            is particular to a persona counts. The baseline changes which scores are above 0, never
            the order of the candidates for one side.
        max_prompt_tokens: the most tokens before a response, persona and chat template included;
            None: what the model's context leaves. The oldest turns of a longer conversation are left
            out; never the persona, a system message or the last turn. A row that is still too long
            has no score: NaN.
        dtype: of transformers; None: float32 on a CPU, the checkpoint's own on a GPU.
        api_base: the address of a llama.cpp server, or of an endpoint that gives vLLM's
            `prompt_logprobs`. The server is asked which of the two it is.
        api_key: its key.
        timeout: seconds for one request.

    Only the tokens of the response are scored, not those before it and not the end of the turn.
    Prefix and response are tokenized apart and then joined, in the same way for all engines.

    Raises:
        InvalidArgumentError: a value that cannot work.
        MissingExtraError: a package or the weights are not installed.

    The first score loads the weights or asks the server.
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
        self._options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        _check_options(self._options)
        self.model = model
        self.cuts = Cuts()
        self._place = persona_in
        self._baseline = tuple(str(persona) for persona in baseline) or (None,)
        self._max_response = max_response_tokens
        self._max_prompt = max_prompt_tokens
        self._make = _scorer_of(self._options)
        self._made: Scorer | None = None
        self._known: dict[TokenText, FloatArray] = {}  # of the baseline, which is met again
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        base = self._options["api_base"]
        return f"Likelihood({self.model!r}{f', api_base={base!r}' if base else ''})"

    def __getstate__(self) -> dict[str, Any]:
        return hide_key(self._options)

    def __setstate__(self, options: dict[str, Any]) -> None:
        self.__init__(**show_key(options))  # type: ignore[misc]

    def log_likelihood(
        self,
        prompts: Sequence[PromptLike],
        personas: Sequence[Persona | str | None],
        responses: Sequence[str],
        *,
        per_token: bool = False,
    ) -> FloatArray:
        """log p(response | prompt, persona) of each row.

        Args:
            prompts: n texts, or conversations as sequences of `Message`.
            personas: n personas, as records or text; None: the prompt alone.
            responses: n texts. An empty one has log p = 0.
            per_token: the mean over the tokens of a response, which does not grow with its length.

        Returns:
            n sums over the response's tokens, in nats, or their means.

        Raises:
            InvalidArgumentError: the arguments differ in length, or hold something else.
            ModelError: the model cannot be loaded or reached.
        """
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
        """The log-probabilities of each row's response, and what was left out so that it fits.

        Args:
            prompts, personas, responses: as of `log_likelihood`.
            groups: n labels: rows of one label and prompt lose the same turns, so that their scores can
                be compared. None: each row by itself.
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
        """How much each persona raises log p of its response: with it minus without, n sums in nats.

        The arguments are those of `log_likelihood`; the lift of None is 0.
        """
        rows = check_rows(prompts, personas, responses)
        without = [(prompt, None, response) for prompt, _, response in rows]
        groups = [*range(len(rows)), *range(len(rows))]
        sums = [one.sum for one in self._score([*rows, *without], groups)]
        lifted: FloatArray = np.subtract(sums[: len(rows)], sums[len(rows) :], dtype=float)
        return lifted

    def explains(
        self, preferences: Sequence[Preference], personas: Sequence[Persona | str | None]
    ) -> FloatArray:
        """How well each persona explains that `chosen` was preferred: above 0, better than no persona.

        g(chosen) - g(rejected), where g(response) is its lift a token: the mean over its tokens of
        log p(token | prompt, persona, tokens before) minus log p(token | prompt, tokens before), or
        minus the same with the personas of `baseline`. A sum would grow with the length of a response.

        Args:
            preferences: n pairs.
            personas: n personas, one a pair. None explains nothing, and scores 0.

        Returns:
            n scores, in nats a token; NaN for a pair that does not fit into the model's context.
        """
        check_lengths(preferences=preferences, personas=personas)
        pairs = list(zip(preferences, personas, strict=True))
        for number, (pair, _) in enumerate(pairs):
            if not isinstance(pair, Preference):
                raise InvalidArgumentError(f"preferences[{number}]={pair!r:.80} is no Preference.")
        rows = [
            check_row(number, pair.prompt, one, response)
            for number, (pair, persona) in enumerate(pairs)
            for one in (persona, *self._baseline)
            for response in (pair.chosen, pair.rejected)
        ]
        a_pair = 2 + 2 * len(self._baseline)
        found = self._score(rows, [row // a_pair for row in range(len(rows))], self._baseline)
        means = np.array([one.mean for one in found])
        gaps = means.reshape(len(pairs), 1 + len(self._baseline), 2) @ (1.0, -1.0)
        gained = gaps[:, 0] - gaps[:, 1:].mean(axis=1)
        explained: FloatArray = np.where([persona is None for persona in personas], 0.0, gained)
        return explained

    def _score(
        self, rows: Sequence[Row], groups: Sequence[Hashable], kept: Container[str | None] = ()
    ) -> list[ScoredText]:
        """The score of each row. Equal texts are scored once; those of `kept` personas are remembered."""
        scorer = self._scorer()
        tokens = _once(scorer.encode, [response for _, _, response in rows])
        responses = {said: ids[: self._max_response] for said, ids in tokens.items()}
        fitted = fit_prefixes(
            scorer,
            [
                TextToFit(prompt, who, len(responses[said]), group)
                for (prompt, who, said), group in zip(rows, groups, strict=True)
            ],
            self._place,
            self._max_prompt,
        )
        texts = [
            None if prefix.tokens is None else TokenText(prefix.tokens, responses[row[2]])
            for prefix, row in zip(fitted, rows, strict=True)
        ]
        known = self._known  # replaced, never changed: several threads may score
        new = [text for text in texts if text and text.response and text not in known]
        found = known | _once(scorer.score, new)
        again = {
            t: found[t] for t, row in zip(texts, rows, strict=True) if t in found and row[1] in kept
        }
        older = [(text, score) for text, score in known.items() if text not in again]
        self._known = dict([*older, *again.items()][-_KEPT:])
        scored = [
            ScoredText(
                None if text is None else found.get(text, _NOTHING),
                prefix.turns_left_out,
                len(tokens[row[2]]) - len(responses[row[2]]),
            )
            for text, prefix, row in zip(texts, fitted, rows, strict=True)
        ]
        self._report(rows, scored)
        return scored

    def _report(self, rows: Sequence[Row], scored: Sequence[ScoredText]) -> None:
        """Count what did not fit, and warn of the first."""
        pairs = list(zip(rows, scored, strict=True))
        prompts = {row[0] for row, one in pairs if one.turns_left_out}
        responses = {row[2] for row, one in pairs if one.tokens_left_out}
        too_long = {row for row, one in pairs if one.log_probabilities is None}
        if not (prompts or responses or too_long):
            return
        with self._lock:  # several threads may score
            old, first = self.cuts, self.cuts == Cuts()
            self.cuts = Cuts(
                old.prompts + len(prompts),
                old.responses + len(responses),
                old.too_long + len(too_long),
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

    def _scorer(self) -> Scorer:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made


def _once(function: Callable[[list[H]], Sequence[T]], items: Sequence[H]) -> dict[H, T]:
    """What the function gives for each distinct item."""
    distinct = list(dict.fromkeys(items))
    return dict(zip(distinct, function(distinct), strict=True)) if distinct else {}


def _scorer_of(options: Mapping[str, Any]) -> Callable[[], Scorer]:
    """A function that makes the scorer; the arguments are checked at once."""
    model, size = options["model"].strip(), options["batch_size"]
    if options["api_base"] is not None:
        endpoint = ScoringEndpoint(
            model,
            options["api_base"],
            options["api_key"],
            concurrency=size,
            timeout=options["timeout"],
        )
        return lambda: _endpoint_scorer(endpoint)
    named = model.removeprefix("transformers:")
    embedded = model == "local" or model.startswith("local:")
    if embedded and options["device"] is None:
        weights = find_weights(model)
        return lambda: ForcedDecoding(EmbeddedEndpoint(weights, concurrency=size))
    check_installed(named)
    how = {"device": options["device"], "dtype": options["dtype"], "batch_size": size}
    return lambda: TorchScorer(named, **how)


def _endpoint_scorer(endpoint: ScoringEndpoint) -> Scorer:
    """llama.cpp reads `content` from a request to /tokenize, vLLM `prompt`, and says its context."""
    body = {"model": endpoint.model, "content": "a", "prompt": "a"}
    try:
        [reply] = endpoint.each(partial(endpoint.ask, "/tokenize"), [body])
    except ModelNotFoundError:
        raise ModelNotFoundError(
            f"{endpoint.endpoint} does not tokenize: it is neither a llama.cpp server nor vLLM,"
            f" or does not serve {endpoint.model!r}.",
            hint='Score with model="local:smollm2" or transformers: most services only score their own text.',
        ) from None
    if "max_model_len" in reply:
        return PromptLogprobs(endpoint, reply["max_model_len"])
    return ForcedDecoding(endpoint)


def _check_options(options: Mapping[str, Any]) -> None:
    check_argument("batch_size", options["batch_size"], Count)
    for name in ("max_response_tokens", "max_prompt_tokens"):
        check_argument(name, options[name], Count | None)
    check_argument("timeout", options["timeout"], PositiveNumber)
    check_place(options["persona_in"])
    baseline = options["baseline"]
    listed = isinstance(baseline, Sequence) and not isinstance(baseline, str)
    if not (listed and all(isinstance(one, str | Persona) for one in baseline)):
        raise InvalidArgumentError(f"baseline={baseline!r:.80} is not a sequence of personas.")
    model, base = options["model"], options["api_base"]
    if not isinstance(model, str) or not model.strip():
        raise InvalidArgumentError(
            f"model={model!r:.80} must be the name of a model.",
            hint='Such as "local:smollm2", a Hugging Face id, or a path.',
        )
    for name in ("device", "dtype"):
        if options[name] is not None and base is not None:
            raise InvalidArgumentError(
                f"{name}={options[name]!r} is for transformers, api_base={base!r} for a server.",
                hint="Leave one out.",
            )

    if base is not None and not str(base).startswith(("http://", "https://")):
        raise InvalidArgumentError(
            f"api_base={base!r} is not an address.", hint='It starts with "http://" or "https://".'
        )
