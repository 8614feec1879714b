"""Score residual branches by how much they change the direction of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer, register
from secateur.criteria.hooks import attach_outputs
from secateur.criteria.layout import BranchOutput
from secateur.errors import UsageError
from secateur.ranks import Ranks

_WHY = "block-influence scores residual branches only"


@register
class BlockInfluence(Criterion):
    """One less the cosine similarity of the stream before and after a residual branch, per example.

    Block influence of Men et al., "ShortGPT" (arXiv 2403.03853, equation 1), for single branches, with each
    example as one vector. Channels are not scored. A branch is left out if its stream cannot be
    observed: its first module must read the stream itself, and its last one return what is added.
    """

    name: ClassVar[str] = "block-influence"
    needs: ClassVar[Needs] = Needs.FORWARD
    scores_channels: ClassVar[bool] = False
    scores_branches: ClassVar[bool] = True

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that averages over examples."""
        return InfluenceObserver(network)


class InfluenceObserver(Observer):
    """Average the influence of each branch over examples.

    Args:
        network: the network and its layout.
    """

    def __init__(self, network: ObservedNetwork) -> None:
        self._network = network
        self._streams: dict[str, Tensor] = {}
        self._sums = torch.zeros(len(network.layout.branches), dtype=torch.float64)
        self._counts = torch.zeros(len(network.layout.branches), dtype=torch.float64)

    def attach(self) -> list[RemovableHandle]:
        """Hook the modules that read the streams and those that return the values of branches."""
        network = self._network
        if not network.layout.branches:
            raise UsageError("block-influence scores residual branches, and this network has none to remove")
        handles = [
            network.modules[place.module].register_forward_pre_hook(
                self._stream_hook(place.branch, place.argument), with_kwargs=True
            )
            for place in network.layout.streams
        ]
        return handles + attach_outputs(network.modules, network.layout, self._output)

    def _stream_hook(self, branch: str, argument: int | str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A copy, since the network may add in place.
            self._streams[branch] = (
                (args[argument] if isinstance(argument, int) else kwargs[argument]).detach().clone()
            )

        return hook

    def _output(self, place: BranchOutput, output: Tensor, value: Tensor) -> None:
        before = self._streams.pop(place.branch, None)
        if before is None or before.shape != value.shape or not len(value):
            return
        after = before + value.detach()
        similar = torch.cosine_similarity(before.flatten(1).double(), after.flatten(1).double())
        number = self._network.layout.branches.index(place.branch)
        self._sums[number] += float((1 - similar).sum())
        self._counts[number] += len(similar)

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Compute the mean influence of each branch; NaN where none was seen."""
        layout = self._network.layout
        sums, counts = ranks.all_reduce_sum(self._sums), ranks.all_reduce_sum(self._counts)
        scores = torch.cat([torch.zeros(layout.channels, dtype=torch.float64), sums / counts])
        return scores, {group.name: _WHY for group in layout.groups}
