"""Describe where a run computes, what it reports to, and where it keeps its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from torch import nn

from secateur.devices import device_of
from secateur.ranks import Ranks
from secateur.training.events import TrainingCallback
from secateur.training.interrupt import Interruption
from secateur.training.process_group import fabric_on, make_fabric, uses_bf16
from secateur.training.resume import Journal
from secateur.training.settings import DeviceSettings

if TYPE_CHECKING:
    from secateur.training.evaluate import Evaluation


def save_nothing(name: str, evaluation: Evaluation | None) -> None:
    """Write no checkpoint."""


@dataclass(frozen=True)
class RunContext:
    """Hold what a training or an evaluation needs besides the network and the data.

    Attributes:
        settings: device, precision and processes that were asked for.
        fabric: device, precision and processes; opened by the settings if not given.
        callbacks: receive progress and epochs.
        interruption: asked after each step.
        save: writes a checkpoint of the network: called with ``"last"`` before the first epoch, after each
            epoch and when stopped; before that with ``"best"`` if the network is the best so far and the
            settings ask for it.
        journal: keeps what is needed to continue after a kill.
    """

    settings: DeviceSettings = field(default_factory=DeviceSettings)
    fabric: Fabric = None  # type: ignore[assignment]  # opened below, as the settings say
    callbacks: Sequence[TrainingCallback] = ()
    interruption: Interruption = field(default_factory=Interruption)
    save: Callable[[str, Evaluation | None], object] = save_nothing
    journal: Journal = field(default_factory=Journal)

    def __post_init__(self) -> None:
        if vars(self)["fabric"] is None:
            object.__setattr__(self, "fabric", make_fabric(self.settings))

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Make a context that computes where a network is, in float32."""
        settings = DeviceSettings(precision="float32", channels_last="no")
        return cls(settings, fabric_on(device_of(model)))

    @property
    def device(self) -> torch.device:
        """Return the device of this process."""
        return self.fabric.device

    @property
    def ranks(self) -> Ranks:
        """Return the processes that share the work."""
        return Ranks(self.fabric.world_size > 1)

    def uses_channels_last(self, model: nn.Module) -> bool:
        """Return whether to train a network on images with the channels last in memory.

        ``auto`` does so where products are in bfloat16, and on a CPU for networks of which at least
        half of the convolutions are 1 by 1: measured gains were 1.4 for SqueezeNet and MobileNet v2,
        and none for ResNet-18 and VGG.

        Args:
            model: the network.
        """
        if self.settings.channels_last != "auto":
            return self.settings.channels_last == "yes"
        kernels = [module.kernel_size for module in model.modules() if isinstance(module, nn.Conv2d)]
        if not kernels or uses_bf16(self.settings, self.device):
            return bool(kernels)
        return self.device.type == "cpu" and 2 * kernels.count((1, 1)) >= len(kernels)


@contextmanager
def launch(settings: DeviceSettings | None = None) -> Iterator[RunContext]:
    """Connect the processes of a run for a block, and part from them when all have finished it.

    Args:
        settings: where and how to compute, and in how many processes.

    Yields:
        The context of the run.

    Raises:
        UsageError: there are fewer processes than devices, or no such device.
    """
    context = RunContext(settings or DeviceSettings())
    yield context
    if context.ranks.is_distributed:
        context.ranks.barrier()
        dist.destroy_process_group()
