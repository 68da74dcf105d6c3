"""What calls take and cost: prices of tokens, the counts of a run, the budget.

`find_price` returns the price of a token, from litellm's bundled list or from the user.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..exceptions import BudgetExceededError, ModelError, ReplyError, TransportError
from ..records import Completion, Usage
from .openai_protocol import CUT_OFF


class Price(NamedTuple):
    """Prices in USD.

    Attributes:
        prompt: of a token of the prompt.
        completion: of a token of the completion.
        reasoning: what a token of reasoning costs more than another one of the completion.
        call: of a call, beside its tokens.
        longer: (tokens, prompt, completion, reasoning), with rising tokens: the prices of a call whose prompt
            has more tokens than these.
        written: what a token of the prompt costs more if the provider writes it into its cache of prompts, as
            a share of the price of one.
    """

    prompt: float
    completion: float
    reasoning: float = 0.0
    call: float = 0.0
    longer: tuple[tuple[float, float, float, float], ...] = ()
    written: float = 0.0

    def cost(
        self,
        prompt_tokens: float,
        completion_tokens: float,
        reasoning_tokens: float = 0,
        written_tokens: float = 0,
    ) -> float:
        """Return the USD of a call with these tokens.

        The `prompt_tokens` include those that are written into a cache, the `completion_tokens` those of
        reasoning.
        """
        prompt, completion, reasoning = self.prompt, self.completion, self.reasoning
        for tokens, *dearer in self.longer:
            if prompt_tokens > tokens:
                prompt, completion, reasoning = dearer
        asked = prompt_tokens + self.written * written_tokens
        tokens_cost = prompt * asked + completion * completion_tokens
        return tokens_cost + reasoning * reasoning_tokens + self.call

    def plain(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the USD of these tokens without what calls, reasoning, caches and long prompts cost more."""
        return self.prompt * prompt_tokens + self.completion * completion_tokens

    def most(self, prompt_tokens: int, max_tokens: int) -> float:
        """Return the most USD that a call with `max_tokens` of a reply can cost.

        The whole reply may be reasoning, and the whole prompt be written into a cache.
        """
        return self.cost(prompt_tokens, max_tokens, max_tokens, prompt_tokens)

    def times(self, factor: float) -> Price:
        """Return a price in which all prices are multiplied by `factor`."""
        longer = tuple(
            (tokens, p * factor, c * factor, r * factor) for tokens, p, c, r in self.longer
        )
        return self._replace(
            prompt=self.prompt * factor,
            completion=self.completion * factor,
            reasoning=self.reasoning * factor,
            call=self.call * factor,
            longer=longer,
        )


@dataclass(slots=True)
class Tally:
    """Counts that grow with a run; `usage` is their record.

    Attributes:
        price: of a token; None: it is not known.
        calls: requests that were sent, with those that were sent again.
        cached: replies that needed no call.
        retries: requests sent again after a failure of the connection or the endpoint.
        reasks: requests sent again because the reply could not be used, or was doubtful.
        prompt_tokens: as the endpoint counts them.
        completion_tokens: as the endpoint counts them, with those of reasoning.
        reasoning_tokens: those that are reasoning, as far as the endpoint tells.
        errors: requests that got no usable reply after all attempts.
        beyond: USD beyond the plain price of these tokens: dearer calls, tokens that no endpoint told.
    """

    price: Price | None
    calls: int = 0
    cached: int = 0
    retries: int = 0
    reasks: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    errors: int = 0
    beyond: float = 0.0

    def add(self, completion: Completion) -> float:
        """Count the tokens of one reply. Return its cost in USD; 0: the price is unknown."""
        asked, said = completion.prompt_tokens, completion.completion_tokens
        self.prompt_tokens += asked
        self.completion_tokens += said
        self.reasoning_tokens += completion.reasoning_tokens
        if self.price is None:
            return 0.0
        cost = self.price.cost(asked, said, completion.reasoning_tokens, completion.written_tokens)
        self.beyond += cost - self.price.plain(asked, said)
        return cost

    def most(self, prompt_tokens: int, max_tokens: int) -> float:
        """Return the most USD that a call can cost; 0: the price is unknown."""
        return self.price.most(prompt_tokens, max_tokens) if self.price else 0.0

    def assume(self, prompt_tokens: int, max_tokens: int, counted: float) -> float:
        """Count a call with the most that it can cost.

        Args:
            prompt_tokens: the most tokens of its prompt.
            max_tokens: the most tokens of its reply.
            counted: USD of it that are counted already.

        Returns:
            USD of the call: the most that it can cost, or `counted` if that is more.
        """
        most = self.most(prompt_tokens, max_tokens)
        self.beyond += max(0.0, most - counted)
        return max(most, counted)

    @property
    def usage(self) -> Usage:
        """The record of these counts. Its cost, in USD, is 0 without calls, else None without a price."""
        free = self.calls == 0
        cost = None
        if self.price is not None:
            # Not a sum over the calls, whose rounding would depend on their order.
            cost = self.price.plain(self.prompt_tokens, self.completion_tokens) + self.beyond
        return Usage(
            calls=self.calls,
            cached=self.cached,
            retries=self.retries,
            reasks=self.reasks,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            reasoning_tokens=self.reasoning_tokens,
            cost=0.0 if free else cost,
        )


