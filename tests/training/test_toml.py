from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import UsageError
from secateur.training.toml import dumps

names = st.text(min_size=1, max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text()
values = plain | st.lists(plain.filter(lambda value: value is not None), max_size=3)
tables = st.recursive(
    st.dictionaries(names, values, max_size=4),
    lambda inner: st.dictionaries(names, values | inner, max_size=4),
    max_leaves=8,
)


def without_none(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_none(item) for name, item in value.items() if item is not None}
    return value


@given(tables)
def test_the_standard_reader_gives_back_what_was_written(table: dict[str, object]) -> None:
    assert tomllib.loads(dumps(table)) == without_none(table)


def test_paths_are_written_as_text() -> None:
    assert tomllib.loads(dumps({"data": Path("a") / "b"})) == {"data": str(Path("a") / "b")}


def test_what_toml_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="type complex"):
        dumps({"weird": 1j})
