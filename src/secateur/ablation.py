"""Measure how the removal of each channel and residual branch changes the loss; compare criteria with it.

Leave-one-out ablation, the "oracle" of arXiv 1611.06440, section 2.2. Every criterion estimates it. It
is too slow for pruning: it needs one forward pass for each channel. Here the pass begins at the first step
that reads the channel, with the values of the whole network at that step, so a channel near the output takes
very little time, and a channel that is zero for all examples takes none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.fx import Node

from secateur._compat import tree_leaves, tree_map, tree_map_only
from secateur.batches import LossFunction, split_with_targets
from secateur.criteria import Scores
from secateur.criteria.base import loss_of
from secateur.devices import device_of
from secateur.errors import UsageError
from secateur.graph import ChannelGraph, Group
from secateur.graph.capture.program import call_arguments, copied_inputs, mode_of, on_device_of
from secateur.graph.cutting.fit import refuse_misfit
from secateur.graph.cutting.tensors import named_tensors
from secateur.graph.labels import BoolArray
from secateur.outputs import parts_of, with_leaves
from secateur.precision import full_precision
from secateur.recovery.captured_forward import capture_forward, removed_without
from secateur.recovery.masked_units import MaskedUnits
from secateur.recovery.partial_forward import PartialForward, removed_when_kept
from secateur.untouched import untouched

_SINGLE = "has a single channel"
_NEEDED = "needs all of its channels"

AblationProgress = Callable[["Ablation", int], None]
"""Called whenever more channels are measured, with the changes so far and the final number of channels."""


class Ablation(Mapping[str, Tensor]):
    """The change of the loss for every channel and residual branch, each masked alone; a mapping by group.

    ``ablation[group.name]`` has shape ``(channels,)``, float64: loss without the channel minus loss with all;
    NaN for channels that are not measured yet.

    Attributes:
        loss: of the whole network.
        examples: number of examples over which losses are averaged.
        unmeasured: for each prunable group without changes, the reason.
        branches: loss without each residual branch minus loss with all, by name of the branch.

    >>> found = Ablation({"conv": torch.tensor([0.5, -0.1])}, loss=1.0, examples=8)
    >>> Ablation.from_dict(found.to_dict()) == found, found.magnitude()["conv"]
    (True, tensor([0.5000, 0.1000]))
    """

    def __init__(
        self,
        changes: Mapping[str, Tensor],
        loss: float,
        examples: int,
        unmeasured: Mapping[str, str] | None = None,
        branches: Mapping[str, float] | None = None,
    ) -> None:
        self._changes = {name: tensor.detach().double().clone() for name, tensor in changes.items()}
        self.loss = loss
        self.examples = examples
        self.unmeasured: Mapping[str, str] = MappingProxyType(dict(unmeasured or {}))
        self.branches: Mapping[str, float] = MappingProxyType(dict(branches or {}))

    def __getitem__(self, name: str) -> Tensor:
        return self._changes[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._changes)

    def __len__(self) -> int:
        return len(self._changes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ablation) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def measured(self) -> int:
        """Count the channels and branches whose change is known."""
        return sum(int((~values.isnan()).sum()) for values in self._changes.values()) + len(self.branches)

    def magnitude(self) -> Scores:
        """Return the absolute changes as scores for a plan (the paper's ``oracle-abs``)."""
        changes = {name: tensor.abs() for name, tensor in self._changes.items()}
        branches = {name: abs(change) for name, change in self.branches.items()}
        return Scores("leave-one-out", changes, self.unmeasured, branches=branches)

    def to_dict(self) -> dict[str, Any]:
        """Convert to numbers and lists; ``None`` for what is not measured yet."""
        return {
            "loss": self.loss,
            "examples": self.examples,
            "changes": {
                name: [None if math.isnan(value) else value for value in tensor.tolist()]
                for name, tensor in self._changes.items()
            },
            "unmeasured": dict(self.unmeasured),
            "branches": dict(self.branches),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ablation:
        """Read what :meth:`to_dict` returned."""
        changes = {}
        for name, values in data["changes"].items():
            numbers = [math.nan if value is None else value for value in values]
            changes[name] = torch.tensor(numbers, dtype=torch.float64)
        return cls(changes, float(data["loss"]), int(data["examples"]), data["unmeasured"], data["branches"])


@untouched()
@full_precision()
def ablate(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[Any],
    loss_fn: LossFunction,
    *,
    max_examples: int | None = None,
    resume: Ablation | None = None,
    progress: AblationProgress | None = None,
    across_ranks: bool = False,
) -> Ablation:
    """Measure how the removal of each single channel and residual branch changes the loss.

    The oracle of arXiv 1611.06440, section 2.2. Nothing is refitted.

    Args:
        model: the network that was traced; not changed.
        graph: its channel graph.
        batches: pairs of inputs and targets, or mappings of named arguments; the same ones are used for
            every channel.
        loss_fn: mean loss, called with what the network returns for all examples, in which tensors without
            the examples in their first dimension are ``None``, and the targets of all examples; these are a
            mapping where batches are mappings.
        max_examples: how many examples to use; all by default.
        resume: what was measured before on the same examples; only what is missing is measured.
        progress: called whenever more channels are measured.
        across_ranks: whether the processes of a distributed run share the work: all call this with the
            same arguments, each masks some channels, and all get all changes.

    Returns:
        The changes of all prunable groups and branches.

    Raises:
        UsageError: a batch has no targets, the loss is no single number, or ``resume`` belongs to other
            examples or another network.

    Example:
        >>> from secateur.graph import trace
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> found = ablate(net, trace(net, x), [(x, y)], nn.functional.mse_loss)
        >>> found["0"].shape, found.examples
        (torch.Size([3]), 8)
    """
    refuse_misfit(model, graph)
    inputs, targets = _inputs_and_targets(batches, max_examples)
    forward = capture_forward(model, graph, inputs, max_examples)
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    units = MaskedUnits.of(graph, forward, tensors, across_ranks)

    template = _template(model, graph, inputs[0][0])
    targets = tree_map_only(Tensor, lambda leaf: leaf.to(device_of(model)), targets)

    def loss_without(run: PartialForward) -> float:
        return float(loss_of(_outputs(run, template), targets, loss_fn).double())

    whole_groups = {
        group.name: _SINGLE if group.channels == 1 else _NEEDED
        for group in graph.prunable
        if group.channels <= group.min_channels
    }
    starts, unread = units.first_steps(group for group in graph.prunable if group.name not in whole_groups)
    places = units.forward.steps_of_branches(graph)
    loss = loss_without(units.whole())
    changes = _known_changes([graph[name] for name in starts], resume, loss, forward.examples)
    branches = dict(resume.branches) if resume is not None else {}
    total = sum(len(values) for values in changes.values()) + len(places)

    def change_of(removed: BoolArray, whole: PartialForward) -> float:
        return loss_without(whole.fork(removed, units.tensors)) - loss

    def change_without(channel: tuple[str, int], whole: PartialForward) -> float:
        return change_of(_without(graph, *channel), whole)

    def report() -> None:
        if progress is not None:
            progress(Ablation(changes, loss, forward.examples, whole_groups | unread, branches), total)

    whole = units.whole()
    for name in sorted(starts, key=starts.__getitem__):
        whole.seek(starts[name])
        waiting = changes[name].isnan().nonzero().flatten().tolist()
        zero = [channel for channel in waiting if whole.reads_only_zeros(_without(graph, name, channel))]
        if zero:
            changes[name][zero] = 0.0
            report()
        rest = {(name, channel): starts[name] for channel in waiting if channel not in zero}
        for found in units.measure(whole, rest, change_without):
            measured = [channel for _, channel in found]
            changes[name][measured] = torch.tensor(list(found.values()), dtype=torch.float64)
            report()
    missing = {branch: step for branch, step in places.items() if branch not in branches}
    for harm in units.measure(
        units.whole(), missing, lambda branch, whole: change_of(removed_without(graph, branch), whole)
    ):
        branches |= harm
        report()
    ordered = {name: branches[name] for name in places}
    return Ablation(changes, loss, forward.examples, whole_groups | unread, ordered)


def _template(model: nn.Module, graph: ChannelGraph, inputs: Any) -> Any:
    """Run the network on one batch, to see in which containers it returns its outputs."""
    names = graph.wiring.program.arguments
    if isinstance(inputs, Mapping) and names:
        inputs = {name: inputs[name] for name in names}
    args, kwargs = call_arguments(copied_inputs(on_device_of(model, inputs)))
    with untouched(model), mode_of(model, training=False), torch.no_grad():
        return model(*args, **kwargs)


def _outputs(run: PartialForward, template: Any) -> Any:
    """Run all remaining steps, and put the outputs for all examples into the containers of the network.

    Args:
        run: the forward pass.
        template: what the network returned for other examples.

    Returns:
        The output, with ``None`` in place of tensors that do not have the examples in their first dimension,
        such as a loss that the network computes itself.

    Raises:
        UsageError: no output has the examples in its first dimension.
    """
    forward = run.forward
    final = len(forward.nodes) - 1
    run.advance(final)

    def joined(item: Any) -> Any:
        if not isinstance(item, Node):
            return item
        if not run.holds(item):  # a parameter
            return None
        values = [run.value(place, item) for place in range(len(run.chunks))]
        if not isinstance(values[0], Tensor) or not values[0].dim() or len(values[0]) % forward.size:
            return None
        return torch.cat(
            [forward.trimmed(value, chunk) for value, chunk in zip(values, run.chunks, strict=True)]
        )

    leaves = [joined(item) for item in tree_leaves(forward.nodes[final].args)]
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise UsageError("no output has the examples in its first dimension")
    if len(leaves) != len(parts_of(template).leaves):
        raise UsageError("the network returns other outputs than when it was traced")
    return with_leaves(template, leaves)


def _inputs_and_targets(batches: Iterable[Any], most: int | None) -> tuple[list[Any], Any]:
    """Collect batches for at least so many examples, and the targets of these examples."""
    inputs, targets, count = [], [], 0
    for batch in batches:
        given, target = split_with_targets(batch, "ablation")
        sizes = {leaf.shape[:1] for leaf in tree_leaves(target) if isinstance(leaf, Tensor)}
        if len(sizes) != 1 or sizes == {()}:
            raise UsageError("ablation needs targets with the examples in their first dimension")
        inputs.append((given, target))
        targets.append(target)
        count += sizes.pop()[0]
        if most is not None and count >= most:
            break
    if not targets:
        raise UsageError("there are no examples; pass batches with at least one")

    def joined(*items: Any) -> Any:
        return torch.cat(items)[:most] if isinstance(items[0], Tensor) else items[0]

    return inputs, tree_map(joined, *targets)


def _known_changes(
    groups: Iterable[Group], resume: Ablation | None, loss: float, examples: int
) -> dict[str, Tensor]:
    """Return changes that were measured before, NaN for the others."""
    unknown = {group.name: torch.full((group.channels,), math.nan, dtype=torch.float64) for group in groups}
    if resume is None:
        return unknown
    shapes = {name: tensor.shape for name, tensor in unknown.items()}
    if {name: resume[name].shape for name in resume} != shapes:
        raise UsageError("resume: the earlier measurements belong to another network")
    if resume.examples != examples or abs(resume.loss - loss) > 1e-6 * max(1.0, abs(loss)):
        raise UsageError(
            "resume: the earlier measurements belong to other examples or weights "
            f"(loss {resume.loss:.6g} over {resume.examples} examples, now {loss:.6g} over {examples})"
        )
    return {name: resume[name] for name in unknown}


def _without(graph: ChannelGraph, name: str, channel: int) -> BoolArray:
    """Mark the slots that are removed with one channel of a group."""
    group = graph[name]
    return removed_when_kept(graph, group, (other for other in range(group.channels) if other != channel))


@dataclass(frozen=True)
class RankAgreement:
    """Spearman's rank correlation of a criterion with measured changes of the loss.

    Attributes:
        criterion: name of the criterion.
        groups: within each group; groups of equal scores, or with fewer than three channels, have none.
        raw: over the channels of all groups together, with raw scores.
        normalized: the same after ℓ2 normalisation per group.

    Example:
        >>> print(RankAgreement("taylor", {"a": 0.5, "b": 0.9}, raw=0.6, normalized=0.65))
        taylor: 0.700 within groups, 0.600 over all channels, 0.650 normalised
    """

    criterion: str
    groups: Mapping[str, float]
    raw: float
    normalized: float

    @property
    def per_group(self) -> float:
        """Compute the mean over the groups; NaN if there are none."""
        return float(np.mean(list(self.groups.values()))) if self.groups else float("nan")

    def __str__(self) -> str:
        return (
            f"{self.criterion}: {self.per_group:.3f} within groups, {self.raw:.3f} over all channels, "
            f"{self.normalized:.3f} normalised"
        )


def compare_ranking(ablation: Ablation, scores: Scores) -> RankAgreement:
    """Compare scores with the absolute changes of the loss (arXiv 1611.06440, section 3.2).

    Args:
        ablation: measured changes; channels that are not measured yet are ignored.
        scores: of a criterion, for the same network.

    Returns:
        The rank correlations, over the groups that have both.

    Raises:
        UsageError: no group has both, or a group has another number of channels.

    Example:
        >>> found = Ablation({"a": torch.tensor([0.1, -0.5, 0.3])}, loss=1.0, examples=4)
        >>> compare_ranking(found, Scores("guess", {"a": torch.tensor([1.0, 9.0, 4.0])})).per_group
        1.0
    """
    pairs = {}
    levelled = scores.normalized("l2")
    for name in ablation:
        if name not in scores:
            continue
        truth = ablation[name].abs().numpy()
        if len(truth) != len(scores[name]):
            raise UsageError(f"group '{name}' has {len(truth)} channels, but {len(scores[name])} scores")
        known = ~np.isnan(truth)
        pairs[name] = truth[known], scores[name].numpy()[known], levelled[name].numpy()[known]
    if not pairs:
        raise UsageError(f"the ablation and {scores.criterion} have no group in common")
    truth, raw, normalized = (np.concatenate(parts) for parts in zip(*pairs.values(), strict=True))
    within = {name: _spearman(part[0], part[1]) for name, part in pairs.items()}
    return RankAgreement(
        scores.criterion,
        {name: value for name, value in within.items() if value is not None},
        _spearman(truth, raw) or 0.0,
        _spearman(truth, normalized) or 0.0,
    )


def _spearman(
    one: np.ndarray[tuple[int], np.dtype[np.float64]], other: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float | None:
    """Compute the rank correlation; ``None`` if it is not defined, or for fewer than three channels."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)
