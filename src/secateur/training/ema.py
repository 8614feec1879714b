"""Keep the exponential moving average of the weights of a network that is trained (arXiv 1803.05407)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """The exponential moving average of a network's parameters and buffers.

    Args:
        model: the network that is trained.
        decay: share of the average that one update keeps: with 0.99 it covers about 100 steps.

    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.zeros_(net.weight)
    >>> average = WeightAverage(net, 0.75)
    >>> average.update()  # the first update takes the weights as they are
    >>> _ = nn.init.ones_(net.weight)
    >>> average.update()
    >>> with average.applied():
    ...     inside = net.weight.item()
    >>> inside, net.weight.item()
    (0.25, 1.0)
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    def update(self) -> None:
        """Add the current weights to the average; call it after each optimizer step."""
        self.averaged.update_parameters(self.model)

    def restart(self) -> None:
        """Begin again: the next update takes the weights as they are."""
        self.averaged.n_averaged.zero_()

    def weights(self) -> dict[str, Tensor]:
        """Return the average as a state dictionary of the network; at first, the network's own weights."""
        return self.averaged.module.state_dict()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights for a block, and its own afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights())
        try:
            yield
        finally:
            self.model.load_state_dict(own)
