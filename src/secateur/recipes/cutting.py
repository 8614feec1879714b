"""Make one cut, compare it with the masked original, and undo it if it is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from secateur.errors import SecateurError, VerificationError
from secateur.graph import ExampleInputs
from secateur.plan import PruningPlan
from secateur.surgery import operate
from secateur.verification import Expectation, Verification


@dataclass(frozen=True)
class Cut:
    """A cut that was made.

    Attributes:
        number: from 1.
        of: the total number of cuts, if known.
        plan: what was removed.
        verification: how the smaller network compares with the masked original.
    """

    number: int
    of: int | None
    plan: PruningPlan
    verification: Verification

    def __str__(self) -> str:
        number = f"{self.number}/{self.of}" if self.of else f"{self.number}"
        before, after = self.plan.cost_before, self.plan.cost_after
        branches = f"{branches_in_words(self.plan.branches_removed)}, " if self.plan.without else ""
        return (
            f"cut {number}: {self.plan.channels_removed:,} channels, {branches}"
            f"{before.macs:,} to {after.macs:,} MACs, {before.params:,} to {after.params:,} parameters\n"
            f"  {self.verification}"
        )


def branches_in_words(count: int) -> str:
    """Count residual branches in words.

    >>> branches_in_words(1), branches_in_words(3)
    ('1 residual branch', '3 residual branches')
    """
    return f"{count} residual branch{'es' * (count != 1)}"


def cut(
    model: nn.Module,
    plan: PruningPlan,
    inputs: ExampleInputs,
    optimizer: Optimizer | None = None,
) -> Verification:
    """Remove channels from a network in place and check the result; a wrong cut is undone.

    Args:
        model: the network; its parameters keep their identity.
        plan: what to remove.
        inputs: the inputs for the check.
        optimizer: its state is cut in the same way.

    Returns:
        How the smaller network compares with the masked original.

    Raises:
        VerificationError: the smaller network fails, or computes something else. Network and optimizer are
            restored.
    """
    expected = Expectation.of(model, plan, inputs)
    operation = operate(model, plan, optimizer=optimizer, inplace=True)
    try:
        return _checked(expected, model)
    except BaseException:
        operation.undo()
        raise


def _checked(expected: Expectation, smaller: nn.Module) -> Verification:
    try:
        verification = expected.check(smaller)
    except SecateurError:
        raise
    except Exception as error:
        raise VerificationError(
            f"the smaller network does not run ({type(error).__name__}: {error}); "
            "the network was left as it was"
        ) from error
    if not verification.outputs and verification.problem is None:
        raise VerificationError(
            f"the outputs of the smaller network no longer depend on its inputs ({verification}); remove "
            "less at once, or train in between. The network was left as it was"
        )
    if not verification.ok:
        raise VerificationError(f"{verification}; the network was left as it was")
    return verification
