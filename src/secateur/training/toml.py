"""Settings as TOML: the standard library reads it but does not write it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from secateur.errors import UsageError


def dumps(table: Mapping[str, object]) -> str:
    """The table as TOML; ``tomllib.loads`` gives it back.

    Args:
        table: names to strings, numbers, truth values, paths, lists of these, or further tables.
            Entries that are ``None`` are left out, since TOML has no word for nothing.

    Returns:
        The text, with plain entries before tables.

    Raises:
        UsageError: a value has no form in TOML.

    >>> print(dumps({"seed": 1, "train": {"epochs": 3, "warmup": None}}))
    seed = 1
    <BLANKLINE>
    [train]
    epochs = 3
    <BLANKLINE>
    """
    return "\n".join(_table(table, ())) + "\n"


def _table(table: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(name)} = {_value(value)}" for name, value in table.items() if _is_plain(value)]
    for name, value in table.items():
        if isinstance(value, Mapping):
            inner = (*path, name)
            if lines:
                lines.append("")
            lines += [f"[{'.'.join(map(_key, inner))}]", *_table(value, inner)]
    return lines


def _is_plain(value: object) -> bool:
    return value is not None and not isinstance(value, Mapping)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _string(name)


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else _special(value)
        case str() | Path():
            return _string(str(value))
        case list() | tuple():
            return f"[{', '.join(_value(item) for item in value)}]"
    raise UsageError(f"a setting of type {type(value).__name__} cannot be written to config.toml: {value!r}")


def _special(value: float) -> str:
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _string(text: str) -> str:
    # JSON strings are TOML strings, but for the delete character, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
