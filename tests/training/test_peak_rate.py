from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from secateur.data import Loader
from secateur.errors import DataError
from secateur.models import InputSpec
from secateur.training.context import RunContext
from secateur.training.events import EpochDone, Progress
from secateur.training.loop import FitOptions, fit
from secateur.training.peak_rate import PeakRate, _samples, find_peak_rate
from secateur.training.settings import FitSettings
from tests.recorder import Recorder

Examples = list[tuple[Tensor, Tensor]]


def quadratic(curvature: float) -> tuple[nn.Module, Examples]:
    """A network of one weight, the loss of which is curvature / 2 (w - 1)², for all batches."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    side = (curvature / 2) ** 0.5
    return net, [(torch.full((4, 1), side), torch.full((4, 1), side)) for _ in range(8)]


def loss_of(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return mse_loss(net(batch[0]), batch[1])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("curvature", [0.2, 20.0, 2000.0])
def test_the_rate_is_below_the_one_at_which_gradient_descent_diverges(
    curvature: float, momentum: float
) -> None:
    net, batches = quadratic(curvature)
    settings = FitSettings(optimizer={"momentum": momentum}, clip_norm=0, schedule="constant")
    rate = find_peak_rate(net, batches, settings, loss_of).rate
    limit = 2 * (1 + momentum) / curvature  # Polyak 1964, for a quadratic
    assert rate.value < limit / 3
    assert rate.value > min(limit, 1.0) / 1000
    assert net.weight.item() == 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.Identity()])
def test_nothing_is_changed_and_the_result_is_repeatable(name: str, norm: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), copy.deepcopy(norm), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(96, 3)
    ).eval()
    images = [torch.randint(0, 255, (1, 6, 6), dtype=torch.uint8) for _ in range(40)]
    spec = InputSpec((1, 6, 6), (0.5,), (0.2,))
    loader = Loader(images, torch.arange(40) % 3, spec, 8, shuffle=True, epoch=5)  # type: ignore[arg-type]
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    random = torch.get_rng_state()

    def cross_entropy(copied: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(copied(batch[0]), batch[1])

    settings = FitSettings(optimizer={"name": name})
    first = find_peak_rate(net, loader, settings, cross_entropy).rate
    torch.rand(3)
    second = find_peak_rate(net, loader, settings, cross_entropy).rate
    assert first == second
    assert loader.epoch == 5
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    torch.set_rng_state(random)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_generators_go_on_as_before() -> None:
    net, batches = quadratic(2.0)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    find_peak_rate(net, batches, FitSettings(), loss_of)
    assert torch.equal(torch.rand(2), expected)


def test_rates_at_which_the_loss_overflows_are_not_taken() -> None:
    """At 1e12 of curvature, every rate that can be tried gives an infinite loss within a few steps."""
    net, batches = quadratic(1e12)
    rate = find_peak_rate(net, batches, FitSettings(clip_norm=0), loss_of).rate
    assert rate.value == pytest.approx(3e-4 / 100 / 3)  # a third of the lowest


def test_one_batch_is_enough_and_none_is_an_error() -> None:
    net, batches = quadratic(2.0)
    assert find_peak_rate(net, batches[:1], FitSettings(), loss_of).rate.value > 0
    with pytest.raises(DataError, match="no batches to train on"):
        find_peak_rate(net, [], FitSettings(), loss_of)


def test_a_loss_is_exceeded_beyond_chance_only() -> None:
    rate = PeakRate(0.1, "", start_loss=1.0, margin=0.2)
    assert not rate.is_exceeded_by(1.15)
    assert rate.is_exceeded_by(1.25)
    assert rate.is_exceeded_by(float("nan"))
    assert not rate.lowered().is_exceeded_by(5.0)


def test_the_loss_before_training_is_that_of_all_batches_not_of_those_held_back() -> None:
    """With two batches, one of which is hard, the mean over an epoch is above the loss of the easy one."""
    net, (easy, *_) = quadratic(0.2)
    hard = (easy[0], 10 * easy[1])
    before = [loss_of(net, batch).item() for batch in (easy, hard)]
    rate = find_peak_rate(net, [easy, hard], FitSettings(), loss_of).rate
    assert rate.start_loss == pytest.approx(sum(before) / 2)
    assert not rate.is_exceeded_by(sum(before) / 2)
    assert not replace(rate, margin=0.0).is_exceeded_by(1.04 * sum(before) / 2)
    assert replace(rate, margin=0.0).is_exceeded_by(1.06 * sum(before) / 2)


def test_two_batches_say_little_about_the_loss_before_training_and_equal_ones_much() -> None:
    """With one degree of freedom, half of the interval of 95% is 12.7 standard errors (Student 1908)."""
    net, (easy, *_) = quadratic(0.2)
    hard = (easy[0], 2 * easy[1])
    before = [loss_of(net, batch).item() for batch in (easy, hard)]
    rate = find_peak_rate(net, [easy, hard], FitSettings(), loss_of).rate
    assert rate.margin == pytest.approx(12.706 * (before[1] - before[0]) / 2, rel=1e-4)
    assert find_peak_rate(net, [easy, easy], FitSettings(), loss_of).rate.margin == 0


def test_a_plateau_at_low_rates_does_not_end_the_search() -> None:
    """Far from the solution, low rates gain less than the noise."""
    generator = torch.Generator().manual_seed(0)
    net, (batch, _, *_) = quadratic(0.02)
    noise = iter(1e-4 * torch.randn(1000, generator=generator))

    def noisy(copied: nn.Module, taken: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(copied, taken) + next(noise)

    found = find_peak_rate(net, [batch, batch], FitSettings(clip_norm=0), noisy).rate
    assert found.value > 0.01
    assert "the best of 6 tried" in found.reason


def test_a_small_rise_at_low_rates_does_not_end_the_search() -> None:
    """Any step raises the loss of new batches by a little; many small ones, or a few large ones, lower it."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)

    def bumped(copied: nn.Module, batch: Tensor) -> Tensor:
        weight = copied(batch).mean()
        return 1 - weight.clamp(max=0.5) + (0.02 if weight.item() else 0.0)

    found = find_peak_rate(net, [torch.ones(4, 1)] * 16, FitSettings(clip_norm=0), bumped).rate
    assert "then 1.0" in found.reason  # at the first rate
    assert found.value > 3e-4


