"""Codings of labels: whatever the column, a label is read rightly, refused, or an error of its row."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personainfer.data import read_preferences
from personainfer.exceptions import ContradictionError, DataError, InvalidArgumentError
from personainfer.preferences.labels import LabelCoding, check_labels, find_coding, label_key

from ..builders import PAIR, read

NAMES = ("response_1", "response_2")
CODINGS: list[dict[object, str]] = [
    {1: "first", 2: "second"},
    {0: "first", 1: "second"},
    {1: "first", 0: "second"},
    {0: "first", 1: "second", 2: "tie"},
    {0: "tie", 1: "first", 2: "second"},
    {-1: "first", 0: "tie", 1: "second"},
    {1: "first", 0: "tie", -1: "second"},
    {1: "first", 2: "tie", 3: "second"},
    {1: "first", 2: "first", 3: "tie", 4: "second", 5: "second"},
    {"a": "first", "b": "second", "tie": "tie"},
    {"model_a": "first", "model_b": "second", "tie (bothbad)": "tie"},
    {"response_1": "first", "response_2": "second"},
]


@pytest.mark.parametrize("same", [1, 1.0, "1", "+1", " 1.0", "+1.00 ", "1."])
def test_equal_numbers_are_one_label(same: object) -> None:
    assert label_key(same) == "1"
    assert label_key("-0.0") == label_key("-0") == label_key("+0") == label_key(-0.0) == "0"
    assert (label_key("-1.0"), label_key("1.5"), label_key("+")) == ("-1", "1.5", "+")


@given(st.sampled_from(CODINGS), st.data())
def test_no_coding_is_read_the_wrong_way_round(
    coding: dict[object, str], data: st.DataObject
) -> None:
    """However few of its labels come first: what is read is right, or nothing is."""
    every = list(coding)
    seen = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=30))
    later = data.draw(st.permutations(every))
    try:
        found = find_coding("label", seen, NAMES)
        read = [(label, verdict_of(found, label)) for label in [*seen, *later]]
    except DataError:  # refused at the start, or a label that ended the run
        return
    assert all(verdict in (None, coding[label]) for label, verdict in read)


def verdict_of(coding: LabelCoding, label: object) -> str | None:
    """None where the label costs its row; what ends the run is raised."""
    try:
        return coding.verdict(label)
    except ContradictionError:
        raise
    except DataError:
        return None


@given(
    st.dictionaries(
        st.integers(-5, 5), st.sampled_from(["first", "second", "tie"]), min_size=1, max_size=6
    )
)
def test_labels_that_the_caller_explains_are_believed(labels: dict[int, Any]) -> None:
    """In any of the spellings that a number has in a file."""
    coding = find_coding("label", [], NAMES, {label_key(k): v for k, v in labels.items()})
    for label, verdict in labels.items():
        for spelling in (label, float(label), str(label), f" {label}.0"):
            assert coding.verdict(spelling) == verdict


@pytest.mark.parametrize("strength", [-3, -1.5, "-2", 0, 0.0, 2, "3"])
def test_signs(strength: object) -> None:
    coding = find_coding("preference_strength", [1, -1], NAMES)
    amount = float(str(strength))
    assert coding.verdict(strength) == ("first" if amount < 0 else "second" if amount else "tie")


def test_the_names_of_the_responses_tell_where_counting_starts() -> None:
    zero = find_coding("better", [0, 1, 1], ("response_0", "response_1"))
    assert (zero.verdict(0), zero.verdict("response_1")) == ("first", "second")
    shp = find_coding("labels", [0, 1], ("human_ref_A", "human_ref_B"))
    assert (shp.verdict(1), shp.verdict(0)) == ("first", "second")
    with pytest.raises(DataError, match="for certain"):
        find_coding("better", [1, 2], ("response_0", "response_1"))


@pytest.mark.parametrize("column", ["best", "choice", "chosen", "label", "winner", "preference"])
def test_one_value_does_not_tell_where_counting_starts(column: str) -> None:
    """Of two responses in a list, 1 is the second one, or the first."""
    rows = [{"prompt": f"q{n}", "responses": ["A", "B"], column: 1} for n in range(3)]
    with pytest.raises(DataError, match="for certain"):
        read_preferences(rows)
    told = read_preferences(rows, labels={1: "first"})
    assert [row.preference and row.preference.chosen for row in told] == ["A"] * 3


@pytest.mark.parametrize("labels", [(0,), (0, 1), (1, 0)])
def test_a_place_of_zero_tells_it(labels: tuple[int, ...]) -> None:
    rows = [{"prompt": f"q{n}", "responses": ["A", "B"], "best": n} for n in labels]
    found = [row.preference and row.preference.chosen for row in read_preferences(rows)]
    assert found == ["AB"[n] for n in labels]


@pytest.mark.parametrize("label", [True, False, "true"])
def test_true_says_nothing_of_two_responses(label: object) -> None:
    row = {"prompt": "q", "response_0": "A", "response_1": "B", "label": label}
    with pytest.raises(DataError, match="for certain"):
        read_preferences([row])


def test_a_number_among_words_costs_its_row() -> None:
    """It is of no known coding, and the words before it were not misread."""
    coding = find_coding("winner", ["a", "b"], ("response_a", "response_b"))
    with pytest.raises(DataError, match="none of") as caught:
        coding.verdict(1)
    assert not isinstance(caught.value, ContradictionError)


def test_a_stray_number_among_the_first_words_costs_its_row() -> None:
    coding = find_coding("winner", [*"ab" * 50, 3], ("response_a", "response_b"))
    assert (coding.verdict("a"), coding.verdict("b")) == ("first", "second")
    with pytest.raises(DataError, match="none of"):
        coding.verdict(3)
    with pytest.raises(DataError, match="for certain"):  # not a stray any more
        find_coding("winner", [*"ab" * 50, *[3] * 5], ("response_a", "response_b"))


@pytest.mark.parametrize("seen", [(0, 0), (0, 1), (-1, 1), (1, 2, 5, 7), ("x", "y"), (True,)])
def test_the_line_to_copy_has_to_be_filled_in(seen: tuple[object, ...]) -> None:
    """A guess that runs as it is would be copied: it was the wrong way round for half of the people."""
    rows = [
        {"prompt": f"q{n}", "response_a": "A", "response_b": "B", "label": label}
        for n, label in enumerate(seen)
    ]
    with pytest.raises(DataError, match="first, second or tie") as caught:
        read_preferences(rows)
    example = caught.value.example
    assert example is not None
    assert set(example.values()) == {"…"}
    with pytest.raises(InvalidArgumentError, match="is '…'"):
        read_preferences(rows, labels=example)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({0: "first", 1: "first"}, 'of none that it means "second"'),
        ({0: "second", 1: "second", 2: "tie"}, 'of none that it means "first"'),
        ({1: "first", "1": "second"}, "'1' twice"),
        ({1: "first", " 1.0": "second"}, "'1' twice"),
    ],
)
def test_labels_that_cannot_be_meant(labels: dict[Any, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        check_labels(labels)


LISTED = [
    {"prompt": "q", "responses": ["a", "b"], "label": label} for label in ("first", "second") * 3
]


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_label_prefers_neither_response(empty: str) -> None:
    """The two responses of a list have no columns, so an empty label could be taken for a column's name."""
    *found, odd = read(*LISTED, {**LISTED[0], "label": empty})
    assert found == [PAIR, PAIR.swapped] * 3
    assert "'label' is" in str(odd)
    row = {"text": "q", "completion_a": "a", "completion_b": "b"}
    votes = {"normal_worker_annotations": [empty], "expert_worker_annotations": ["B is better"]}
    assert read({**row, **votes}) == [PAIR.swapped]
