"""Define channel groups: the slots of several tensors that must be removed together."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


class Role(Enum):
    """What a tensor dimension does with the channels whose slots it holds.

    Example:
        >>> Role("consumer") is Role.CONSUMER
        True
    """

    PRODUCER = "producer"
    """Writes the channels: dimension 0 of a convolution's or linear layer's weight."""
    CONSUMER = "consumer"
    """Contracts over the channels: dimension 1 of a convolution's or linear layer's weight."""
    CARRIER = "carrier"
    """Holds one number (or filter) per channel: biases, normalisation, depthwise filters."""


@dataclass(frozen=True)
class Member:
    """The slots that a group owns in one dimension of one parameter or buffer.

    Attributes:
        tensor: qualified name of the parameter or buffer, as in ``model.state_dict()``.
        dim: the dimension of that tensor.
        role: what the dimension does with the channels.
        slots: positions along the dimension, shape ``(channels, slots per channel)``; not the numbers of
            :class:`secateur.graph.labels.SlotTable`, which count over all tensors.

    Example:
        >>> Member("layer1.conv.weight", 0, Role.PRODUCER, np.array([[0], [1]])).module
        'layer1.conv'
    """

    tensor: str
    dim: int
    role: Role
    slots: IntArray = field(repr=False, compare=False)

    @property
    def module(self) -> str:
        """Return the path of the module that owns the tensor (empty for the network itself)."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """Channels that own slots in the same dimensions of the same tensors.

    Attributes:
        name: path of the module that first produces the channels, unique within the graph.
        members: the dimensions that hold the channels, in the order of the network.
        reason: why the group is frozen, in words; ``None`` if it may be pruned.
        min_channels: how many channels must stay for the network's code to work.

    Example:
        >>> group = Group("fc", (Member("fc.weight", 0, Role.PRODUCER, np.array([[0], [1], [2]])),))
        >>> group.channels, group.prunable, group.roles(Role.CONSUMER)
        (3, True, ())
    """

    name: str
    members: tuple[Member, ...]
    reason: str | None = None
    min_channels: int = 1

    @cached_property
    def channels(self) -> int:
        """Number of channels; none if the group was removed with a residual branch."""
        return int(self.members[0].slots.shape[0]) if self.members else 0

    @property
    def prunable(self) -> bool:
        """Return whether channels of this group may be removed."""
        return self.reason is None

    def roles(self, role: Role) -> tuple[Member, ...]:
        """Select the members with one role, in the order of the network."""
        return tuple(member for member in self.members if member.role is role)

    @property
    def modules(self) -> tuple[str, ...]:
        """List the paths of all modules that the group touches, in the order of the network."""
        return tuple(dict.fromkeys(member.module for member in self.members))


@dataclass(frozen=True)
class Reader:
    """A place that contracts over channels: where masking a channel has an effect.

    A channel is masked by zeroing its positions in the input of every reader that has it.
    Depthwise filters and normalisations pass a channel on, so they are no readers.

    Attributes:
        module: path of the module that reads.
        tensor: qualified name of the weight that is contracted with, empty if there is none.
        dim: dimension of the input that holds the channels, counted from the end for linear
            layers (-1), and from the front for convolutions (1).
        group: for each position of that dimension, the index of its group in
            ``graph.groups``; -1 where the position is not a channel.
        channel: for each position, the index of the channel within its group; -1 likewise.
            A channel may hold several positions (a flattened image).
        at_input: whether what is read is the (only) input of the module, and only read there; if not, it
            is made inside its forward pass, as the queries of an attention are.

    Example:
        >>> import torch
        >>> from secateur.graph import trace
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> [(reader.module, reader.dim) for reader in trace(net, torch.randn(1, 4)).readers]
        [('2', -1)]
    """

    module: str
    tensor: str
    dim: int
    group: IntArray = field(repr=False, compare=False)
    channel: IntArray = field(repr=False, compare=False)
    at_input: bool = True


def distinct_name(name: str, taken: set[str]) -> str:
    """Add a number to a name that is taken, and add the result to the taken ones.

    >>> taken = {"conv"}
    >>> distinct_name("conv", taken), distinct_name("conv", taken), distinct_name("fc", taken)
    ('conv#2', 'conv#3', 'fc')
    """
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}#{number}"
    taken.add(found)
    return found
