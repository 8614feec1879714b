"""Plans that hold a time by the clock, on a device where the table is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import nn

from secateur.budget import Budget
from secateur.errors import BudgetError
from secateur.graph.groups import IntArray
from secateur.latency import Comparison, Latency
from secateur.recipes import LatencyOptions, PruneResult, Recipe, Training, prune
from tests.recipes.running import in_place
from tests.recorder import Recorder

X = torch.zeros(2, 3, 8, 8)


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 40, 3), nn.ReLU(), nn.Conv2d(40, 30, 3), nn.ReLU(), nn.Flatten(), nn.Linear(480, 4)
    )


def timed(budget: Budget, timing: LatencyOptions, recipe: Recipe | None = None) -> PruneResult:
    """A network pruned by its weights."""
    return prune(net(), X, budget, "magnitude", Training(latency=timing), recipe=recipe)


class Table:
    """One microsecond a channel."""

    def milliseconds(self, widths: IntArray) -> np.ndarray:
        return 1e-3 * widths[..., :2].sum(-1)


def clock(law: Callable[[float], float]) -> Callable[[Mapping[str, nn.Module], object], Comparison]:
    """Really, the time is another law of the channels of both convolutions."""

    def measure(models: Mapping[str, nn.Module], inputs: object) -> Comparison:
        found = {}
        for name, model in models.items():
            channels = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
            time = law(1e-3 * channels)
            found[name] = Latency(time, time * 0.99, time * 1.01, 9, 1, "cpu", 2)
        return Comparison(found)

    return measure


@pytest.mark.parametrize(
    "law",
    [lambda ms: ms, lambda ms: 1.3 * ms, lambda ms: 0.02 + ms, lambda ms: ms**1.5, lambda ms: ms**0.8],
    ids=["right", "factor", "overhead", "steeper", "flatter"],
)
@pytest.mark.parametrize("limit", [0.5, "share of ms"])
def test_what_is_asked_is_what_is_measured(law: Callable[[float], float], limit: float | str) -> None:
    whole = law(0.07)
    asked = limit if isinstance(limit, float) else f"{0.6 * whole:.12f} ms"
    timing = LatencyOptions(table=Table(), network_timer=clock(law))
    result = timed(Budget(latency=asked), timing)
    allowed = 0.5 * whole if isinstance(limit, float) else 0.6 * whole
    assert result.latency is not None
    assert result.latency.allowed_ms == pytest.approx(allowed)
    assert 0.94 * allowed <= result.latency.measured_ms <= allowed
    assert result.latency.holds
    assert result.verification.ok
    assert result.latency.plan == result.plan


def test_a_right_table_needs_one_measurement() -> None:
    result = timed(Budget(latency=0.5), LatencyOptions(table=Table(), network_timer=clock(lambda ms: ms)))
    assert result.latency is not None
    assert result.latency.tries == 1
    assert "1 measured" in str(result.latency)


def test_a_plan_that_holds_by_chance_does_not_count() -> None:
    exact, said = clock(lambda ms: ms), iter([1.0, 1.1])

    def lucky(models: Mapping[str, nn.Module], inputs: object) -> Comparison:
        found = dict(exact(models, inputs).latencies)
        ms = found["after"].median_ms * next(said, 1.1)
        return Comparison(found | {"after": Latency(ms, ms, ms, 9, 1, "cpu", 2)})

    result = timed(Budget(latency=0.5), LatencyOptions(table=Table(), network_timer=lucky))
    assert result.latency is not None
    assert result.latency.tries == 2
    channels = sum(m.out_channels for m in result.model.modules() if isinstance(m, nn.Conv2d))
    assert 1.1e-3 * channels == pytest.approx(result.latency.measured_ms)
    assert 0.94 * 0.5 * 0.07 <= 1.1e-3 * channels <= 0.5 * 0.07


def test_other_limits_hold_beside_the_time() -> None:
    budget = Budget(latency=0.8, params=0.3)
    result = timed(budget, LatencyOptions(table=Table(), network_timer=clock(lambda ms: 1.1 * ms)))
    assert result.cost_after.params <= 0.3 * result.cost_before.params
    assert result.latency is not None
    assert result.latency.holds


def test_a_budget_that_is_met_already_cuts_nothing() -> None:
    result = timed(Budget(latency="1 ms"), LatencyOptions(table=Table(), network_timer=clock(lambda ms: ms)))
    assert not result.plan.keep


def test_a_time_that_cannot_be_held_is_an_error_with_what_was_measured() -> None:
    stubborn = LatencyOptions(table=Table(), network_timer=clock(lambda ms: 1.0 + 0.01 * ms))
    with pytest.raises(BudgetError, match=r"no plan is within 0.50\d* ms: .* takes 1 ms"):
        timed(Budget(latency=0.5), stubborn)
    with pytest.raises(BudgetError, match="the least possible is 0.002 ms"):
        timed(Budget(latency="1us"), stubborn)


def test_cut_by_cut_the_last_one_holds_the_time() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(3)]
    recipe = Recipe.preset("one-shot", steps=3, criterion="magnitude")
    law = clock(lambda ms: 1.25 * ms)
    heard = Recorder()
    timing = LatencyOptions(table=Table(), network_timer=law)
    result = in_place(net(), X, Budget(latency=0.5), batches, recipe, latency=timing, callbacks=[heard])
    assert len(result.cuts) == 3
    assert result.latency is not None
    assert result.latency in heard
    channels = sum(m.out_channels for m in result.model.modules() if isinstance(m, nn.Conv2d))
    assert 1.25e-3 * channels == pytest.approx(result.latency.measured_ms)
    assert 0.94 * 0.5 * 1.25 * 0.07 <= result.latency.measured_ms <= 0.5 * 1.25 * 0.07


def test_automatic_rounding_measures_the_device_too() -> None:
    class Stepped:
        def milliseconds(self, widths: IntArray) -> np.ndarray:
            return 1e-3 * (np.ceil(widths[..., :2] / 10) * 10).sum(-1)

    auto = Recipe.preset("one-shot", widths={"multiple_of": "auto"})
    result = timed(Budget(channels=0.5), LatencyOptions(table=Stepped()), auto)
    assert all(len(kept) % 10 == 0 for kept in result.plan.keep.values())


def test_a_noisy_clock_leaves_more_in_reserve_at_each_try() -> None:
    rng = np.random.default_rng(0)

    def noisy(models: Mapping[str, nn.Module], inputs: object) -> Comparison:
        exact = clock(lambda ms: ms)(models, inputs).latencies
        return Comparison(
            {
                name: Latency(ms, ms, ms, 9, 1, "cpu", 2)
                for name, item in exact.items()
                for ms in [item.median_ms * float(rng.normal(1, 0.02))]
            }
        )

    for _ in range(10):
        result = timed(Budget(latency=0.5), LatencyOptions(table=Table(), network_timer=noisy))
        assert result.latency is not None
        assert result.latency.holds
        assert 0.85 * result.latency.allowed_ms <= result.latency.measured_ms
