"""A network, and the pictures that every way of cutting it may use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

import secateur as sec
from benchmarks.pictures import Pictures, batches
from secateur.graph import Role


@dataclass(eq=False)
class Setting:
    """A network, its graph, and the pictures that all ways of cutting it may use.

    Attributes:
        model: in evaluation mode.
        graph: its channel graph.
        pictures: a few hundred, without augmentation.
        inner: cut only channels inside residual blocks, not the residual streams.
    """

    model: nn.Module
    graph: sec.ChannelGraph
    pictures: Pictures
    inner: bool

    @property
    def batches(self) -> list[Pictures]:
        """The pictures, in batches of 64."""
        return batches(self.pictures, 64)

    @property
    def left_alone(self) -> list[str]:
        """Names of the residual streams, unless they are cut too."""
        streams = [group.name for group in self.graph.prunable if len(group.roles(Role.PRODUCER)) > 1]
        return streams if self.inner else []
