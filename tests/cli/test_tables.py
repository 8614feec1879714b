from __future__ import annotations

from rich.console import Console

from secateur.cli.tables import before_after, side_by_side

BIG = {"top1": 0.9861, "params": 390_000, "macs": 4_900_000, "file_bytes": 1_570_000, "latency_ms": 0.8}
SMALL = {"top1": 0.9806, "params": 60_000, "macs": 980_000, "file_bytes": 250_000, "latency_ms": 0.2}


def drawn(table: object) -> list[list[str]]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in capture.get().splitlines()
    ]


def test_both_networks_and_the_factor_between_them_are_shown() -> None:
    lines = drawn(before_after(BIG, SMALL))
    assert ["top-1 accuracy", "98.61%", "98.06%", "-0.55 points"] in lines
    assert ["parameters", "390 k", "60.0 k", "÷6.5"] in lines
    assert ["MACs per example", "4.90 M", "980 k", "÷5.0"] in lines
    assert ["file", "1.57 MB", "250 kB", "÷6.3"] in lines
    assert ["latency", "0.800 ms", "0.200 ms", "÷4.0"] in lines


def test_figures_that_are_not_known_are_left_out() -> None:
    lines = drawn(before_after({"params": 2, "top1": None}, {"params": 1, "top1": None}))
    assert [line[0] for line in lines if len(line) == 4] == ["parameters"]
    rows = drawn(side_by_side([("a", {"params": 10}), ("b", {})]))
    assert ["a", "10"] in rows
    assert ["b", "–"] in rows


def test_networks_beside_each_other_are_compared_with_the_first() -> None:
    lines = drawn(side_by_side([("big", BIG), ("small", SMALL)]))
    assert lines[-1][:5] == ["small", "98.06%", "-0.55 points", "60.0 k", "÷6.5"] or any(
        line[:5] == ["small", "98.06%", "-0.55 points", "60.0 k", "÷6.5"] for line in lines
    )
