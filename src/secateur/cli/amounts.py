"""Limits as people type them."""

from __future__ import annotations

import re

import typer

_LETTERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_PATTERN = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>[kmgt%]?)", re.IGNORECASE)


def amount(text: str | float) -> float | int:
    """A share of the original that may remain, or an absolute amount.

    Args:
        text: ``0.5`` and ``50%`` are shares, ``1500000``, ``1500k`` and ``1.5M`` amounts.

    Returns:
        A float for a share, an integer for an amount.

    Raises:
        typer.BadParameter: it is neither.

    >>> amount("0.5"), amount("50%"), amount("1.5M"), amount("512")
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


def shape(text: str) -> tuple[int, ...]:
    """The shape of one example.

    Args:
        text: such as ``3,224,224`` or ``3x224x224``.

    Raises:
        typer.BadParameter: it is something else.

    >>> shape("3,224,224"), shape("1x8x8")
    ((3, 224, 224), (1, 8, 8))
    """
    parts = re.split(r"[,x]", text.replace(" ", ""))
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is no shape; give channels, height and width such as 3,224,224")
    return tuple(int(part) for part in parts)
