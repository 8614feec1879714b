"""Parse limits and shapes as users write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import typer

_LETTERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_PATTERN = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[kmgt%]?)", re.IGNORECASE)


def limit(text: str | float) -> float | int:
    """Parse a share of the original that may remain, or an absolute amount.

    Args:
        text: ``0.5`` and ``50%`` are shares, ``1500000``, ``1500k`` and ``1.5M`` amounts.

    Returns:
        A float for a share, an integer for an amount.

    Raises:
        typer.BadParameter: it is neither.

    >>> limit("0.5"), limit("50%"), limit("1.5M"), limit("512")
    (0.5, 0.5, 1500000, 512)
    """
    found = _PATTERN.fullmatch(str(text).strip())
    if not found:
        raise typer.BadParameter(f"{text!r} is neither a share (0.5, 50%) nor an amount (1500000, 1.5M)")
    number, unit = found["number"], found["unit"].lower()
    if unit == "%":
        return float(number) / 100
    if not unit and "." in number:
        return float(number)
    return round(float(number) * _LETTERS[unit]) if unit else int(number)


def time(text: str | float) -> float | str:
    """Parse a share of the time that may remain, or a time.

    Args:
        text: ``0.5`` and ``50%`` are shares, ``12ms``, ``12.5 ms`` and ``800us`` times; a number above 1
            without a unit is in milliseconds.

    Returns:
        A float for a share, a string for a time.

    Raises:
        typer.BadParameter: it is neither.

    >>> time("0.5"), time("12ms"), time("12.5"), time("50%")
    (0.5, '12ms', '12.5ms', 0.5)
    """
    from secateur.budget.limits import TIME

    words = str(text).strip().lower()
    if TIME.fullmatch(words):
        return words
    found = _PATTERN.fullmatch(words)
    if not found or found["unit"] not in ("", "%"):
        raise typer.BadParameter(f"{text!r} is neither a share (0.5, 50%) nor a time (12ms, 800us)")
    number = float(found["number"])
    if found["unit"]:
        return number / 100
    return number if number <= 1 and "." in words else f"{words}ms"


def limits(words: Sequence[str]) -> dict[str, float | str]:
    """Parse a budget in one word or several.

    Args:
        words: such as ``macs=0.5`` and ``latency=12ms``; one word may hold several, with commas between.

    Raises:
        typer.BadParameter: it is something else, or limits a quantity twice.

    >>> limits(["macs=0.5,params=1M", "latency=12ms"])
    {'macs': 0.5, 'params': 1000000, 'latency': '12ms'}
    """
    from secateur.budget.limits import Budget

    parsers: dict[str, Callable[[str], float | str]] = dict.fromkeys(Budget.model_fields, limit)
    parsers["latency"] = time
    found: dict[str, float | str] = {}
    for word in (part.strip() for text in words for part in text.split(",")):
        name, equals, value = word.partition("=")
        if not equals or name not in parsers:
            raise typer.BadParameter(
                f"{word!r} is not a limit: write one of {', '.join(parsers)}, =, and a share or an amount, "
                "such as macs=0.5 or latency=12ms"
            )
        if name in found:
            raise typer.BadParameter(f"{name} is limited twice: {found[name]} and {value}; leave one out")
        found[name] = parsers[name](value)
    return found


def shape(text: str) -> tuple[int, ...]:
    """Parse the shape of one example.

    Args:
        text: such as ``3,224,224`` or ``3x224x224``.

    Raises:
        typer.BadParameter: it is something else.

    >>> shape("3,224,224"), shape("1x8x8")
    ((3, 224, 224), (1, 8, 8))
    """
    parts = re.split(r"[,x]", text.replace(" ", ""))
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a shape; give channels, height and width such as 3,224,224"
        )
    return tuple(int(part) for part in parts)
