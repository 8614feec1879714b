"""Make plans that meet a time limit: predict the time by a table, measure it, and correct the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from secateur.budget.limits import NANOSECONDS, milliseconds
from secateur.errors import BudgetError
from secateur.graph import ChannelGraph, ExampleInputs
from secateur.latency import (
    Comparison,
    LatencyModel,
    NetworkTimer,
    OperatorTimer,
    PyTorchRuntime,
    Timings,
    compare_latency,
    latency_table,
)
from secateur.plan import PruningPlan
from secateur.surgery import apply_plan
from secateur.training.events import TrainingCallback, report_progress
from secateur.training.interrupt import Interruption

_BEFORE, _AFTER = "before", "after"
_TRIES = 8
_CLOSE = 0.97  # a plan that takes at least this share of the allowed time is close enough
_AIM = 0.985  # share of the allowed time that a correction aims at, as a margin for noise
_RESERVE = 0.01  # this share is lowered by so much for each plan that took too long


@dataclass(frozen=True)
class LatencyOptions:
    """Choose how latency is measured, if a budget limits it or widths must be efficient on the device.

    Attributes:
        inputs: of the timed forward pass; the example inputs if not given.
        runtime: as for :func:`secateur.measure_latency`.
        timings: earlier measurements; a file in the user's cache if not given.
        table: the network's latency table, if it exists already.
        operator_timer: times operators; by default on this device.
        network_timer: times networks alternately; by default on this device.

    >>> LatencyOptions(runtime="channels-last").runtime
    'channels-last'
    """

    inputs: ExampleInputs | None = None
    runtime: str | PyTorchRuntime = "eager"
    timings: Timings | None = None
    table: LatencyModel | None = None
    operator_timer: OperatorTimer | None = None
    network_timer: NetworkTimer | None = None

    def tuner(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example_inputs: ExampleInputs,
        callbacks: Sequence[TrainingCallback] = (),
        interruption: Interruption | None = None,
    ) -> LatencyTuner:
        """Measure the operators of a network, for plans with a time limit.

        Args:
            model: the network before its first cut.
            graph: its channel graph.
            example_inputs: the inputs that it was traced with.
            callbacks: receive progress.
            interruption: checked after each operator; the measurements so far are kept.

        Raises:
            StoppedError: the user stopped it.
        """
        inputs = example_inputs if self.inputs is None else self.inputs

        def progress(done: int, total: int) -> None:
            report_progress(callbacks, "measuring latency", done, total)
            if interruption is not None:
                interruption.check()

        def compare(models: Mapping[str, nn.Module], sample: ExampleInputs) -> Comparison:
            return compare_latency(models, sample, runtime=self.runtime)

        table = self.table or latency_table(
            model,
            graph,
            inputs,
            runtime=self.runtime,
            timings=self.timings,
            operator_timer=self.operator_timer,
            network_timer=self.network_timer,
            progress=progress,
        )
        return LatencyTuner(table, inputs, self.network_timer or compare)


@dataclass(frozen=True)
class LatencyFit:
    """A plan with its predicted, measured and allowed time.

    Attributes:
        plan: the plan.
        allowed_ms: the time that the smaller network may take.
        predicted_ms: the time that the table predicted.
        comparison: the measurement, with alternating runs of ``before`` and ``after``.
        tries: how many plans were measured.
    """

    plan: PruningPlan
    allowed_ms: float
    predicted_ms: float
    comparison: Comparison
    tries: int

    @property
    def measured_ms(self) -> float:
        """Return the measured time of the smaller network."""
        return self.comparison.latencies[_AFTER].median_ms

    @property
    def holds(self) -> bool:
        """Return whether the measured time is allowed."""
        return self.measured_ms <= self.allowed_ms

    @property
    def uses_it_up(self) -> bool:
        """Return whether the measured time is allowed and close to the limit."""
        return self.holds and self.measured_ms >= _CLOSE * self.allowed_ms

    def __str__(self) -> str:
        before = self.comparison.latencies[_BEFORE].median_ms
        return (
            f"latency: {before:.4g} ms before, {self.measured_ms:.4g} ms after, {self.allowed_ms:.4g} ms "
            f"allowed ({self.predicted_ms:.4g} ms predicted; {self.tries} measured)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "allowed_ms": self.allowed_ms,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "before_ms": self.comparison.latencies[_BEFORE].median_ms,
            "tries": self.tries,
        }


@dataclass(frozen=True)
class LatencyTuner:
    """Make plans that meet a time limit: predicted by a table, measured, and corrected.

    Attributes:
        table: predicts milliseconds for any widths.
        inputs: of the timed forward pass.
        network_timer: measures networks alternately.
    """

    table: LatencyModel
    inputs: ExampleInputs
    network_timer: NetworkTimer

    def plan(
        self,
        allowed: float | str,
        limits: Mapping[str, int],
        plan_for: Callable[[Mapping[str, int]], PruningPlan],
        model: nn.Module,
        whole: nn.Module | None = None,
    ) -> LatencyFit:
        """Make a plan whose measured time is within the limit.

        The first plan is made by the table. The network is cut on trial and measured, interleaved with the
        whole network. The error of the table corrects the time that the next plan is made for, until the
        measured time is within the limit and close to it. That plan is measured again, and only that value is
        reported, because the first value was partly selected by its noise.

        Args:
            allowed: the time that may remain, as :class:`Budget` has it: a share of ``whole``, or a time.
            limits: all limits in absolute amounts, among them the time as the table predicts it.
            plan_for: makes a plan within limits by the table.
            model: the network that plans are for; not changed.
            whole: the network that a share of the time refers to; ``model`` if not given.

        Returns:
            The slowest of the plans within the allowed time.

        Raises:
            BudgetError: no plan is within the time; the message gives the shortest time.
        """
        best: LatencyFit | None = None
        last: LatencyFit | None = None
        late = 0
        for number in range(1, _TRIES + 1):
            try:
                plan = plan_for(limits)
            except BudgetError as error:
                if best is not None:
                    break
                if last is None:
                    raise
                raise BudgetError(_missed(last, str(error))) from error
            if best is not None and last is not None and plan == last.plan:
                break
            last = self._measure(plan, model, whole or model, allowed, number)
            if last.uses_it_up:
                last = self._measure(plan, model, whole or model, allowed, number)
            if last.holds and (best is None or last.measured_ms > best.measured_ms):
                best = last
            if best is last and (plan.removes_nothing or last.uses_it_up):
                break
            # Each plan that took too long increases the reserve, so that the search ends on a noisy device.
            late += not last.holds
            aim = _AIM - _RESERVE * late
            corrected = last.predicted_ms * aim * last.allowed_ms / last.measured_ms
            limits = {**limits, "latency": max(1, round(corrected * NANOSECONDS))}
        assert last is not None
        if best is None:
            raise BudgetError(_missed(last, "more was cut at each try"))
        return replace(best, tries=last.tries)

    def _measure(
        self, plan: PruningPlan, model: nn.Module, whole: nn.Module, allowed: float | str, number: int
    ) -> LatencyFit:
        comparison = self.network_timer({_BEFORE: whole, _AFTER: apply_plan(model, plan)}, self.inputs)
        if isinstance(allowed, str):
            allowed_ms = milliseconds(allowed)
        else:
            # From pairs of neighbouring measurements; on a noisy machine, medians may be further apart.
            allowed_ms = allowed * comparison.speedup(_AFTER) * comparison.latencies[_AFTER].median_ms
        predicted = float(self.table.milliseconds(plan.graph.after(plan).units))
        return LatencyFit(plan, allowed_ms, predicted, comparison, number)


def _missed(last: LatencyFit, why: str) -> str:
    return (
        f"no plan is within {last.allowed_ms:.4g} ms: the smallest network that was tried takes "
        f"{last.measured_ms:.4g} ms, where the table predicted {last.predicted_ms:.4g} ms; {why}"
    )
