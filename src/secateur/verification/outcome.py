"""Describe the outcome of a verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Verification:
    """The result of comparing a cut network with the masked original, and what was compared.

    Attributes:
        max_error: largest absolute difference in a slice of an output, relative to the variation of the slice
            between examples and inputs. A slice is one index of a tensor's last dimension or of its
            dimension 1 (channels).
        tolerance: of that slice: 1e-8, or 32 times the measured rounding noise if that is larger.
        outputs: number of finite output values that were compared, without those that do not depend on the
            inputs and without the buffers that training writes to.
        channels_removed: number of channels that the cut removed.
        branches_removed: number of residual branches that it removed.
        inputs: number of inputs that were tried: the user's, and random ones of the same shapes.
        modes: modes of the network that were compared.
        precision: in which both networks were run.
        not_checked: what could not be compared, each with the reason.
        problem: why the outputs cannot be compared (a different shape or key), or which tensor or
            attribute does not agree with the plan, if any.

    Example:
        >>> found = Verification(max_error=2e-12, tolerance=1e-8, outputs=320, channels_removed=12)
        >>> found.ok, found.to_dict()["max_error"]
        (True, 2e-12)
    """

    max_error: float
    tolerance: float
    outputs: int
    channels_removed: int
    inputs: int = 1
    modes: tuple[str, ...] = ("evaluation",)
    precision: str = "float64"
    not_checked: tuple[str, ...] = ()
    problem: str | None = None
    branches_removed: int = 0

    @property
    def ok(self) -> bool:
        """Return whether the cut network computes what the masked original computes.

        False also if nothing could be compared.
        """
        return self.problem is None and self.outputs > 0 and self.max_error <= self.tolerance

    def __str__(self) -> str:
        gap = f"largest relative difference {self.max_error:.1e}, allowed {self.tolerance:.0e}"
        compared = (
            f"{self.outputs} outputs, {self.inputs} {'input' if self.inputs == 1 else 'inputs'}, "
            f"{' and '.join(self.modes)} mode, {self.precision}"
        )
        rest = f"; not checked: {'; '.join(self.not_checked)}" if self.not_checked else ""
        gone = []
        if self.channels_removed or not self.branches_removed:
            gone.append(f"{self.channels_removed} channels")
        if self.branches_removed:
            word = "branch" if self.branches_removed == 1 else "branches"
            gone.append(f"{self.branches_removed} residual {word}")
        what = f"the original with {' and '.join(gone)} masked"
        if self.ok:
            return f"verified: the smaller network equals {what} ({gap}; {compared}){rest}"
        if self.problem is None and self.outputs == 0:
            return f"NOT CHECKED: nothing could be compared with {what}{rest}"
        found = f"{self.problem or gap}; {compared}" if self.outputs else self.problem
        return f"WRONG: the smaller network DIFFERS FROM {what} ({found}){rest}"

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for files."""
        return {"ok": self.ok, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verification:
        """Read back what :meth:`to_dict` returned."""
        values = {name: value for name, value in data.items() if name != "ok"}
        for name in ("modes", "not_checked"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)
