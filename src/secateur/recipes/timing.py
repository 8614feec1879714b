"""Plans that hold a time: foretold by a table, measured for real, corrected until they hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from secateur.budget import Budget, Milliseconds
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
from secateur.training.events import Fact, Listener, Progress, silent
from secateur.training.interrupt import Interruption

_BEFORE, _AFTER = "before", "after"
_TRIES = 8
_CLOSE = 0.97  # share of the allowed time from which on a plan uses it up
_AIM = 0.985  # share of the allowed time that a correction aims at, so that noise does not undo it
_RESERVE = 0.01  # the same, less for each plan that took too long


@dataclass(frozen=True)
class Timing:
    """How latency is measured where a budget limits it.

    Attributes:
        inputs: what the timed forward pass is called with; the example inputs if not given.
        runtime: as for :func:`secateur.measure_latency`.
        timings: what was measured before; a file of this user's if not given.
        table: the network's latency table, if it is there already.
        operator_timer: times operators; by default on this device.
        network_timer: times networks alternately; by default on this device.

    >>> Timing(runtime="channels-last").runtime
    'channels-last'
    """

    inputs: ExampleInputs | None = None
    runtime: str | PyTorchRuntime = "eager"
    timings: Timings | None = None
    table: LatencyModel | None = None
    operator_timer: OperatorTimer | None = None
    network_timer: NetworkTimer | None = None

    def pace(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example_inputs: ExampleInputs,
        listener: Listener = silent,
        interruption: Interruption | None = None,
    ) -> Pace:
        """Measures what plans for a network need to know of time.

        Args:
            model: the network, as it is before its first cut.
            graph: its channel graph.
            example_inputs: what it was traced with.
            listener: hears ``Progress``.
            interruption: asked after each operator; what was measured by then is kept.

        Raises:
            StoppedError: the user asked to stop.
        """
        inputs = example_inputs if self.inputs is None else self.inputs

        def hear(done: int, total: int) -> None:
            listener(Progress("measuring latency", done, total))
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
            progress=hear,
        )
        return Pace(table, inputs, self.network_timer or compare)


@dataclass(frozen=True)
class InTime(Fact):
    """A plan that was measured, with what was allowed.

    Attributes:
        plan: the plan.
        allowed_ms: what the smaller network may take.
        predicted_ms: what the table said.
        comparison: what was measured, ``before`` and ``after`` in turn.
        tries: how many plans were measured.
    """

    plan: PruningPlan
    allowed_ms: float
    predicted_ms: float
    comparison: Comparison
    tries: int

    @property
    def measured_ms(self) -> float:
        """What the smaller network took."""
        return self.comparison.latencies[_AFTER].median_ms

    @property
    def holds(self) -> bool:
        """Whether that is allowed."""
        return self.measured_ms <= self.allowed_ms

    @property
    def uses_it_up(self) -> bool:
        """Whether that is allowed, and next to nothing of the time is left over."""
        return self.holds and self.measured_ms >= _CLOSE * self.allowed_ms

    def __str__(self) -> str:
        before = self.comparison.latencies[_BEFORE].median_ms
        times = before, self.measured_ms, self.allowed_ms, self.predicted_ms
        return "latency: {} before, {} after, {} allowed ({} foretold; {} measured)".format(
            *map(Milliseconds, times), self.tries
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "allowed_ms": self.allowed_ms,
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "before_ms": self.comparison.latencies[_BEFORE].median_ms,
            "tries": self.tries,
        }


@dataclass(frozen=True)
class Pace:
    """How fast a network runs on a device: a table that foretells, and a clock that tells.

    Attributes:
        table: milliseconds for any widths.
        inputs: what the timed forward pass is called with.
        network_timer: measures networks alternately.
    """

    table: LatencyModel
    inputs: ExampleInputs
    network_timer: NetworkTimer

    def plan(
        self,
        budget: Budget,
        plan_for: Callable[[Budget], PruningPlan],
        model: nn.Module,
        whole: nn.Module | None = None,
        asked: Milliseconds | None = None,
    ) -> InTime:
        """The plan that keeps to a budget by the clock.

        The table makes a first plan; the network is cut on trial and runs in turn with the whole one; what
        the table was off by corrects what is asked of it, until the clock agrees. Where it does, the plan is
        measured once more, and that counts: what picked it out was in part the noise of the first time.

        Args:
            budget: what may remain; limits latency.
            plan_for: makes a plan for a budget that the table is asked to meet.
            model: the network that plans are for; left as it is.
            whole: the network that a share of the time refers to; ``model`` if not given.
            asked: what the table is asked for at first, where a share of ``whole`` is meant.

        Returns:
            The plan that uses most of the allowed time, of those that held it.

        Raises:
            BudgetError: no plan holds the time; the message says what the least was.
        """
        share = None if isinstance(budget.latency, Milliseconds) else budget.latency
        measured = partial(
            self._measured, model=model, whole=whole or model, limit=budget.latency, share=share
        )
        best: InTime | None = None
        last: InTime | None = None
        limits = budget if asked is None else replace(budget, latency=asked)
        late = 0
        for number in range(1, _TRIES + 1):
            try:
                plan = plan_for(limits)
            except BudgetError as error:
                if last is None:
                    raise
                if best is None:
                    raise BudgetError(_missed(last, str(error))) from error
                break
            if last is not None and plan == last.plan and best is not None:
                break
            last = measured(plan, number=number)
            if last.uses_it_up:
                last = measured(plan, number=number)
            if last.holds and (best is None or last.measured_ms > best.measured_ms):
                best = last
            if share == 1 and not plan.keep:  # all of the time is no limit, whatever the noise says
                best = last
            if best is last and (not plan.keep or last.uses_it_up):
                break
            # Each plan that took too long leaves more in reserve: a noisy device must not go on for ever.
            late += not last.holds
            aim = _AIM - _RESERVE * late
            corrected = last.predicted_ms * aim * last.allowed_ms / last.measured_ms
            limits = replace(budget, latency=Milliseconds(corrected))
        if best is None:
            assert last is not None
            raise BudgetError(_missed(last, "more was cut at each try"))
        return replace(best, tries=last.tries if last is not None else best.tries)

    def _measured(
        self,
        plan: PruningPlan,
        model: nn.Module,
        whole: nn.Module,
        limit: object,
        share: object,
        number: int,
    ) -> InTime:
        comparison = self.network_timer({_BEFORE: whole, _AFTER: apply_plan(model, plan)}, self.inputs)
        # By the turns that both took side by side; medians of a noisy hour may lie further apart.
        before = comparison.speedup(_AFTER) * comparison.latencies[_AFTER].median_ms
        allowed = float(limit) if share is None else float(share) * before  # type: ignore[arg-type]
        predicted = float(self.table.milliseconds(plan.widths))
        return InTime(plan, allowed, predicted, comparison, number)


def _missed(last: InTime, why: str) -> str:
    return (
        f"no plan holds {Milliseconds(last.allowed_ms)}: measured, the smallest network that was tried takes "
        f"{Milliseconds(last.measured_ms)}, where the table said {Milliseconds(last.predicted_ms)}; {why}"
    )
