"""Which texts go through a model together: none is lost, and padding does not grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from personainfer.scoring.interfaces import TokenText
from personainfer.scoring.transformers_scorer import batches, common_starts, length_groups

TOKENS = st.lists(st.integers(1, 3), min_size=1, max_size=8).map(tuple)
TEXTS = st.lists(st.builds(TokenText, TOKENS, TOKENS), max_size=30)


@given(TEXTS, st.integers(1, 9))
def test_each_text_is_in_one_batch(texts: list[TokenText], size: int) -> None:
    found = list(batches(texts, size))
    assert sorted(place for batch in found for place in batch) == list(range(len(texts)))
    assert all(0 < len(batch) <= size for batch in found)


@given(st.lists(TOKENS, min_size=1, max_size=12, unique=True))
def test_a_common_start_is_shared_and_never_the_whole(prefixes: list[tuple[int, ...]]) -> None:
    starts = common_starts(prefixes)
    assert not starts or starts.keys() == set(prefixes)
    assert all(prefix[: len(start)] == start != prefix for prefix, start in starts.items())
    if starts:  # worth a pass of its own
        assert len(set(starts.values())) < len(prefixes)


def test_what_stands_before_the_personas_of_a_prompt_is_read_once() -> None:
    prompts = [tuple(range(start, start + 50)) for start in (0, 100)]
    prefixes = [(*prompt, persona, 7) for prompt in prompts for persona in (300, 301, 302)]
    starts = common_starts(prefixes)
    assert [starts[prefix] for prefix in prefixes] == [p for p in prompts for _ in range(3)]
    texts = [TokenText(prefix, (1,)) for prefix in prefixes]
    assert sorted(map(sorted, batches(texts[::2] + texts[1::2], 4))) == [[0, 1, 3], [2, 4, 5]]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(0, 200))
def test_rows_of_different_length_are_apart_where_that_saves_tokens(
    lengths: list[int], pass_cost: int
) -> None:
    groups = length_groups(lengths, pass_cost)
    assert sorted(place for group in groups for place in group) == list(range(len(lengths)))
    cost = sum(len(g) * max(lengths[i] for i in g) for g in groups) + pass_cost * (len(groups) - 1)
    assert cost <= len(lengths) * max(lengths)
