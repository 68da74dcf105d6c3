"""What the folder of a batch may decide about the LLM that collects it, and what the caller has to name.

Somebody else may have written the folder. They must not choose where a key goes or what calls cost, and
their replies must not get into the user's cache, whose replies are trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api_keys import StoredText, as_stored, shown_address
from ..exceptions import InvalidArgumentError
from ..llm.client import LLM, MOST_CANDIDATES, stored_options
from ..local.cache import ReplyCache, default_cache_dir
from ..local.weights import check_stored_model
from .costs import submitter
from .job_folder import PersonaBatch
from .provider import LiteLLMBatches


def llm_of(
    batch: PersonaBatch, given: Mapping[str, Any], *, calls: bool = False, pays: bool = False
) -> LLM:
    """Make the LLM that reads the replies of a batch, and calls the model for what is missing.

    If the user's cache was off, or another process made the folder, the cache of this LLM is the one in the
    folder (`PersonaBatch.replies_folder`). What this process downloads itself may also go to the user's, see
    `own_cache`.

    If another process submitted the batch, the LLM takes from the folder only the options that are part of a
    request. Address, cache directory, limits, prices and numbers of attempts are those in `given`, or the
    defaults. The model of single calls, and options that make them cost more than usual, must be in `given`.
    The folder's budget holds, because a budget can only forbid.

    Args:
        batch: the batch.
        given: the options that the caller names, "model" among them. They replace those of the folder.
        calls: whether the LLM calls the model for requests that the batch did not answer.
        pays: whether the budget also pays for the calls of a judge.

    Raises:
        InvalidArgumentError: `given` names another model; or an option in it is wrong; or another process
            submitted the batch, and `given` lacks an address, a model or an option that has to be given; or
            another process submitted the batch, and the name of the model says from where it is loaded, to
            which address it is sent, or a provider to which litellm may sign in.
    """
    options, given, here = dict(batch.llm_options), dict(given), batch.submitted_here
    named = given.pop("model", None)
    _check_model(batch, named, needed=calls and not here)
    # Marked, so that the table says so, too: it is not called again unless the caller names it.
    model = batch.model if here or named else StoredText(batch.model)
    if not here:
        check_stored_model(batch.model, batch.path)
        stored = options.get("api_base")
        if stored is not None and given.get("api_base") is None:
            raise InvalidArgumentError(
                f"{batch.path} was submitted to {shown_address(str(stored))!r}.",
                hint="Your key would go there: give api_base= again.",
                argument="api_base",
            )
        if named is None:
            _check_provider(batch, given.get("api_base"))
        if calls:
            _check_candidates(batch)
        has_budget = "budget" in options and (calls or pays)
        held = {"budget": options["budget"]} if has_budget else {}
        options = stored_options(as_stored(options), given, batch.path, calls=calls) | held
    options |= given
    if not batch.made_here or not options.get("cache", True):
        options |= {"cache": True, "cache_dir": batch.replies_folder}
    made = LLM(model, **options)
    account = submitter(batch)
    if here and account is not None and "budget" not in given:
        made.account = account
    return made


def _check_model(batch: PersonaBatch, given: str | None, *, needed: bool) -> None:
    if given == batch.model or (given is None and not needed):
        return
    problem = "" if given is None else f", not to {given!r:.200}"
    raise InvalidArgumentError(
        f"{batch.path} was submitted to the model {shown_address(batch.model)!r}{problem}.",
        hint="Whoever made the folder would decide which model you pay for: give model= again."
        if given is None
        else "Submit the data to another folder for another model.",
        argument="model",
    )


def _check_provider(batch: PersonaBatch, api_base: str | None) -> None:
    """Raise InvalidArgumentError if the folder names a provider that has no batches through litellm.

    litellm signs in to some when a model is made.
    """
    name = batch.model.strip()  # as `LLM` reads it
    by_litellm = api_base is None or name.startswith("litellm/")
    provider, slash, _ = name.removeprefix("litellm/").partition("/")
    if by_litellm and slash and provider not in LiteLLMBatches.PROVIDERS:
        raise InvalidArgumentError(
            f"{batch.path} names the model {shown_address(batch.model)!r}.",
            hint="A file does not decide what is called: name the model yourself (model=).",
            argument="model",
        )


def _check_candidates(batch: PersonaBatch) -> None:
    if batch.candidates > MOST_CANDIDATES:
        raise InvalidArgumentError(
            f"{batch.path} was made with candidates={batch.candidates}.",
            hint="Whoever made the folder would decide how many calls you pay for: leave out ask_missing="
            f" and call retry_errors(table, candidates={batch.candidates}, …) for what is missing.",
            argument="ask_missing",
        )


def own_cache(batch: PersonaBatch, cache_dir: str | Path | None) -> ReplyCache | None:
    """Return the user's cache, which gets what this process downloads; None: it is the LLM's, or is off.

    Args:
        batch: the batch.
        cache_dir: the folder that the caller named; None: that of the batch, if this process submitted it,
            or the default one.

    Raises:
        CacheError: the cache cannot be opened.
    """
    if batch.made_here or not batch.llm_options.get("cache", True):
        return None
    place = cache_dir or (batch.llm_options.get("cache_dir") if batch.submitted_here else None)
    return ReplyCache(Path(place) if place else default_cache_dir())