class Budget:
    """Stops before the call that would exceed `usd`. Calls in flight count with the most that they can cost.

    Several models may share one. `reserve` and `settle` are for the background loop, the other methods for
    any thread.

    Args:
        usd: the most that may be spent.
        spent: what is spent already, in USD.
    """

    def __init__(self, usd: float, spent: float = 0.0) -> None:
        self.usd = usd
        self._spent = spent
        self._reserved = 0.0
        self._in_flight = 0
        self._orders: dict[str, float] = {}
        self._lock = threading.Lock()
        self._settled = asyncio.Event()

    @property
    def spent(self) -> float:
        """What was spent, in USD, without what calls in flight may cost. Orders that are charged count."""
        return self._spent + sum(self._orders.values())

    @property
    def taken(self) -> float:
        """USD that no other call can have: spent, or reserved for calls in flight."""
        return self.spent + self._reserved

    async def reserve(self, cost: float) -> float:
        """Reserve the most USD that a call can cost, and return them. Call `settle` when the call is done.

        If the budget is too low now, wait for calls in flight, which may cost less than was reserved for
        them.

        Raises:
            BudgetExceededError: the call could exceed the budget even when no other is in flight.
        """
        while not self._reserves(cost):
            self._settled.clear()
            await self._settled.wait()
        return cost

    def _reserves(self, cost: float) -> bool:
        with self._lock:
            if self.taken + cost <= self.usd:
                self._reserved += cost
                self._in_flight += 1
                return True
            if self._in_flight:
                return False
            raise BudgetExceededError(
                f"not sent: ${self.spent:.6f} of the budget of ${self.usd:g} is spent and this"
                f" call may cost ${cost:.6f}.",
                hint="Call again with a larger budget=; what is paid for comes from the cache.",
            )

    def reserve_more(self, cost: float) -> bool:
        """Reserve further USD for a call that has a reservation, if they are left now. Return whether so."""
        with self._lock:
            has_room = self.taken + cost <= self.usd
            self._reserved += cost if has_room else 0.0
        return has_room

    def settle(self, reserved: float, spent: float) -> None:
        """Replace the USD that were reserved for a call by those that it cost."""
        with self._lock:
            self._spent += spent  # first: a fork may begin between two of these lines
            self._in_flight -= 1
            # Rounding of many additions may leave a rest when nothing is in flight.
            self._reserved = self._reserved - reserved if self._in_flight else 0.0
        self._settled.set()

    def replace(
        self, orders: Iterable[str], by: Mapping[str, float], *, spent: float = 0.0
    ) -> None:
        """Count orders with what they took in place of what was charged for them. This may exceed the budget.

        Args:
            orders: the names of those that are no longer charged.
            by: what is counted instead: name -> USD.
            spent: USD of `by` that were counted as spent before. They are taken off there.
        """
        with self._lock:
            kept = {name: self._orders[name] for name in self._orders.keys() - {*orders}}
            self._spent -= spent
            self._orders = kept | {**by}

    def renew_in_fork(self) -> None:
        """Go on in a fork with what is left. What the parent's calls in flight may cost counts as spent."""
        self._spent, self._reserved, self._in_flight = self._spent + self._reserved, 0.0, 0
        self._lock, self._settled = threading.Lock(), asyncio.Event()

    def charge(self, what: str, orders: Mapping[str, float]) -> None:
        """Count orders, such as parts of a batch, with the most that they can cost: all of them, or none.

        Args:
            what: what is ordered, for the error.
            orders: name -> USD. An order that is charged already does not count a second time.

        Raises:
            BudgetExceededError: the orders may cost more than what is left beside the calls in flight.
        """
        with self._lock:
            new = {name: cost for name, cost in orders.items() if name not in self._orders}
            most, left = sum(new.values()), self.usd - self.taken
            if new and most > left:
                beside = " beside the calls in flight" if self._in_flight else ""
                raise BudgetExceededError(
                    f"not submitted: {what} may cost ${most:.6f}, and ${max(left, 0.0):g} of the budget is"
                    f" left{beside}.",
                    hint="Raise budget=, lower max_tokens=, or submit fewer rows; see estimate_cost.",
                )
            self._orders = self._orders | new  # a new dict: `spent` may read the old one meanwhile

    def give_back(self, orders: Iterable[str]) -> None:
        """Charge these orders, by their names, no more: they were not placed, or came to nothing."""
        self.replace(orders, {})


