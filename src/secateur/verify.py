"""Verification: a cut network must compute what the masked original computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.errors import VerificationError
from secateur.graph.capture import ExampleInputs, beside, call_arguments
from secateur.graph.channel_graph import ChannelGraph
from secateur.graph.cutting import named_tensors
from secateur.graph.masked import run_masked
from secateur.graph.prove import TOLERANCE, evaluate, largest_difference
from secateur.precision import full_precision

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


@dataclass(frozen=True)
class Verification:
    """The outcome of holding a cut network against the masked original.

    Attributes:
        max_error: largest absolute difference of the outputs, relative to the largest output.
        tolerance: what counts as equal.
        outputs: number of output values that were compared.
        channels_removed: number of channels that the cut removed.

    Example:
        >>> found = Verification(max_error=2e-7, tolerance=1e-4, outputs=320, channels_removed=12)
        >>> found.ok, found.to_dict()["max_error"]
        (True, 2e-07)
    """

    max_error: float
    tolerance: float
    outputs: int
    channels_removed: int

    @property
    def ok(self) -> bool:
        """Whether the cut network computes what the masked original computes."""
        return self.max_error <= self.tolerance

    def __str__(self) -> str:
        verdict = "equals" if self.ok else "DIFFERS FROM"
        return (
            f"proof: the smaller network {verdict} the original with {self.channels_removed} channels "
            f"silenced (largest relative difference {self.max_error:.1e}, allowed {self.tolerance:.0e}, "
            f"{self.outputs} outputs compared)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain numbers, for files."""
        return {
            "ok": self.ok,
            "max_error": self.max_error,
            "tolerance": self.tolerance,
            "outputs": self.outputs,
            "channels_removed": self.channels_removed,
        }


@dataclass(frozen=True)
class Expectation:
    """What a network must compute once a plan has been applied to it; made before the cut.

    Needed for cuts in place, which leave no original to compare with.

    Attributes:
        outputs: outputs of the masked original.
        inputs: the inputs that they belong to.
        tolerance: what counts as equal.
        channels_removed: number of channels that the plan removes.

    Example:
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> from secateur.surgery import apply_plan
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> plan = plan_from(trace(net, x), {"0": [1, 5]})
        >>> expected = Expectation.of(net, plan, x)
        >>> expected.check(apply_plan(net, plan, inplace=True)).ok
        True
    """

    outputs: tuple[Any, ...]
    inputs: ExampleInputs
    tolerance: float
    channels_removed: int

    @classmethod
    def of(
        cls, model: nn.Module, plan: PruningPlan, inputs: ExampleInputs, tolerance: float | None = None
    ) -> Expectation:
        """Runs the masked original.

        Args:
            model: the network before the cut.
            plan: the plan for it.
            inputs: inputs of the shapes that the graph was traced with; the batch size may differ.
            tolerance: what counts as equal; by default 1e-4 in float32 and what the precision
                allows in others.

        Returns:
            The expectation.
        """
        graph, inputs = plan.graph, beside(model, inputs)
        tensors = original_sizes(graph, named_tensors(model))
        with full_precision():
            outputs = _batchwise(graph, graph.after(plan), tensors, inputs)
        if tolerance is None:
            tensors_out = [item for item in outputs if isinstance(item, Tensor)]
            tolerance = max(map(_tolerance, tensors_out), default=TOLERANCE)
        return cls(outputs, inputs, tolerance, plan.channels_removed)

    def check(self, pruned: nn.Module) -> Verification:
        """Holds a cut network against the expectation."""
        with full_precision():
            found = evaluate(pruned, self.inputs)
        return Verification(
            max_error=largest_difference(self.outputs, found),
            tolerance=self.tolerance,
            outputs=sum(item.numel() for item in self.outputs if isinstance(item, Tensor)),
            channels_removed=self.channels_removed,
        )


def verify(
    model: nn.Module,
    pruned: nn.Module,
    plan: PruningPlan,
    inputs: ExampleInputs,
    tolerance: float | None = None,
) -> Verification:
    """Compares a cut network with the original in which the removed channels are held at zero.

    Both run in evaluation mode. Every operator of the original that contracts over channels sees
    zeros in place of the removed ones; normalisation over channels takes its statistics from the
    kept ones. Modes are restored and nothing else is touched.

    Args:
        model: the network before the cut.
        pruned: the network after the cut.
        plan: the plan that led from one to the other.
        inputs: inputs of the shapes that the graph was traced with; the batch size may differ.
        tolerance: largest relative difference that counts as equal.

    Returns:
        The largest relative difference, the tolerance and the verdict.

    Raises:
        VerificationError: the inputs do not have the shapes that the graph was traced with.

    Example:
        >>> from secateur.graph.tracing import trace
        >>> from secateur.plan import plan_from
        >>> from secateur.surgery import apply_plan
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(3, 4)
        >>> plan = plan_from(trace(net, x), {"0": [1, 5]})
        >>> verify(net, apply_plan(net, plan), plan, x).ok
        True
    """
    return Expectation.of(model, plan, inputs, tolerance).check(pruned)


def original_sizes(graph: ChannelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network that has been cut, laid back into zeros of the sizes it was traced with.

    Args:
        graph: the graph of the network as it is now.
        tensors: its parameters and buffers by name.

    Returns:
        Tensors of the original shapes; those that were never cut are handed on as they are.
    """
    laid_back = {}
    for name, shape in graph.wiring.shapes.items():
        data = tensors[name].detach()
        for dim, size in enumerate(shape):
            if data.shape[dim] != size:
                wide = list(data.shape)
                wide[dim] = size
                index = torch.as_tensor(graph.positions(name, dim), device=data.device)
                data = data.new_zeros(wide).index_copy(dim, index, data)
        laid_back[name] = data
    return laid_back


def _batchwise(
    graph: ChannelGraph, after: ChannelGraph, tensors: dict[str, Tensor], inputs: ExampleInputs
) -> tuple[Any, ...]:
    """Runs the masked original on any number of examples, in portions of the traced batch size."""
    traced = graph.wiring.program
    args, kwargs = call_arguments(inputs)
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    expected = traced.input_shapes
    if [tuple(leaf.shape) for leaf in leaves] == expected:
        return run_masked(graph.wiring, after.removed, tensors, inputs)
    sizes = {leaf.shape[0] for leaf in leaves if leaf.dim() > 0}
    rest = [tuple(leaf.shape[1:]) for leaf in leaves] == [shape[1:] for shape in expected]
    if kwargs or len(sizes) != 1 or not rest or not all(shape[:1] == (traced.batch,) for shape in expected):
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise VerificationError(
            f"inputs of shapes {shapes} do not fit the traced ones {', '.join(map(str, expected))}; "
            "only the batch size may differ"
        )
    count, portions = sizes.pop(), []
    for start in range(0, count, traced.batch):
        # The last portion is filled up with its last example, which is dropped again below.
        index = torch.arange(start, start + traced.batch).clamp(max=count - 1)
        part = tuple(arg.index_select(0, index.to(arg.device)) for arg in leaves)
        portions.append(run_masked(graph.wiring, after.removed, tensors, part))
    return tuple(
        torch.cat(items)[:count] if isinstance(items[0], Tensor) else items[0]
        for items in zip(*portions, strict=True)
    )


def _tolerance(output: Tensor) -> float:
    """1e-4 in float32; coarser types are allowed a few of their own rounding steps."""
    if not output.is_floating_point():
        return TOLERANCE
    return max(TOLERANCE, 16 * torch.finfo(output.dtype).eps)
