"""Show the modules of a network as a tree: costs, widths and channel groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.bar import Bar
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from secateur.formats import count

COLOURS = ("green", "blue", "yellow", "magenta", "cyan", "red", "bright_green", "bright_blue")
FROZEN = "bright_black"

_SHOWN, _LARGE = 20, 0.05
"""Number of layers that are shown, and the smallest share of a module that is shown as a whole."""
_WIDE, _MIDDLE = 100, 72  # columns of the terminal that are needed to show more
_MANY_GROUPS = 3
_HEADINGS = {"params": "parameters", "macs": "MACs"}


@dataclass
class Module:
    """A module, with the modules inside it and the sum of their costs.

    Attributes:
        name: its name within its parent.
        layer: its row of the job's ``layers``, if it has costs itself.
        children: by name, in the order of the network.
    """

    name: str
    layer: Mapping[str, Any] | None = None
    children: dict[str, Module] = field(default_factory=dict)

    def layers(self) -> Iterator[Mapping[str, Any]]:
        """Yield all layers in it, including itself."""
        if self.layer is not None:
            yield self.layer
        for child in self.children.values():
            yield from child.layers()

    def sum(self, key: str) -> int:
        """Sum a cost of all layers in it."""
        return sum(layer[key] for layer in self.layers())


def module_tree(name: str, layers: Sequence[Mapping[str, Any]]) -> Module:
    """Build the tree of a network.

    Args:
        name: of the network.
        layers: rows of the job's ``layers``.

    >>> root = module_tree("net", [{"name": "a.0", "macs": 2}, {"name": "a.1", "macs": 3}])
    >>> root.sum("macs"), list(root.children["a"].children)
    (5, ['0', '1'])
    """
    root = Module(name)
    for layer in layers:
        node = root
        for part in filter(None, layer["name"].split(".")):
            node = node.children.setdefault(part, Module(part))
        node.layer = layer
    return root


@dataclass(frozen=True)
class Columns:
    """Choose what is shown for the width of the terminal.

    Attributes:
        columns: width of the terminal.
    """

    columns: int

    @property
    def kinds(self) -> bool:
        """Return whether the classes of modules are shown."""
        return self.columns >= _WIDE

    @property
    def reasons(self) -> bool:
        """Return whether the tree shows why something is frozen; the text below it always does."""
        return self.columns >= _WIDE

    @property
    def costs(self) -> tuple[str, ...]:
        """List the costs that are shown."""
        return ("params", "macs") if self.columns >= _MIDDLE else ("macs",)

    @property
    def bar(self) -> int:
        """Return the width of a bar in columns."""
        return 10 if self.columns >= _WIDE else 6


@dataclass(frozen=True)
class Fitted:
    """Adapt a drawing to the width of the terminal.

    Attributes:
        draw: called with the available columns.
    """

    draw: Callable[[Columns], RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw for the width that rich passes."""
        yield self.draw(Columns(options.max_width))