def most_tokens(body: bytes) -> int:
    """Return the most tokens of a prompt: one a byte, as tokenizers split digits and rare scripts."""
    return len(body)


def cost_is_unknown(used: Completion | None, failure: BaseException | None) -> bool:
    """Return whether a call may have cost an unknown amount. It is then counted with the most it can cost.

    A refusal costs nothing. A reply without token counts, or with zeros that cannot be right, need not be
    free.

    Args:
        used: the reply; None: there is none.
        failure: what the call raised; None: nothing.
    """
    if used is not None:
        said_something = bool(used.text) or used.finish_reason.lower() in CUT_OFF
        nothing_counted = used.completion_tokens == 0 and said_something
        return not used.counted or used.prompt_tokens == 0 or nothing_counted
    if isinstance(failure, TransportError):
        return failure.unanswered
    return not isinstance(failure, ModelError) or isinstance(failure, ReplyError)


_LIST = "model_prices_and_context_window_backup.json"
_MILLION = 1_000_000


# Fields of requests that cost nothing but tokens. Others may name a search, a tool or another model.
# These lengthen no reply, whatever they hold …
_PLAIN_FIELDS = frozenset(
    "top_k top_p top_a min_p typical_p tfs_z mirostat mirostat_tau mirostat_eta frequency_penalty"
    " presence_penalty repetition_penalty repeat_penalty repeat_last_n length_penalty no_repeat_ngram_size"
    " penalize_newline dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers"
    " xtc_probability xtc_threshold dynatemp_range dynatemp_exponent samplers do_sample temperature seed"
    " random_seed stop stop_token_ids ignore_eos bad_words allowed_token_ids logit_bias logprobs top_logprobs"
    " prompt_logprobs n_probs min_keep include_stop_str_in_output skip_special_tokens"
    " spaces_between_special_tokens return_token_ids return_tokens_as_token_ids user metadata labels"
    " request_id store safety_identifier safety_settings safe_prompt prompt_cache_key prompt_cache_retention"
    " cache_prompt cache_salt id_slot keep_alive num_ctx num_keep num_batch num_gpu main_gpu num_thread"
    " n_keep n_discard t_max_predict_ms chat_template add_generation_prompt continue_final_message"
    " add_special_tokens guided_json guided_regex guided_choice guided_grammar guided_decoding_backend"
    " guided_whitespace_pattern structured_outputs grammar json_schema regex ebnf format verbosity"
    " parallel_tool_calls service_tier usage transforms priority truncate_prompt_tokens max_input_tokens"
    " max_prompt_tokens max_context_tokens".split()
)
# … and these hold other fields, or may lengthen it.
_FREE_FIELDS = _PLAIN_FIELDS | frozenset(
    "options google chat_template_kwargs min_tokens think thinking thinking_budget thinking_config"
    " enable_thinking reasoning include_reasoning reasoning_format separate_reasoning reasoning_split"
    " preserve_thinking".split()
)
_PLAIN_TIERS = (None, "auto", "default", "on_demand", "standard", "standard_only")


class ReplySize(NamedTuple):
    """What the fields of requests say of the tokens that a reply may take beside those of `max_tokens`.

    Attributes:
        more: tokens, such as those of thinking; not every provider counts them in the limit.
        times: how many replies one call has.
        is_told: whether that is all. False: a field asks for thinking, or may ask for longer replies; they
            may take more tokens.
    """

    more: int = 0
    times: int = 1
    is_told: bool = True

    @classmethod
    def of(cls, fields: Mapping[str, Any], max_tokens: int) -> ReplySize:
        """Return what fields of a request say of a reply's size, by their names and those within them.

        A field that is not known may be a limit of the reply by another name, if its number is no plain
        limit below `max_tokens`.
        """
        return cls._of_one("", fields, max_tokens)

    @classmethod
    def _of_one(cls, name: str, value: Any, max_tokens: int) -> ReplySize:
        """Return what one field says, with those within it; `name` is written as `_spelled` does."""
        if name in _LENGTHENS_NOTHING or value in (0, None):
            return cls()
        is_told = not _THINKING.search(name)
        if isinstance(value, Mapping):
            within = [cls._of_one(_spelled(n), v, max_tokens) for n, v in value.items()]
        elif isinstance(value, list):
            within = [cls._of_one(name, one, max_tokens) for one in value]
        else:
            number = _number(value)
            asks_to_think = isinstance(value, str) and bool(_REASONING.search(value.lower()))
            whole = int(min(max(0.0, number), _MOST_TOKENS))
            times = max(1, whole) if name in _REPLIES else 1
            more = whole if _LENGTHS.search(name) else 0
            fits = 0 <= number <= max_tokens or times > 1
            return cls(more, times, is_told and fits and not asks_to_think)
        return cls(
            sum(one.more for one in within),
            math.prod(one.times for one in within),
            is_told and all(one.is_told for one in within),
        )

    def most(self, asked: int) -> int:
        """Return the most tokens of all replies of a call; `asked`: of one reply without these fields."""
        return self.times * (asked + self.more)


