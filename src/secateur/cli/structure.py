"""The make of a network as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.cli.formats import count, size
from secateur.cli.outlook import reachable

_SHOWN = 20
_NAMES = 3
_WIDTH = 11


def structure(found: Mapping[str, Any], *, whole: bool = False) -> RenderableType:
    """Layers with their costs, groups with their couplings, and what is frozen and why.

    Args:
        found: what the job returned.
        whole: show every layer, not only the costliest.
    """
    cost, groups = found["cost"], found["groups"]
    prunable = [group for group in groups if group["frozen"] is None]
    channels = sum(group["channels"] for group in prunable)
    heading = Text(
        f"{found['model']} on inputs of {' x '.join(map(str, found['input']))}: {count(cost['params'])} "
        f"parameters, {count(cost['macs'])} MACs, {size(cost['bytes'])}\n"
        f"{channels:,} channels in {len(prunable)} prunable groups",
        style="bold",
    )
    parts: list[RenderableType] = [
        heading,
        reachable(found["forecast"]),
        _layers(found["layers"], cost, whole=whole),
        _groups(prunable),
    ]
    frozen = [group for group in groups if group["frozen"] is not None]
    if frozen:
        parts.append(_frozen(frozen))
    return Group(*parts)


def _layers(layers: Sequence[Mapping[str, Any]], cost: Mapping[str, int], *, whole: bool) -> Table:
    total_macs, total_params = max(cost["macs"], 1), max(cost["params"], 1)
    weight = {layer["name"]: layer["macs"] / total_macs + layer["params"] / total_params for layer in layers}
    shown = set(sorted(weight, key=lambda name: -weight[name])[: None if whole else _SHOWN])
    table = Table(title="layers", title_justify="left", box=box.SIMPLE_HEAD)
    _columns(table, "layer", "kind", right=("parameters", "MACs", "share"))
    table.add_column("of the MACs", min_width=_WIDTH)
    for layer in layers:
        if layer["name"] in shown:
            share = layer["macs"] / total_macs
            table.add_row(
                layer["name"],
                layer["kind"],
                count(layer["params"]),
                count(layer["macs"]),
                f"{share:.1%}",
                Bar(1.0, 0.0, share, width=_WIDTH),
            )
    rest = [layer for layer in layers if layer["name"] not in shown]
    if rest:
        macs, params = (sum(layer[key] for layer in rest) for key in ("macs", "params"))
        share = macs / total_macs
        label = f"{len(rest)} smaller ones"
        table.add_row(label, "--all", count(params), count(macs), f"{share:.1%}", "", style="dim")
    return table


def _groups(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="channel groups, prunable", title_justify="left", box=box.SIMPLE_HEAD)
    _columns(table, right=("channels", "params", "MACs"))
    table.add_column("hang on it", min_width=_WIDTH)
    _columns(table, "written by → read by")
    for group in groups:
        table.add_row(
            str(group["channels"]),
            f"{group['params']:.1%}",
            f"{group['macs']:.1%}",
            Bar(1.0, 0.0, group["macs"], width=_WIDTH),
            f"{_named(group['written_by'])} → {_named(group['read_by'])}",
        )
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


def _columns(table: Table, *left: str, right: Sequence[str] = ()) -> None:
    for heading in left:
        table.add_column(heading, overflow="fold")
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return (", ".join(names[:_NAMES]) or "nothing") + more
