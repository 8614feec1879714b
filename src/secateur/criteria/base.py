"""Define what a criterion is, and register criteria by name.

A criterion is a small immutable object. It makes an observer, which gathers what the scores are computed
from. Four base classes need only the formula:

- :class:`secateur.criteria.weight.WeightCriterion`, from the weights of a channel,
- :class:`secateur.criteria.activation.ActivationCriterion`, from averages of what the consumers read,
- :class:`secateur.criteria.weighted_activation.WeightedActivationCriterion`, from what each consumer reads
  and its weights,
- :class:`secateur.criteria.gates.GateCriterion`, from the gradient of a gate on what they read.

>>> from secateur.criteria import GateCriterion, resolve
>>> class SignedTaylor(GateCriterion):
...     '''The mean of the gate gradient, with its sign.'''
...
...     name = "signed-taylor"
...
...     def per_example(self, gate):
...         return gate
>>> resolve(SignedTaylor()).name
'signed-taylor'

An instance can be given wherever a name can; :func:`register`, as a decorator of the class, makes the name
known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.batches import LossFunction
from secateur.criteria.layout import ChannelLayout
from secateur.errors import UsageError, closest_or_all
from secateur.ranks import ALONE, Ranks

Reduction = Literal["mean", "sum"]
"""Whether a loss is the mean or the sum over the examples of a batch."""


class Needs(Enum):
    """What a criterion needs from the network."""

    NOTHING = "nothing"
    """The weights alone."""
    FORWARD = "forward passes"
    """Forward passes over inputs."""
    BACKWARD = "backward passes"
    """Training steps: forward passes and the backward passes of a loss."""
    OWN_PASSES = "passes of its own"
    """Backward passes that no training step makes: it can score, but not collect during training."""


@dataclass(frozen=True)
class ObservedNetwork:
    """The network that an observer gathers data from.

    Attributes:
        model: the network itself, not a wrapper.
        modules: its modules by path.
        layout: the prunable groups and the module inputs that hold their channels.
        reduction: whether the loss is a mean or a sum over the batch.
        ranks: the processes that share the same batches.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    layout: ChannelLayout
    reduction: Reduction
    ranks: Ranks = ALONE


class Observer(ABC):
    """What a criterion has gathered so far."""

    def attach(self) -> list[RemovableHandle]:
        """Hook the network; the caller removes the handles."""
        return []

    def targets(self, targets: Any) -> None:  # noqa: B027
        """Take the targets of the next forward pass."""

    def expects(self, examples: int) -> None:  # noqa: B027
        """Take the number of examples of the next batch over all processes.

        Without this call, each forward pass counts as a whole batch.
        """

    @property
    def sources(self) -> list[Tensor]:
        """Return the leaf tensors that a backward pass must reach."""
        return []

    def backward(self, outputs: Any, targets: Any, loss_fn: LossFunction) -> None:
        """Run a backward pass that accumulates no parameter gradient; only the hooks see it."""
        loss = loss_of(outputs, targets, loss_fn)
        if not loss.requires_grad:
            raise UsageError("the loss does not depend on the network's output; check loss_fn")
        backward_without_grads(loss, self.sources)

    def needs_another_pass(self) -> bool:
        """Return whether the last pass does not count and has to be repeated."""
        return False

    @abstractmethod
    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """Compute the scores of all groups from what was gathered so far.

        Args:
            ranks: the processes whose data count.

        Returns:
            The flat scores, shape ``(channels,)``, or ``(channels + branches,)`` if the criterion scores
            residual branches, with NaN for one without a score; and the groups without a score with the
            reason. Values of groups without a score have no meaning.
        """


def loss_of(outputs: Any, targets: Any, loss_fn: LossFunction) -> Tensor:
    """Compute a loss.

    Raises:
        UsageError: it is no tensor with a single number.
    """
    loss: Any = loss_fn(outputs, targets)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise UsageError(
        f"loss_fn returned {kind}, but a loss is a tensor with a single number, such as "
        "F.cross_entropy(outputs, targets)"
    )


def backward_without_grads(
    outputs: Tensor, sources: list[Tensor], gradient: Tensor | None = None, *, retain_graph: bool = False
) -> None:
    """Run a backward pass that leaves no gradient behind.

    Args:
        outputs: where it begins.
        sources: where it ends.
        gradient: of the outputs, where these are not a single number.
        retain_graph: whether another backward pass will follow.

    Raises:
        UsageError: the network uses a form of checkpointing that allows no such pass.
    """
    try:
        torch.autograd.grad(outputs, sources, gradient, retain_graph=retain_graph, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise UsageError(
            "the network recomputes activations by torch.utils.checkpoint with use_reentrant=True, which "
            "allows no backward pass without parameter gradients; pass use_reentrant=False there"
        ) from error


class Criterion(ABC):
    """A rule that scores channels: larger scores for channels that matter more.

    Attributes:
        name: the name by which it is chosen.
        needs: what it needs from the network.
        needs_targets: whether its observer needs the targets.
        scores_channels: whether it scores channels.
        scores_branches: whether it scores residual branches, in the same unit.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]
    needs_targets: ClassVar[bool] = False
    scores_channels: ClassVar[bool] = True
    scores_branches: ClassVar[bool] = False

    @abstractmethod
    def observe(self, network: ObservedNetwork) -> Observer:
        """Make an observer that has gathered nothing yet."""


_REGISTRY: dict[str, type[Criterion]] = {}

C = TypeVar("C", bound=type[Criterion])


def register(kind: C) -> C:
    """Register a criterion class by its name; a class decorator.

    Raises:
        UsageError: the class has no name, or another class has the same.
    """
    name = getattr(kind, "name", None)
    if not name:
        raise UsageError(f"criterion class {kind.__name__} has no name; give it a class attribute `name`")
    if _REGISTRY.get(name, kind).__qualname__ != kind.__qualname__:
        raise UsageError(f"a criterion called {name!r} is registered already; choose another name")
    _REGISTRY[name] = kind
    return kind


def criterion_names() -> tuple[str, ...]:
    """List the names of all registered criteria, sorted."""
    return tuple(sorted(_REGISTRY))


def resolve(criterion: str | Criterion) -> Criterion:
    """Find the criterion of a name; a criterion is returned as it is.

    Args:
        criterion: a registered name, for default settings, or an instance.

    Raises:
        UsageError: no criterion has the name.

    >>> resolve("magnitude").needs
    <Needs.NOTHING: 'nothing'>
    """
    if isinstance(criterion, Criterion):
        return criterion
    if criterion in _REGISTRY:
        return _REGISTRY[criterion]()
    raise UsageError(
        f"no criterion is called {criterion!r}{closest_or_all(str(criterion), criterion_names())}"
    )
