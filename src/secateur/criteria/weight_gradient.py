"""Score channels by a Taylor expansion in their weights, from the parameter gradients of training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from secateur.criteria.base import Criterion, Needs, ObservedNetwork, Observer, register
from secateur.criteria.gates import wide
from secateur.criteria.hooks import attach
from secateur.criteria.weight import rows_of, tensor_of
from secateur.errors import UsageError
from secateur.graph.groups import Member, Role
from secateur.ranks import Ranks


@register
class TaylorWeight(Criterion):
    """Mean over steps of the squared sum, over the weights that produce a channel, of w * dw.

    After the weight form of Molchanov et al., "Importance Estimation for Neural Network Pruning"
    (CVPR 2019, arXiv 1906.10771), with the weights of a channel expanded jointly: the sum is
    taken before the square, over all layers that produce the channel. The gradient dw is that of
    the whole batch as one backward pass computes it, so the score depends on the batch size
    (unlike the criteria per example) and on the scale of the loss.
    """

    name = "taylor-weight"
    needs = Needs.BACKWARD

    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that hooks the gradients of the producing weights."""
        return WeightGradientObserver(network)


class WeightGradientObserver(Observer):
    """Sum the squared sums of weight times gradient over backward passes.

    The gradient of each backward pass is read before it is accumulated, so neither
    ``zero_grad`` nor accumulation over several passes matters.

    Args:
        network: the network and its layout.
    """

    def __init__(self, network: ObservedNetwork) -> None:
        self._network = network
        self._steps = 0
        self._total: Tensor | None = None
        self._current: Tensor | None = None
        self._batch, self._expected = 0, False
        self._arrived: set[int] = set()
        self._seen: set[str] = set()
        self._weights: dict[int, tuple[Tensor, list[tuple[slice, str, Member]]]] = {}
        start = 0
        for group in network.layout.groups:
            place = slice(start, start + group.channels)
            start = place.stop
            for member in group.roles(Role.PRODUCER):
                weight = tensor_of(member, network.modules)
                self._weights.setdefault(id(weight), (weight, []))[1].append((place, group.name, member))

    @property
    def sources(self) -> list[Tensor]:
        """Return the producing weights."""
        return [weight for weight, _ in self._weights.values()]

    def attach(self) -> list[RemovableHandle]:
        """Hook the gradients of the producing weights."""
        frozen = [parts[0][2].tensor for weight, parts in self._weights.values() if not weight.requires_grad]
        if frozen:
            raise UsageError(
                f"taylor-weight needs the gradient of {frozen[0]!r}, which is not trained; "
                "choose 'taylor', or score outside of training"
            )
        network = self._network
        handles = attach(network.model, network.modules, network.layout, self._begin)
        return handles + [weight.register_hook(self._listener(weight)) for weight in self.sources]

    def expects(self, examples: int) -> None:
        """Finish the previous step, also in processes without an example of the next batch."""
        self._fold()
        self._expected = True

    def _begin(self, batch: int) -> None:
        if not self._expected:
            self._fold()
        self._batch, self._expected = batch, False

    def _listener(self, weight: Tensor) -> Callable[[Tensor], None]:
        key = id(weight)

        def listen(gradient: Tensor) -> None:
            if key in self._arrived:  # a second backward pass before the next forward pass
                self._fold()
            self._arrived.add(key)
            with torch.no_grad():
                products = weight * gradient
                current = self._current
                if current is None:
                    size = self._network.layout.channels
                    current = self._current = products.new_zeros(size, dtype=torch.float32)
                for place, group, member in self._weights[key][1]:
                    others = [dim for dim in range(products.ndim) if dim != member.dim]
                    sums = products.sum(others, dtype=torch.float32) if others else products
                    current[place] += rows_of(replace(member, dim=0), sums).sum(1).to(current.device)
                    self._seen.add(group)

        return listen

    def _fold(self) -> None:
        """Finish a backward pass."""
        current = self._whole() if self._network.ranks.is_distributed else self._current
        if current is not None:
            squares = current.to(wide(current)).square()
            self._total = squares if self._total is None else self._total + squares
            self._steps += 1
        self._current = None
        self._arrived.clear()

    def _whole(self) -> Tensor | None:
        """Sum weight times gradient over processes, weighted by their numbers of examples."""
        current = torch.zeros(self._network.layout.channels) if self._current is None else self._current
        part = self._batch if self._current is not None else 0
        weight = part if self._network.reduction == "mean" else 1
        sums = self._network.ranks.all_reduce_sum(
            torch.cat([current.cpu() * weight, torch.tensor([float(part)])])
        )
        examples = float(sums[-1])
        if not examples:
            return None
        return sums[:-1] / (examples if self._network.reduction == "mean" else 1)

    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Average over all backward passes."""
        self._fold()
        if self._total is None:
            raise UsageError(
                "taylor-weight has seen no backward pass; call loss.backward() while scores are collected"
            )
        reason = "no gradient reached the weights that produce its channels"
        groups = self._network.layout.groups
        known = torch.tensor([group.name in self._seen for group in groups], dtype=torch.int64)
        counts = ranks.all_reduce_sum(known).tolist()
        unscored = {group.name: reason for group, count in zip(groups, counts, strict=True) if not count}
        return self._total / self._steps, unscored
