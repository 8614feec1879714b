"""Show the structure of a network as a tree and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.cli.reachable_table import reachable_table
from secateur.cli.tree import Columns, Fitted, ModuleTree, colour
from secateur.formats import count, listed, size

_NAMES = 3
_WIDTH = 11


def structure(found: Mapping[str, Any], *, whole: bool = False) -> RenderableType:
    """Show modules with their costs, groups with their couplings, and what is frozen and why.

    Args:
        found: the result of the job.
        whole: show every layer, not only the costliest.
    """
    cost, groups = found["cost"], found["groups"]
    prunable = [group for group in groups if group["frozen"] is None]
    channels = sum(group["channels"] for group in prunable)
    heading = Text(
        f"{found['model']} on inputs of {_shape(found['input'])}: {count(cost['params'])} "
        f"parameters, {count(cost['macs'])} MACs, {size(cost['bytes'])}\n"
        f"{channels:,} channels in {len(prunable)} prunable groups",
        style="bold",
    )
    parts: list[RenderableType] = [
        heading,
        reachable_table(found["forecast"]),
        Fitted(ModuleTree(found, whole=whole).draw),
        Fitted(partial(_groups, prunable)),
    ]
    choices = [item for item in found["attention"] if item["others"]]
    if choices:
        parts.append(_attention(choices))
    if found["branches"]:
        parts.append(_branches(found["branches"]))
    frozen = [group for group in groups if group["frozen"] is not None]
    if frozen:
        parts.append(_frozen(frozen))
    if found["ungrouped"]:
        parts.append(_ungrouped(found["ungrouped"]))
    return Group(*parts)


def _shape(size: Sequence[int] | Mapping[str, Sequence[int]]) -> str:
    """Show the shape of one example, or of each input by name.

    >>> _shape([3, 8, 8]), _shape({"input_ids": [16], "timestep": []})
    ('3 x 8 x 8', 'input_ids 16, timestep 1')
    """
    if isinstance(size, Mapping):
        return ", ".join(f"{name} {_shape(part)}" for name, part in size.items())
    return " x ".join(map(str, size)) or "1"


def _branches(branches: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="residual branches", title_justify="left", box=box.SIMPLE_HEAD)
    _columns(table, "branch", right=("params", "MACs"))
    _columns(table, "")
    for branch in branches:
        part = f"part of {branch['part_of']}" if branch["part_of"] is not None else ""
        stays = "" if branch["frozen"] is None else f"cannot be removed: {branch['frozen']}"
        table.add_row(
            branch["name"],
            f"{branch['params']:.1%}",
            f"{branch['macs']:.1%}",
            "; ".join(filter(None, (part, stays))),
        )
    return table


def _groups(groups: Sequence[Mapping[str, Any]], room: Columns) -> Table:
    table = Table(title="channel groups, prunable", title_justify="left", box=box.SIMPLE_HEAD)
    _columns(table, "", right=("channels", "params", "MACs"))
    if room.kinds:
        table.add_column("MACs share", min_width=_WIDTH)
    _columns(table, "written by → read by")
    for number, group in enumerate(groups, start=1):
        table.add_row(
            Text(f"●{number}", style=colour(number)),
            str(group["channels"]),
            f"{group['params']:.1%}",
            f"{group['macs']:.1%}",
            *([Bar(1.0, 0.0, group["macs"], width=_WIDTH)] if room.kinds else []),
            f"{_named(group['written_by'])} → {_named(group['read_by'])}",
        )
    return table


def _attention(items: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="attention", title_justify="left", box=box.SIMPLE_HEAD)
    _columns(table, "modules", "removes", "or with --attention")
    by_unit: dict[tuple[str, str], list[str]] = {}
    for item in items:
        by_unit.setdefault((item["unit"], ", ".join(item["others"])), []).append(item["module"])
    for (unit, others), modules in by_unit.items():
        table.add_row(_named(modules), unit, others)
    return table


def _frozen(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="frozen", title_justify="left", box=box.SIMPLE_HEAD)
    _columns(table, "groups", right=("channels",))
    _columns(table, "because it")
    by_reason: dict[str, list[Mapping[str, Any]]] = {}
    for group in groups:
        by_reason.setdefault(group["frozen"], []).append(group)
    for reason, members in by_reason.items():
        channels = sum(group["channels"] for group in members)
        table.add_row(_named([group["name"] for group in members]), str(channels), reason)
    return table


def _ungrouped(entries: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="in no group", title_justify="left", box=box.SIMPLE_HEAD)
    _columns(table, "parameters", "because")
    for entry in entries:
        table.add_row(_named(entry["names"]), entry["reason"])
    return table


def _columns(table: Table, *left: str, right: Sequence[str] = ()) -> None:
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)


def _named(names: Sequence[str]) -> str:
    return listed(names, _NAMES) or "nothing"