class ModuleTree:
    """Draw the tree of a network, with as many columns as fit the terminal.

    Args:
        found: the result of the job behind ``secateur inspect``.
        whole: show every layer, not only the costliest.
    """

    def __init__(self, found: Mapping[str, Any], *, whole: bool = False) -> None:
        self._root = module_tree(found["model"], found["layers"])
        self._totals = {key: max(found["cost"][key], 1) for key in ("params", "macs")}
        self._marks = marks(found["groups"])
        self._shown = _costliest(found["layers"], self._totals, None if whole else _SHOWN)

    def draw(self, room: Columns) -> Table:
        """Draw the tree.

        Args:
            room: what fits the terminal.
        """
        table = Table(title="modules", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("module", no_wrap=True, overflow="ellipsis", min_width=12)
        if room.kinds:
            table.add_column("kind", overflow="ellipsis", no_wrap=True)
        table.add_column("channels", justify="right", no_wrap=True)
        for key in room.costs:
            table.add_column(_HEADINGS[key], justify="right", no_wrap=True)
            table.add_column("", width=room.bar)
        table.add_column("group", min_width=6)
        self._add(table, self._root, "", "", room)
        return table

    def _add(self, table: Table, node: Module, guide: str, below: str, room: Columns) -> None:
        """Add a line for a module, and lines for those of its children that are shown."""
        while node.layer is None and len(node.children) == 1 and guide:
            (only,) = node.children.values()
            node = Module(f"{node.name}.{only.name}", only.layer, only.children)
        folded = bool(node.children) and not self._any_shown(node)
        kind, group = "", Text()
        if folded:
            kind, group = f"{len(list(node.layers()))} layers", Text("--all", style="dim")
        elif node.layer:
            kind, group = node.layer["kind"], self._group(node.layer, room)
        style = "" if node.layer else "bold"
        costs = {key: node.sum(key) for key in self._totals}
        label = Text.assemble((guide, "dim"), (node.name, style))
        self._line(table, room, costs, [label, kind, _channels(node.layer), group])
        if not folded:
            self._add_children(table, node, below, room)

    def _add_children(self, table: Table, node: Module, below: str, room: Columns) -> None:
        """Add lines for a module's large children, and one line for all others."""
        children = list(node.children.values())
        hidden = [child for child in children if not (self._any_shown(child) or self._is_large(child))]
        if sum(1 for child in hidden for _ in child.layers()) == 1:
            hidden = []  # a line for the others would not be shorter
        shown = [child for child in children if child not in hidden]
        for number, child in enumerate(shown):
            last = number == len(shown) - 1 and not hidden
            branch, below_it = ("└ ", "  ") if last else ("├ ", "│ ")
            self._add(table, child, below + branch, below + below_it, room)
        if hidden:
            layers = [layer for child in hidden for layer in child.layers()]
            costs = {key: sum(layer[key] for layer in layers) for key in self._totals}
            label = Text(f"{below}└ {len(layers)} smaller ones", style="dim")
            self._line(table, room, costs, [label, "", "", Text("--all", style="dim")])

    def _line(
        self, table: Table, room: Columns, costs: Mapping[str, int], words: Sequence[RenderableType]
    ) -> None:
        """Add a line with label, kind, widths, groups and costs to the table."""
        label, kind, channels, group = words
        cells = [label, kind, channels] if room.kinds else [label, channels]
        for key in room.costs:
            cells += [count(costs[key]), Bar(1.0, 0.0, costs[key] / self._totals[key], width=room.bar)]
        table.add_row(*cells, group)

    def _any_shown(self, node: Module) -> bool:
        return any(layer["name"] in self._shown for layer in node.layers())

    def _is_large(self, node: Module) -> bool:
        """Return whether a module of small layers is large as a whole."""
        return bool(node.children) and any(
            node.sum(key) >= _LARGE * total for key, total in self._totals.items()
        )

    def _group(self, layer: Mapping[str, Any], room: Columns) -> Text:
        """List the groups that a layer writes or has parameters for, and why frozen ones are frozen."""
        found = self._marks.get(layer["name"], ())
        text = Text()
        for number, (mark, colour, reason) in enumerate(found[:_MANY_GROUPS]):
            text.append(" " if number else "")
            text.append(mark, style=colour)
            if reason is not None and room.reasons:
                text.append(f": {reason}", style=FROZEN)
        if len(found) > _MANY_GROUPS:
            text.append(f" and {len(found) - _MANY_GROUPS} more", style="dim")
        return text


Mark = tuple[str, str, str | None]


def marks(groups: Sequence[Mapping[str, Any]]) -> dict[str, list[Mark]]:
    """List, for each module, the groups that it writes or has parameters for.

    Args:
        groups: the result of the job.

    Returns:
        A mark, a colour and, where the group is frozen, the reason.

    >>> group = {"name": "a", "frozen": None, "written_by": ["a"], "carried_by": ["a", "b"]}
    >>> marks([group])
    {'a': [('●1', 'green', None)], 'b': [('●1', 'green', None)]}
    """
    found: dict[str, list[Mark]] = {}
    number = 0
    for group in groups:
        if group["frozen"] is None:
            number += 1
            mark: Mark = (f"●{number}", colour(number), None)
        else:
            mark = ("frozen", FROZEN, group["frozen"])
        for module in dict.fromkeys((*group["written_by"], *group["carried_by"])):
            if mark not in found.setdefault(module, []):
                found[module].append(mark)
    return found


def colour(number: int) -> str:
    """Choose the colour of a prunable group.

    Args:
        number: of the group, from 1.
    """
    return COLOURS[(number - 1) % len(COLOURS)]


def _costliest(
    layers: Sequence[Mapping[str, Any]], totals: Mapping[str, int], most: int | None
) -> frozenset[str]:
    weight = {layer["name"]: sum(layer[key] / total for key, total in totals.items()) for layer in layers}
    return frozenset(sorted(weight, key=lambda name: -weight[name])[:most])


def _channels(layer: Mapping[str, Any] | None) -> str:
    """Format the numbers of channels that a layer reads and writes."""
    if layer is None or layer["out"] is None:
        return "" if layer is None or layer["in"] is None else f"{layer['in']:,} →"
    return f"{layer['out']:,}" if layer["in"] is None else f"{layer['in']:,} → {layer['out']:,}"