def settled(examples: Examples) -> nn.Module:
    """A network that solves a problem, so that a rate far too high does harm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    fit(net, examples, FitSettings(epochs=30, optimizer={"learning_rate": 0.1}))
    return net


def test_a_training_that_diverges_starts_once_more_from_where_it_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(64, 4, generator=generator)
    examples = list(zip(inputs.split(16), (inputs[:, 0] > 0).long().split(16), strict=True))
    net = settled(examples)
    reference = copy.deepcopy(net)

    def far_too_high(*_: Any, **__: Any) -> Any:
        found = find_peak_rate(*_, **__)
        return type(found)(PeakRate(2.0, "too high", found.rate.start_loss, found.rate.margin), 0.0)

    monkeypatch.setattr("secateur.training.loop.find_peak_rate", far_too_high)
    heard = Recorder()
    settings = FitSettings(epochs=3, schedule="constant", clip_norm=0, keep_best=False)
    result = fit(net, examples, settings, FitOptions(context=replace(RunContext.of(net), callbacks=[heard])))
    assert [event.epoch for event in heard.of(EpochDone)] == [1, 2, 1, 2, 3]
    assert result.rate is not None
    assert result.rate.value == 0.2
    notes = heard.of(str)
    assert any("diverged in epoch 2" in note and "rate of 0.2" in note for note in notes)
    # It ends where a training at the lower rate ends: nothing of the first attempt is left.
    fit(reference, examples, settings.with_rate(0.2))
    for value, expected in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(value, expected)


def test_a_rate_that_is_given_is_used_as_it_is() -> None:
    net, _ = quadratic(2.0)
    batches = [(torch.ones(2, 1), torch.zeros(2, dtype=torch.int64))] * 3
    heard = Recorder()
    settings = FitSettings(epochs=1, schedule="constant", warmup=0, optimizer={"learning_rate": 0.07})
    fit(net, batches, settings, FitOptions(context=RunContext(callbacks=[heard])))
    assert [event.learning_rate for event in heard.of(EpochDone)] == [0.07]


def test_with_a_teacher_the_best_rate_is_taken_itself() -> None:
    net, data = quadratic(1.0)
    alone, taught = (
        find_peak_rate(net, data, FitSettings(), loss_of, taught=taught).rate for taught in (False, True)
    )
    assert taught.value == pytest.approx(3 * alone.value)
    assert "a third of" in alone.reason
    assert "a third of" not in taught.reason


def test_where_a_pass_is_short_the_batches_of_several_serve() -> None:
    loader = Loader(
        torch.randint(0, 255, (8, 1, 4, 4), dtype=torch.uint8),
        torch.arange(8) % 2,
        InputSpec((1, 4, 4), (0.0,), (1.0,)),
        batch_size=4,
        seed=0,
        shuffle=True,
    )
    trained_on, held_back = _samples(loader)
    assert (len(trained_on), len(held_back)) == (12, 3)
    assert len({tuple(batch[0].flatten().tolist()) for batch in trained_on}) > 2
    listed = list(loader)
    assert [len(part) for part in _samples(listed)] == [1, 1]


def test_trials_report_how_far_they_are() -> None:
    net, batches = quadratic(20.0)
    heard = Recorder()
    context = RunContext(callbacks=[heard])
    fit(net, batches, FitSettings(epochs=1), FitOptions(loss_fn=mse_loss, context=context))
    steps = [event for event in heard.of(Progress) if event.task == "trying learning rates"]
    assert [event.done for event in steps[:-1]] == list(range(1, len(steps)))
    assert len(steps) > 12
    assert all(event.total is not None and event.done <= event.total for event in steps)
    assert steps[-1].done == steps[-1].total
