"""Values that nobody would write, and how many of them hypothesis makes."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

surrogates = st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF)
controls = st.characters(max_codepoint=0x1F) | st.sampled_from("\x7f\x85\u2028\u2029\ufeff\u202e")
words = st.text(st.characters() | controls, max_size=40)
broken = st.text(st.characters() | surrogates | controls, max_size=20)
marks = st.sampled_from(
    [
        "{prompt}",
        "{first}{second}",
        "</prompt>",
        "<response_1>",
        "%s %(x)s",
        "\0",
        '"}]}',
        "\\u0000",
    ]
)
long = st.builds(
    lambda text, times: text * times, st.text(min_size=1, max_size=8), st.just(130_000)
)
text = words | marks | broken
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.builds(pow, st.just(10), st.just(5_000))  # Python refuses to print it
    | st.binary(max_size=20)
    | st.dates()
)
values = st.recursive(
    scalars | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
turns = st.lists(
    st.fixed_dictionaries({"role": text | st.sampled_from(["user", "assistant"]), "content": text}),
    max_size=3,
)
fields = text | turns | values
dicts = st.fixed_dictionaries(
    {}, optional={"prompt": fields, "chosen": fields, "rejected": fields, "id": values}
)
filled = st.text(st.characters() | controls, min_size=1, max_size=40)
usable = st.fixed_dictionaries(
    {"prompt": filled | marks, "chosen": filled | marks, "rejected": filled}
)
strange = (
    dicts
    | st.tuples(fields, fields, fields)
    | st.lists(fields, max_size=4)
    | st.dictionaries(text | st.integers(), values, max_size=3)
    | values
)
rows = st.booleans().flatmap(lambda common: usable if common else strange)


def generated(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """So many examples, the same in every run."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    while len(found) < count:  # a small space of examples is exhausted early
        collect()
    return found[:count]


# What stands in JSON that somebody else sent. `json.dumps` takes it all.
json_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), "²", "4" * 5_000, "\ud83d", "", "\0", 1e999])
    | text
)
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
) | st.sampled_from([0, 900]).map(lambda depth: _nested(depth))


def _nested(depth: int) -> Any:
    value: Any = "deep"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each part of a JSON value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [place, *(found for key, one in inner for found in _places(one, (*place, key)))]


def _with_value(whole: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = whole.copy()
    copy[place[0]] = _with_value(whole[place[0]], place[1:], value)
    return copy


def odd_in(whole: Any) -> st.SearchStrategy[Any]:
    """A JSON value of which one part, or all of it, is replaced by any other."""
    return st.builds(
        lambda place, value: _with_value(whole, place, value),
        st.sampled_from(_places(whole)),
        json_values,
    )
