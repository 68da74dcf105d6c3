"""Make the scorer that the arguments of `Likelihood` name: by llama.cpp, transformers, or a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ..arguments import ApiBase, ApiKey, Count, Seconds, check_argument
from ..exceptions import InvalidArgumentError, ModelNotFoundError
from ..local.weights import find_weights
from ..personas.placement import check_place
from ..records import Persona
from .interfaces import Failed, Scorer, ScoringEndpoint
from .llamacpp import EmbeddedEndpoint, ForcedDecoding
from .transformers_models import check_installed
from .transformers_scorer import TorchScorer
from .vllm import PromptLogprobs


def scorer_of(options: Mapping[str, Any], failed: Failed) -> Callable[[], Scorer]:
    """Check the arguments, and return a function that makes the scorer, which may load weights.

    Args:
        options: the arguments of `Likelihood`, by name.
        failed: the scorer calls it if it fails at some texts and not at others: with how many, and the first
            error.

    Raises:
        InvalidArgumentError: an argument that cannot work.
        MissingExtraError: a package is not installed.
        ModelNotFoundError: the hub does not give the file that the model's name says.
    """
    _check_options(options)
    model, size = options["model"].strip(), options["batch_size"]
    if options["api_base"] is not None:
        endpoint = ScoringEndpoint(
            model,
            options["api_base"],
            options["api_key"],
            concurrency=size,
            timeout=options["timeout"],
            failed=failed,
        )
        return lambda: _endpoint_scorer(endpoint)
    named = model.removeprefix("transformers:")
    embedded = model == "local" or model.startswith("local:")
    if embedded and options["device"] is None:
        weights = find_weights(model)
        return lambda: ForcedDecoding(EmbeddedEndpoint(weights, concurrency=size, failed=failed))
    check_installed(named)
    device, dtype = options["device"], options["dtype"]
    return lambda: TorchScorer(named, device=device, dtype=dtype, batch_size=size, failed=failed)


def _endpoint_scorer(endpoint: ScoringEndpoint) -> Scorer:
    """Make the scorer for a server, by its reply to /tokenize.

    llama.cpp reads `content` from the request, vLLM `prompt`. Only vLLM's reply has `max_model_len`.

    Raises:
        ModelNotFoundError: the server has no /tokenize, or does not serve the model.
        ModelError: the server cannot be reached, or refuses the request.
    """
    body = {"model": endpoint.model, "content": "a", "prompt": "a"}
    try:
        reply = endpoint.one(partial(endpoint.ask, "/tokenize"), body)
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
    """Raise InvalidArgumentError if a value cannot work, or `device` or `dtype` is given for a server."""
    check_argument("batch_size", options["batch_size"], Count)
    for name in ("max_response_tokens", "max_prompt_tokens"):
        check_argument(name, options[name], Count | None)
    check_argument("api_base", options["api_base"], ApiBase | None)
    check_argument("api_key", options["api_key"], ApiKey | None)
    check_argument("timeout", options["timeout"], Seconds)
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
