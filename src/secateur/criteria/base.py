"""Criteria: rules that value channels, and how to add one's own.

A criterion is a small immutable object; what it gathers while it watches is kept by the observer
that it makes. Three bases leave only the formula to be written:

- :class:`secateur.criteria.weight.WeightCriterion`, from the weights of a channel,
- :class:`secateur.criteria.activation.ActivationCriterion`, from what the consumers read,
- :class:`secateur.criteria.gates.GateCriterion`, from the gradient of a gate on what they read.

>>> from secateur.criteria import GateCriterion, criterion_names, register
>>> @register
... class SignedTaylor(GateCriterion):
...     '''The mean of the gate gradient, with its sign.'''
...
...     name = "signed-taylor"
...
...     def per_example(self, gate):
...         return gate
>>> "signed-taylor" in criterion_names()
True
>>> unregister("signed-taylor")
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.criteria.layout import Layout
from secateur.errors import UsageError
from secateur.ranks import ALONE, Ranks

Reduction = Literal["mean", "sum"]
"""Whether a loss is the mean or the sum over the examples of a batch."""

Loss = Callable[[Any, Any], Tensor]
"""A loss function of the network's output and the targets, with a single number as result."""


class Needs(Enum):
    """What a criterion has to see of the network."""

    NOTHING = "nothing"
    """The weights alone."""
    FORWARD = "forward passes"
    """Forward passes over inputs."""
    BACKWARD = "backward passes"
    """Training steps: forward passes and the backward passes of a loss."""
    OWN_PASSES = "passes of its own"
    """Backward passes that no training step makes: it can score, but not watch."""


@dataclass(frozen=True)
class Subject:
    """What an observer looks at.

    Attributes:
        model: the network itself, not a wrapper.
        modules: its modules by path.
        layout: the prunable groups and the places that read them.
        reduction: whether the loss is a mean or a sum over the batch.
        ranks: the processes that look at parts of the same batches.
    """

    model: nn.Module
    modules: Mapping[str, nn.Module]
    layout: Layout
    reduction: Reduction
    ranks: Ranks = ALONE


class Observer(ABC):
    """What a criterion has gathered so far; made anew for each watch."""

    def attach(self) -> list[RemovableHandle]:
        """Hooks the network; the caller removes the handles, whatever happens."""
        return []

    def targets(self, targets: Any) -> None:  # noqa: B027
        """Is told the targets of the forward pass that follows."""

    def expects(self, examples: int) -> None:  # noqa: B027
        """Is told that the next batch has so many examples over all processes, of which some may come here.

        Who is never told takes each forward pass for a whole batch.
        """

    @property
    def sources(self) -> list[Tensor]:
        """Leaf tensors that a backward pass has to reach for the criterion to see what it needs."""
        return []

    def backward(self, outputs: Any, targets: Any, loss_fn: Loss) -> None:
        """Runs a backward pass that leaves no gradient behind; only the hooks see it."""
        loss = loss_of(outputs, targets, loss_fn)
        if not loss.requires_grad:
            raise UsageError("the loss does not depend on the network's output; check loss_fn")
        propagate(loss, self.sources)

    def needs_another_pass(self) -> bool:
        """Whether the last pass does not count and has to be repeated."""
        return False

    @abstractmethod
    def values(self, ranks: Ranks) -> tuple[Tensor, Mapping[str, str]]:
        """What has been found so far.

        Args:
            ranks: whose findings count.

        Returns:
            The flat scores, shape ``(channels,)``, and the groups without a score with the reason;
            the values of those are to be ignored.
        """


def loss_of(outputs: Any, targets: Any, loss_fn: Loss) -> Tensor:
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


def propagate(
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
    """A rule that values channels; larger scores for channels that matter more.

    Attributes:
        name: the name by which it is chosen.
        needs: what it has to see of the network.
        needs_targets: whether it has to be told the targets.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]
    needs_targets: ClassVar[bool] = False

    @abstractmethod
    def observe(self, subject: Subject) -> Observer:
        """An observer that has seen nothing yet."""


_REGISTRY: dict[str, type[Criterion]] = {}

C = TypeVar("C", bound=type[Criterion])


def register(kind: C) -> C:
    """Makes a criterion known by its name; a class decorator.

    Raises:
        UsageError: if the class has no name, or another class has it.
    """
    name = getattr(kind, "name", None)
    if not name:
        raise UsageError(f"criterion class {kind.__name__} has no name; give it a class attribute `name`")
    if _REGISTRY.get(name, kind).__qualname__ != kind.__qualname__:
        raise UsageError(f"a criterion called {name!r} is registered already; choose another name")
    _REGISTRY[name] = kind
    return kind


def unregister(name: str) -> None:
    """Forgets a registered criterion; nothing happens if there is none of that name."""
    _REGISTRY.pop(name, None)


def criterion_names() -> tuple[str, ...]:
    """The names of all registered criteria, sorted."""
    return tuple(sorted(_REGISTRY))


def resolve(criterion: str | Criterion) -> Criterion:
    """The criterion of a name, or the criterion itself.

    Args:
        criterion: a registered name, for default settings, or an instance.

    Raises:
        UsageError: if no criterion has the name.

    >>> resolve("magnitude").needs
    <Needs.NOTHING: 'nothing'>
    """
    if isinstance(criterion, Criterion):
        return criterion
    if criterion in _REGISTRY:
        return _REGISTRY[criterion]()
    close = difflib.get_close_matches(str(criterion), _REGISTRY, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(criterion_names())}"
    raise UsageError(f"no criterion is called {criterion!r}{hint}")
