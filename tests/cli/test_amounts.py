from __future__ import annotations

import pytest
import typer

from secateur.cli.amounts import amount, shape


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.25", 0.25),
        (".5", 0.5),
        ("1.0", 1.0),
        ("12.5%", 0.125),
        ("512", 512),
        ("2k", 2000),
        ("1.5G", 1_500_000_000),
    ],
)
def test_shares_are_floats_and_amounts_are_integers(text: str, value: float) -> None:
    result = amount(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize("text", ["half", "-0.5", "", "1/2", "5 x", "nan"])
def test_other_words_are_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="neither a share"):
        amount(text)


def test_shapes() -> None:
    assert shape("3, 32,32") == shape("3x32x32") == (3, 32, 32)
    for text in ("3,0,32", "a,b", ""):
        with pytest.raises(typer.BadParameter, match="is no shape"):
            shape(text)
