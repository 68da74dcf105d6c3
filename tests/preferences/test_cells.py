"""JSON from outside is counted before it is parsed."""

from __future__ import annotations

import json
import re
import sys
from decimal import Decimal
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import personainfer as pi
from personainfer.exceptions import DataError, InvalidArgumentError
from personainfer.preferences import cells
from personainfer.preferences.cells import (
    TooManyValuesError,
    bounded_json,
    is_null,
    parse_cell,
    read_json,
)
from personainfer.users.groups import texts_of

from ..builders import examples

PACKAGE = Path(pi.__file__).parent


def test_values_are_counted_and_signs_within_texts_are_not() -> None:
    prose = json.dumps({"prompt": 'a, b, "c, [d], {e}" \\' * 100})
    assert read_json(prose, 8) == json.loads(prose)
    assert read_json(prose.encode(), 8) == json.loads(prose)
    with pytest.raises(TooManyValuesError, match="more than 4 values"):
        read_json("[[],[],[],[]]", 4)
    with pytest.raises(TooManyValuesError):
        bounded_json(b'{"a": {}, "b": {}, "c": {}}', 4)


def test_a_printed_value_that_holds_too_many_values_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells, "_MOST_PRINTED", 5)
    with pytest.raises(DataError, match=r"'choices' .*more than 5 values"):
        parse_cell("choices", repr(["a"] * 9))


@pytest.mark.parametrize(
    "null",
    [
        *(np.array(["nan"], dtype=kind)[0] for kind in ("f2", "f4", "f8", "g", "c8")),
        np.array("nan", dtype="f4"),
        np.datetime64("NaT"),
        np.timedelta64("NaT", "s"),
        Decimal("NaN"),
        float("nan"),
        pd.NaT,
        pd.NA,
        None,
    ],
    ids=repr,
)
def test_what_is_missing_is_null_in_every_library(null: object) -> None:
    assert is_null(null)
    # A user whose group is missing is in no group.
    assert texts_of("groups", {"ann": "vegan", "bob": null}) == {"ann": "vegan"}
    assert texts_of("groups", {1: null, "1": "vegan"}) == {"1": "vegan"}


def test_a_user_of_groups_as_a_number_and_as_text_is_named() -> None:
    for name in ("groups", "questions"):
        with pytest.raises(InvalidArgumentError, match=f"{name}= has '1' twice"):
            texts_of(name, {1: "a", "1": "b"})


@pytest.mark.parametrize(
    "value",
    [
        *(
            "nan",
            "",
            0,
            0.0,
            False,
            [],
            {},
            Decimal(0),
            Decimal("Infinity"),
            np.inf,
            np.str_("nan"),
        ),
        *(np.float32(0), np.int64(0), np.bool_(False), np.datetime64("2000"), np.array([np.nan])),
        np.zeros(1, dtype=[("a", float, 3)])[0],
    ],
    ids=repr,
)
def test_other_values_are_not_null(value: object) -> None:
    assert not is_null(value)


VALUES = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def size(value: object) -> int:
    """How many values a value holds, with itself."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(size, inner))


@examples(40)
@given(VALUES)
def test_what_has_fewer_values_is_read_and_what_has_many_is_not(value: object) -> None:
    text = json.dumps(value)
    assert read_json(text, 5 * size(value)) == value
    if size(value) > 3:
        with pytest.raises(TooManyValuesError):
            read_json(text, size(value) // 2 - 1)


def test_what_is_nested_without_end_is_an_error_of_values() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        read_json("[" * 100_000)


# Modules that parse JSON which this process or this package wrote.
OWN_JSON = {
    "batch/provider.py",
    "cli/options.py",
    "data/arrow_columns.py",
    "data/table_reader.py",
    "evaluation/benchmark.py",
    "local/llamacpp_server.py",
    "personas/costs.py",
    "personas/prompts.py",
    "personas/protected_attributes.py",
    "preferences/cells.py",
    "preferences/recognition.py",
    "preferences/turns.py",
    "testing/fake_llm.py",
}


def test_json_of_others_is_read_by_one_module() -> None:
    """But for the answers of endpoints: the transports read no more than 4 MB."""
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bjson\.load", path.read_text(encoding="utf-8"))
    }
    assert {path for path in found if not path.startswith("llm/")} <= OWN_JSON


def test_rows_are_read_while_another_thread_imports_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", ModuleType("pandas"))  # which has no names yet
    rows = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    assert [row.error for row in pi.data.read_preferences(rows)] == [None]
