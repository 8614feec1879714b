"""Terms: the time of one kind of operator, wherever it stands in a network."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from secateur.graph.groups import IntArray
from secateur.latency.surface import FloatArray, Surface


@dataclass(frozen=True, eq=False)
class Term:
    """The time of one kind of operator, at all places where it stands.

    Attributes:
        name: such as ``aten.conv2d.default``.
        kind: operators of one kind are calibrated together.
        modules: paths of the modules that run it, one a place.
        surface: its time as a function of the sizes of its axes.
        constants: of each place, the part of the size of each axis that no group owns, shape
            ``(places, axes)``.
        slots: of each place, how often each group's channels count, shape ``(places, axes, groups)``.
    """

    name: str
    kind: str
    modules: tuple[str, ...]
    surface: Surface
    constants: IntArray = field(repr=False)
    slots: IntArray = field(repr=False)

    def milliseconds(self, widths: IntArray) -> FloatArray:
        """Time of each place, shape ``(..., places)``, for widths ``(..., groups)``."""
        sizes = np.einsum("...g,pag->...pa", widths, self.slots) + self.constants
        return self.surface.at(sizes)
