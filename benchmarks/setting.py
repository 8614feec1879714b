"""A network, and the images that every way of cutting it may use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

import secateur as sec
from benchmarks.images import Images, batches
from secateur.graph import Role


@dataclass(eq=False)
class Setting:
    """A network, its graph, and the images that all ways of cutting it may use.

    Attributes:
        model: in evaluation mode.
        graph: its channel graph.
        images: a few hundred, without augmentation.
        inner: cut only channels inside residual blocks, not the residual streams.
    """

    model: nn.Module
    graph: sec.ChannelGraph
    images: Images
    inner: bool

    @property
    def batches(self) -> list[Images]:
        """The images, in batches of 64."""
        return batches(self.images, 64)

    @property
    def left_alone(self) -> list[str]:
        """Names of the residual streams, unless they are cut too."""
        streams = [group.name for group in self.graph.prunable if len(group.roles(Role.PRODUCER)) > 1]
        return streams if self.inner else []
