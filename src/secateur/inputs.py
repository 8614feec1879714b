"""Describe the inputs of a network, and draw examples of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from secateur.errors import UsageError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """Shape and normalisation of the images that a network expects.

    Attributes:
        size: channels, height and width of one input.
        mean: mean per channel of images whose values lie in [0, 1].
        std: standard deviation per channel, likewise.

    >>> InputSpec((3, 64, 64)).example(batch=2).shape
    torch.Size([2, 3, 64, 64])
    """

    size: tuple[int, ...] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if len(self.size) != 3 or min(self.size) < 1:
            raise UsageError(f"input size {self.size} is not channels, height, width: give e.g. 3,224,224")
        if not len(self.mean) == len(self.std) == self.size[0]:
            raise UsageError(
                f"{self.size[0]} input channels need as many means and deviations, "
                f"but {len(self.mean)} and {len(self.std)} are given"
            )
        if min(self.std) <= 0:
            raise UsageError(f"the deviations {self.std} to divide by must be positive")

    def example(self, batch: int = 1) -> torch.Tensor:
        """Draw a batch of the right shape from a fixed seed, shape ``(batch, *size)``, float32."""
        return torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class NamedInput:
    """Shape of one input, and how an example of it is drawn.

    Attributes:
        size: shape of one example, without the batch.
        low: smallest whole number.
        below: whole numbers are drawn from ``low`` up to, and without, this one; ``None`` draws real numbers
            of a standard normal distribution.
        batched: whether the batch is the first dimension; otherwise all examples share one tensor.
    """

    size: tuple[int, ...]
    low: int = 0
    below: int | None = None
    batched: bool = True

    def example(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Draw an example of shape ``(batch, *size)``: float32 for real numbers, int64 for whole ones."""
        shape = (batch, *self.size) if self.batched else self.size
        if self.below is None:
            return torch.randn(shape, generator=generator)
        return torch.randint(self.low, self.below, shape, generator=generator)


@dataclass(frozen=True)
class NamedInputs:
    """Inputs that a network takes by name, such as token ids and their mask.

    Attributes:
        tensors: by the names of the arguments. A mapping within stands for an argument that is a mapping.

    >>> words = NamedInputs({"input_ids": NamedInput((16,), below=100), "features": NamedInput((8, 4))})
    >>> {name: tuple(tensor.shape) for name, tensor in words.example(batch=2).items()}
    {'input_ids': (2, 16), 'features': (2, 8, 4)}
    """

    tensors: Mapping[str, NamedInput | Mapping[str, NamedInput]]

    def example(self, batch: int = 1) -> dict[str, Any]:
        """Draw a batch from a fixed seed, by the names of the arguments."""
        generator = torch.Generator().manual_seed(0)
        return {
            name: spec.example(batch, generator)
            if isinstance(spec, NamedInput)
            else {key: part.example(batch, generator) for key, part in spec.items()}
            for name, spec in self.tensors.items()
        }

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one example of each tensor, by name."""
        found: dict[str, tuple[int, ...]] = {}
        for name, spec in self.tensors.items():
            if isinstance(spec, NamedInput):
                found[name] = spec.size
            else:
                found |= {f"{name}.{key}": part.size for key, part in spec.items()}
        return found


def image_spec(name: str, inputs: InputSpec | NamedInputs) -> InputSpec:
    """Return what a network of images expects.

    Args:
        name: of the network, for the message.
        inputs: what it expects.

    Raises:
        UsageError: it expects something else.
    """
    if isinstance(inputs, InputSpec):
        return inputs
    raise UsageError(
        f"{name} takes {', '.join(inputs.sizes())}, and this works with networks of images only; "
        "use the network in Python (sec.build, sec.trace, sec.apply_plan)"
    )
