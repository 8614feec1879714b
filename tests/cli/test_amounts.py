from __future__ import annotations

import pytest
import typer

from secateur.budget import Budget
from secateur.cli.amounts import limit, limits, shape, time
from secateur.errors import UsageError


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
    result = limit(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize("text", ["half", "-0.5", "", "1/2", "5 x", "nan"])
def test_other_words_are_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="neither a share"):
        limit(text)


def test_shapes() -> None:
    assert shape("3, 32,32") == shape("3x32x32") == (3, 32, 32)
    for text in ("3,0,32", "a,b", ""):
        with pytest.raises(typer.BadParameter, match="is not a shape"):
            shape(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("50%", 0.5),
        ("12ms", "12ms"),
        ("12.5", "12.5ms"),
        ("1", "1ms"),
        ("3 S", "3 s"),
    ],
)
def test_times_are_words_and_shares_floats(text: str, value: float | str) -> None:
    assert time(text) == value
    Budget(latency=time(text))


def test_all_of_the_time_is_no_limit() -> None:
    with pytest.raises(UsageError, match="latency: 1.0 is neither a share nor a time"):
        Budget(latency=time("1.0"))


@pytest.mark.parametrize("text", ["", "ms", "-3ms", "3 hours", "nan"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="nor a time"):
        time(text)


def test_budgets_in_words() -> None:
    assert limits(["macs=0.5 , channels=100", "latency=9ms"]) == {
        "macs": 0.5,
        "channels": 100,
        "latency": "9ms",
    }
    for text in ("", "macs", "bytes=3", "macs:0.5", "macs=0.5;params=1"):
        with pytest.raises(typer.BadParameter, match="is not a limit|neither a share"):
            limits([text])
    with pytest.raises(typer.BadParameter, match="latency is limited twice: 0.5 and 9ms"):
        limits(["latency=0.5,macs=0.5", "latency=9ms"])