def _spelled(name: str) -> str:
    """Return the name of a field in one spelling: max_new_tokens, maxNewTokens and max-new-tokens are one."""
    return name.lower().replace("_", "").replace("-", "")


def _number(value: Any) -> float:
    """Return the number that a value is, also as text, which some servers read; else 0."""
    with suppress(ValueError, OverflowError):
        return float(value) if isinstance(value, int | float | str) else 0.0
    return math.inf if isinstance(value, int) else 0.0


_MOST_TOKENS = 2**53  # of a field: beyond it, prices could not be computed
_LENGTHENS_NOTHING = frozenset(map(_spelled, _PLAIN_FIELDS))
_REPLIES = frozenset(  # fields that ask for several replies
    "n bestof candidatecount numcandidates numcompletions numgenerations numresults"
    " numreturnsequences".split()
)
_LENGTHS = re.compile("budget|max.*(tok|len)|min(new)?tok|predict")  # of replies
_THINKING = re.compile("think|reason|budget|max.*(tok|len)|predict|effort")
_REASONING = re.compile("think|reason")


def find_price(
    model: str,
    prices: tuple[float, float] | None,
    fields: Mapping[str, Any] | None = None,
    place: str = "",
) -> Price | None:
    """Return the prices of a token: the user's, else those of litellm's list; None: they are not known.

    Args:
        model: the name, with or without a provider before it.
        prices: USD a million tokens, of the prompt and of the completion, by the user; None: see the list.
        fields: those that the user adds to each request. A `service_tier` has prices of its own. If a field
            may cost more than tokens, such as a search, the price is not known.
        place: the addresses and locations where the model is called, with spaces between them. Some cost
            more.
    """
    if prices is not None:
        prompt, completion = prices
        return Price(float(prompt) / _MILLION, float(completion) / _MILLION)
    told = _flat(fields)
    if not _FREE_FIELDS.issuperset(told):
        return None
    tier = told.get("service_tier")
    return _from_list(model, "" if tier in _PLAIN_TIERS else f"_{tier}", told, place)


def find_batch_price(
    model: str,
    prices: tuple[float, float] | None,
    fields: Mapping[str, Any] | None = None,
    place: str = "",
) -> Price | None:
    """Return the prices of a token in a batch: those of the list, else half of `find_price`; None: not known.

    With the user's own `prices`, they are half of these. With a `service_tier` that has prices of its own,
    they are those of single calls. Arguments are those of `find_price`.
    """
    single = find_price(model, prices, fields, place)
    if single is None or prices is not None:
        return single and single.times(0.5)
    told = _flat(fields)
    is_plain = told.get("service_tier") in _PLAIN_TIERS
    return _from_list(model, "_batches", told, place) if is_plain else single


