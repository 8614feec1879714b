"""One cut: proved on a copy, then made."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from secateur.errors import VerificationError
from secateur.graph import ExampleInputs
from secateur.plan import PruningPlan
from secateur.surgery import apply_plan
from secateur.training.events import Event
from secateur.verify import Verification, verify


@dataclass(frozen=True)
class Cut(Event):
    """A cut that was made.

    Attributes:
        number: from 1.
        of: how many cuts there will be, if known.
        plan: what was removed.
        verification: the proof.
    """

    number: int
    of: int | None
    plan: PruningPlan
    verification: Verification

    def __str__(self) -> str:
        number = f"{self.number}/{self.of}" if self.of else f"{self.number}"
        before, after = self.plan.cost_before, self.plan.cost_after
        return (
            f"cut {number}: {self.plan.channels_removed:,} channels, "
            f"{before.macs:,} to {after.macs:,} MACs, {before.params:,} to {after.params:,} parameters\n"
            f"  {self.verification}"
        )


def proved(model: nn.Module, plan: PruningPlan, inputs: ExampleInputs) -> tuple[nn.Module, Verification]:
    """A smaller copy of the network, and the proof that it is the same function without the channels.

    Args:
        model: left as it is.
        plan: what to remove.
        inputs: what both networks are run on.

    Raises:
        VerificationError: the copy computes something else.
    """
    smaller = apply_plan(model, plan)
    verification = verify(model, smaller, plan, inputs)
    if not verification.ok:
        raise VerificationError(f"{verification}; the network was left as it was")
    return smaller, verification


def cut(
    model: nn.Module, plan: PruningPlan, inputs: ExampleInputs, optimizer: Optimizer | None = None
) -> Verification:
    """Removes channels from a network in place, once a copy without them has been proved right.

    Args:
        model: changed in place; parameters keep their identity.
        plan: what to remove.
        inputs: what the proof runs on.
        optimizer: its state is cut alike.

    Returns:
        The proof.

    Raises:
        VerificationError: the copy computes something else; the network is left as it was.
    """
    _, verification = proved(model, plan, inputs)
    apply_plan(model, plan, optimizer=optimizer, inplace=True)
    return verification
