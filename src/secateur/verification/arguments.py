"""Refuse networks, plans and inputs that do not belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from secateur.arguments import check_arguments
from secateur.batches import too_few_examples
from secateur.errors import UsageError
from secateur.graph.capture.program import ExampleInputs, on_device_of
from secateur.graph.capture.wrappers import refuse_wrapped
from secateur.graph.checking.execution import (
    described,
    run_network,
)
from secateur.graph.cutting.fit import misfit
from secateur.graph.cutting.tensors import named_tensors

if TYPE_CHECKING:
    from secateur.plan import PruningPlan


_CALL = "call verify(model, pruned, plan, inputs)"


def refuse_model(model: nn.Module, plan: PruningPlan) -> None:
    """Refuse a network that a plan was not made for."""
    refuse_wrapped(model)
    check_arguments(plan=plan)
    wrong = misfit(model, plan.graph.tensors)
    if wrong is not None and misfit(model, plan.graph.after(plan).tensors) is None:
        raise UsageError(
            f"model has been cut already ({wrong}), but it must be the network before the cut: {_CALL}. For "
            "a cut in place, make the Expectation before it:  expected = Expectation.of(model, plan, inputs)"
        )
    if wrong is not None:
        raise UsageError(f"model is not the network that the plan was made for: {wrong}; {_CALL}")


def refuse_pruned(pruned: nn.Module, plan: PruningPlan) -> None:
    """Refuse a network that cannot be the result of a plan."""
    refuse_wrapped(pruned, "pruned")
    missing = plan.graph.after(plan).tensors.keys() - named_tensors(pruned).keys()
    if missing:
        raise UsageError(
            f"pruned is not what the plan leaves: it has no tensor '{min(missing)}'; pass the network that "
            "apply_plan returned for this plan"
        )


def refuse_inputs(model: nn.Module, plan: PruningPlan, inputs: ExampleInputs) -> None:
    """Refuse inputs that the network before the cut does not accept."""
    random = plan.graph.wiring.evaluation.program.is_random
    try:
        run_network(model, on_device_of(model, inputs), training=False, random=random, native=True)
    except Exception as error:
        what = too_few_examples(error) or f"{described(error)}; pass them as to trace"
        raise UsageError(f"the network does not run on these inputs: {what}") from error
