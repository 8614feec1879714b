"""Format a channel graph: what is coupled, what is frozen and why, what belongs to each group and branch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from secateur.formats import listed, table
from secateur.graph.channel_graph import ChannelGraph, Keep
from secateur.graph.groups import Group, Role

_SHOWN = 3


def describe(graph: ChannelGraph) -> str:
    """Format a table of the groups.

    Args:
        graph: the channel graph.

    Returns:
        Several lines of text: totals, prunable groups with the share of the network's parameters
        and MACs that belong to each, what is removed from attention where there is a choice, frozen groups
        with their reasons, residual branches with the same, parameters that no group holds with theirs, and
        what the network returns beside its outputs.
    """
    prunable = [(index, group) for index, group in enumerate(graph.groups) if group.prunable]
    shares = group_cost_shares(graph)
    rows: list[tuple[str, ...]] = [("group", "channels", "params", "MACs", "written by -> read by")]
    rows += [
        (group.name, str(group.channels), *(f"{share:.1%}" for share in shares[index, :2]), coupling(group))
        for index, group in prunable
    ]
    total = sum(group.channels for _, group in prunable)
    lines = [
        f"{total} channels in {len(prunable)} prunable groups; {graph.cost()}",
        "",
        *table(rows, left=(0, 4)),
    ]
    lines += _attentions(graph)
    reasons = Counter(str(group.reason) for group in graph.frozen)
    if reasons:
        lines += ["", "frozen:"]
        for reason in reasons:
            names = [f"{group.name} ({group.channels})" for group in graph.frozen if group.reason == reason]
            lines.append(f"  {_short(names)}: {reason}")
    if graph.branches:
        lines += ["", *_branches(graph)]
    if graph.wiring.ungrouped:
        lines += ["", "in no group:"]
        lines += [f"  {_short(names)}: {reason}" for reason, names in ungrouped_by_reason(graph).items()]
    if graph.wiring.program.left_out:
        lines += ["", "no outputs, since their tensors are not known:"]
        lines += [f"  output{path}: {name}" for path, name in graph.wiring.program.left_out.items()]
    return "\n".join(lines)


def _attentions(graph: ChannelGraph) -> list[str]:
    """Return what is removed from attention, and what else could be, where there is a choice."""
    found: dict[str, list[str]] = {}
    for item in graph.attentions:
        if item.others:
            others = " or ".join(f"'{other}'" for other in item.others)
            found.setdefault(f"{item.unit}; for others trace(attention={others})", []).append(item.module)
    return (
        ["", "attention:", *(f"  {_short(paths)}: {text}" for text, paths in found.items())] if found else []
    )


def ungrouped_by_reason(graph: ChannelGraph) -> dict[str, list[str]]:
    """List the parameters that no group holds, by the reason.

    Args:
        graph: the channel graph.
    """
    found: dict[str, list[str]] = {}
    for name, reason in graph.wiring.ungrouped.items():
        found.setdefault(reason, []).append(name)
    return found


def group_cost_shares(graph: ChannelGraph) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Compute, for each group, the share of every cost that would vanish with the whole group.

    Args:
        graph: the channel graph.

    Returns:
        Shape ``(groups, 4)``: parameters, MACs, bytes, activation memory, from 0 to 1.
    """
    widths = np.repeat(graph.widths[None, :], len(graph.groups), axis=0)
    np.fill_diagonal(widths, 0)
    now = graph.cost_model.evaluate(graph.widths).astype(np.float64)
    without = graph.cost_model.evaluate(widths).astype(np.float64)
    return (now - without) / np.maximum(now, 1.0)


def branch_shares(graph: ChannelGraph) -> dict[str, tuple[float, float]]:
    """Compute, for each residual branch, the share of the parameters and MACs that would vanish with it.

    Args:
        graph: the channel graph.

    Returns:
        Two numbers from 0 to 1, by the name of the branch.
    """
    now = graph.cost()
    left = {branch.name: graph.after(Keep({}, [branch.name])).cost() for branch in graph.branches}
    return {
        name: (1 - cost.params / max(1, now.params), 1 - cost.macs / max(1, now.macs))
        for name, cost in left.items()
    }


def _branches(graph: ChannelGraph) -> list[str]:
    """List residual branches: those that may be removed with their shares, the others with their reasons."""
    shares = branch_shares(graph)
    rows: list[tuple[str, ...]] = [("residual branch", "params", "MACs")]
    rows += [
        (branch.name, *(f"{share:.1%}" for share in shares[branch.name]))
        for branch in graph.branches
        if branch.prunable
    ]
    lines = table(rows) if len(rows) > 1 else []
    reasons = Counter(str(branch.reason) for branch in graph.branches if not branch.prunable)
    if reasons:
        lines += [*([""] if lines else []), "residual branches that stay:"]
    for reason in reasons:
        names = [branch.name for branch in graph.branches if branch.reason == reason]
        lines.append(f"  {_short(names)}: {reason}")
    return lines


def coupling(group: Group) -> str:
    """Format who writes a group's channels and who reads them."""
    writers = dict.fromkeys(member.module or member.tensor for member in group.roles(Role.PRODUCER))
    readers = dict.fromkeys(member.module or member.tensor for member in group.roles(Role.CONSUMER))
    return f"{_short(writers)} -> {_short(readers) or 'nothing'}"


def _short(names: Iterable[str]) -> str:
    return listed(list(names), _SHOWN)
