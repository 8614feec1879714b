"""Define how many channels each group may keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, model_validator

from secateur.settings import Settings

Bounds = int | float | Mapping[str, int | float] | None
"""One bound for every group, or bounds by group name or pattern."""


def _whole_number(value: object) -> object:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"must be an integer of at least 1, not {value!r}")
    return int(value)


def _multiple(value: object) -> object:
    return value if isinstance(value, str) and value == "auto" else _whole_number(value)


def _bound(value: object, where: str) -> int | float:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 1:
        return int(value)
    if isinstance(value, float | np.floating) and 0 < float(str(value)) <= 1:
        return float(str(value))
    raise ValueError(
        f"{where}{value!r} is neither a share (a float above 0 and at most 1) nor a number of channels (an "
        "integer of at least 1)"
    )


def _bounds(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _bound(limit, f"'{name}': ") for name, limit in value.items()}
    return None if value is None else _bound(value, "")


def _names(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


class Widths(Settings):
    """The widths that plans may leave to the groups of a network.

    Attributes:
        multiple_of: kept widths are multiples of it, or the whole group; ``"auto"`` takes those widths of
            each group that the device runs well, and needs a latency table.
        min_channels: every group keeps at least this many channels; a smaller group stays whole.
        floors: what must stay, at least: an integer of channels or a float share (rounded up) for every
            group, or a mapping of group names or patterns to such bounds. Where several apply, the strictest
            holds.
        caps: what may stay, at most, given in the same way (shares are rounded down).
        ignore: groups to leave alone, by name; or modules, by path or pattern (``"layer4.*"``): the channels
            that they, and all modules inside them, write or carry stay whole. To keep what a module reads as
            well, give it to ``trace``.
        only: groups or modules to cut, named in the same way; all others stay whole. All, if empty.
        depth: whether residual branches are removed too: ``"off"``, ``"auto"`` for branches and channels in
            one plan, or ``"only"`` for branches alone. A branch stays if ``ignore`` or ``floors`` name it, a
            module that contains it or that it contains, or a group within it; a floor for every group keeps
            no branch. Its groups keep all their channels or vanish with it.
        uniform_depth: remove all branches of a block together, or none, so that what remains is a stack of
            fewer equal blocks. A block is the smallest module that contains the branch and has a sibling with
            the same tensors by name, whose own name differs in digits only (``layers.3``). A branch in no
            such module is removed alone.
        uniform_widths: give all groups of one kind one width, so that a configuration with one number for
            all layers describes the network. Groups of one kind have names and tensors that differ in numbers
            only (``layers.3.mlp.up``), and equally many channels. With branches removed in the same plan, a
            kind counts with the damage in all of its layers.

    Raises:
        UsageError: a value is out of range.

    Example:
        >>> Widths(multiple_of=8, floors={"layer4.*": 0.5}, ignore="stem").ignore
        ('stem',)
    """

    multiple_of: Annotated[int | Literal["auto"], BeforeValidator(_multiple)] = 1
    min_channels: Annotated[int, BeforeValidator(_whole_number)] = 1
    floors: Annotated[int | float | Mapping[str, int | float] | None, BeforeValidator(_bounds)] = None
    caps: Annotated[int | float | Mapping[str, int | float] | None, BeforeValidator(_bounds)] = None
    ignore: Annotated[Sequence[str], BeforeValidator(_names)] = ()
    only: Annotated[Sequence[str], BeforeValidator(_names)] = ()
    depth: Literal["off", "auto", "only"] = "off"
    uniform_depth: bool = False
    uniform_widths: bool = False

    @model_validator(mode="after")
    def _has_depth(self) -> Widths:
        if self.uniform_depth and self.depth == "off":
            raise ValueError(
                "uniform_depth has no effect while depth is 'off'; set depth to 'auto' or 'only'"
            )
        return self

    def changed(self, **changes: Any) -> Widths:
        """Return these widths with some values changed, which are checked again."""
        return Widths(**{**dict(self), **changes})
