"""Format reachable costs as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.formats import count, milliseconds, size

_ROWS: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "params": ("parameters", count),
    "macs": ("MACs", count),
    "bytes": ("file", size),
    "memory": ("activations", size),
    "channels": ("channels", count),
    "latency": ("latency", milliseconds),
}


def reachable_table(forecast: Mapping[str, Any]) -> RenderableType:
    """Format the least and the present amount of each quantity, and the amount after a plan.

    Args:
        forecast: as the job returns it.
    """
    table = Table(title="reachable", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    fields = [
        field
        for field in ("now", "least", "allowed", "planned")
        if any(reach[field] is not None for reach in forecast["reach"].values())
    ]
    for field in fields:
        table.add_column(field, justify="right", no_wrap=True)
    for name, reach in forecast["reach"].items():
        label, show = _ROWS[name]
        shown = [_cell(reach[field], reach["now"], show, field != "now") for field in fields]
        table.add_row(label, *shown)
    if forecast["impossible"]:
        return Group(table, Text(forecast["impossible"]))
    return table


def _cell(number: float | None, whole: float, show: Callable[[float], str], with_share: bool) -> str:
    if number is None:
        return ""
    share = f"  {number / whole:6.1%}" if with_share and whole else ""
    return show(number) + share