def _flat(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields of a request with those of its own "extra_body", which Google's endpoint reads."""
    told = dict(fields or {})
    inner = told.pop("extra_body", None)
    return told | (inner if isinstance(inner, dict) else {})


def listed_provider(model: str) -> str:
    """Return who serves a model that litellm's list has without a provider in its name; "" for others."""
    return str((_listed().get(model) or {}).get("litellm_provider") or "")


def _from_list(model: str, ending: str, fields: Mapping[str, Any], place: str) -> Price | None:
    """Return the prices of a model in litellm's list; None: the list does not tell them.

    The list has not every price with an ending. If it lacks one, a batch costs half of the price without the
    ending. A dearer tier costs as many times that price as it does for a token of the prompt; a cheaper one
    costs as much.

    Args:
        model: the name.
        ending: that of the names of the prices that are wanted, such as "_batches"; "": plain prices.
        fields: those that the user adds to each request.
        place: see `find_price`.
    """
    listed = _listed()
    model = model.removeprefix("litellm/")
    entry = listed.get(model) or listed.get(model.split("/", 1)[-1]) or {}
    tiers = [tier for tier in entry.get("tiered_pricing") or () if "input_cost_per_token" in tier]
    if tiers:  # many models have no other prices: then those of the first one are the plain ones
        entry = {**min(tiers, key=lambda tier: tier["range"][0]), **entry}

    times = 0.5 if ending else 1.0
    if ending not in ("", "_batches"):
        plain, dearer = (entry.get(f"input_cost_per_token{end}") for end in ("", ending))
        if not (plain and dearer):
            return None
        times = max(1.0, float(dearer) / float(plain))

    def usd(name: str) -> float | None:
        found, plain = entry.get(name + ending), entry.get(name)
        if found is None and plain is not None:
            return float(plain) * times
        return None if found is None else float(found)

    prompt, completion = usd("input_cost_per_token"), usd("output_cost_per_token")
    # Each call of deep research makes any number of searches; a router adds the price of another model.
    if prompt is None or completion is None or _WITHOUT_PRICE.search(model):
        return None
    reasoning = max(0.0, (usd("output_cost_per_reasoning_token") or 0.0) - completion)
    longer: list[tuple[float, float, float, float]] = []
    for tier in tiers:
        asked, said = tier["input_cost_per_token"] * times, tier["output_cost_per_token"] * times
        thought = tier.get("output_cost_per_reasoning_token")
        beyond = reasoning if thought is None else max(0.0, thought * times - said)
        longer.append((float(tier["range"][0]), asked, said, beyond))
    for thousands in sorted(int(found[1]) for name in entry if (found := _LONGER.fullmatch(name))):
        above = f"_above_{thousands}k_tokens"
        asked, said = usd(f"input_cost_per_token{above}"), usd(f"output_cost_per_token{above}")
        longer.append((1000 * thousands, asked or prompt, said or completion, reasoning))
    call, written = _price_of_a_call(model, entry), _written(entry, fields)
    price = Price(prompt, completion, reasoning, call, tuple(sorted(longer)), written)
    return price.times(_uplift(entry, place))


def _uplift(entry: Mapping[str, Any], place: str) -> float:
    """Return by how much prices are multiplied at a place. Vertex has the plain ones at `global` alone."""
    host = _OPENAI_REGION.search(place)
    region = host and host[1].lower()
    names = [f"regional_processing_uplift_multiplier_{region}"]
    names += ["fedramp_uplift_multiplier"] if region == "gov" else []
    is_global = {*place.split()[1:]} == {"global"}  # of several variables, litellm takes one
    names += [] if is_global else ["regional_endpoint_uplift_multiplier"]
    return math.prod(float(entry.get(name) or 1.0) for name in names)


_OPENAI_REGION = re.compile(r"//(eu|us|gov)\.api\.openai\.com\b", re.IGNORECASE)
_WITHOUT_PRICE = re.compile("deep-research|model[-_]router")
_SEARCHES = re.compile("search-preview|search-api")
_LONGER = re.compile(r"input_cost_per_token_above_(\d+)k_tokens")


def _price_of_a_call(model: str, entry: Mapping[str, Any]) -> float:
    """Return the USD of a call beside its tokens. Some models search the web for each call."""
    call = float(entry.get("input_cost_per_request") or 0.0)
    if entry.get("litellm_provider") == "perplexity" or _SEARCHES.search(model):
        call += max((entry.get("search_context_cost_per_query") or {"none": 0.0}).values())
    return call


def _written(entry: Mapping[str, Any], fields: Mapping[str, Any]) -> float:
    """Return `Price.written`, which is one share in all tiers, for a request with these fields."""
    is_kept = fields.get("prompt_cache_retention") not in (None, "in_memory", "in-memory")
    ends = ("", "_above_12hr") if is_kept else ("",)  # to keep it for a day may cost more
    plain = float(entry.get("input_cost_per_token") or 0.0)
    written = max(float(entry.get(f"cache_creation_input_token_cost{end}") or 0.0) for end in ends)
    return max(0.0, written / plain - 1) if plain else 0.0


@cache
def _listed() -> dict[str, Any]:
    """Return litellm's price list, by the names of models, without importing litellm, which takes seconds.

    {}: litellm is not there, or has no list.
    """
    spec = importlib.util.find_spec("litellm")
    path = Path(spec.origin).with_name(_LIST) if spec and spec.origin else None
    if path is None or not path.is_file():
        return {}
    prices: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return prices
