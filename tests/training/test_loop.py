from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from secateur.errors import DataError, StoppedError, TrainingError, UsageError
from secateur.training import loop
from secateur.training.context import RunContext
from secateur.training.evaluate import Evaluation, evaluate
from secateur.training.events import EpochDone, Progress
from secateur.training.interrupt import interruptible
from secateur.training.loop import FitOptions, fit
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings
from tests.recorder import Recorder

CONSTANT = FitSettings(
    epochs=2, schedule="constant", warmup=0, clip_norm=0, optimizer=OptimizerSettings(learning_rate=0.1)
)


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 1, 6, 6, generator=generator)
    targets = (inputs.mean((1, 2, 3)) > 0).long()
    return list(zip(inputs.split(8), targets.split(8), strict=True))


@pytest.fixture
def model() -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def plain(channels_last: str = "no") -> RunContext:
    return RunContext(DeviceSettings(accelerator="cpu", precision="float32", channels_last=channels_last))


@pytest.mark.parametrize("channels_last", ["no", "yes"])
def test_the_loop_does_what_a_handwritten_loop_does(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], channels_last: str
) -> None:
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        for inputs, targets in batches:
            optimizer.zero_grad()
            cross_entropy(reference(inputs), targets, label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
            optimizer.step()
    settings = CONSTANT.model_copy(update={"label_smoothing": 0.1, "clip_norm": 0.5})
    result = fit(model, batches, settings, FitOptions(context=plain(channels_last)))
    for got, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got, expected)
        assert got.is_contiguous()
    assert result.step == 6
    assert [done.epoch for done in result.history] == [1, 2]


def test_the_optimizer_handed_in_keeps_its_state_and_its_rate(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = FitSettings(epochs=1, warmup=0)
    fit(model, batches, settings, FitOptions(optimizer=optimizer))
    momentum = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    assert all(buffer.abs().sum() > 0 for buffer in momentum)
    assert optimizer.param_groups[0]["lr"] == 0.1
    fit(model, batches, settings, FitOptions(optimizer=optimizer))
    again = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    assert all(not torch.equal(old, new) for old, new in zip(momentum, again, strict=True))


def test_updates_are_counted_exactly(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    heard = Recorder()
    settings = FitSettings(updates=7, schedule="constant", optimizer={"learning_rate": 0.1})
    result = fit(model, batches, settings, FitOptions(context=RunContext(callbacks=[heard])))
    assert result.step == 7
    assert [e.done for e in heard if isinstance(e, Progress)] == list(range(1, 8))
    assert [e.epoch for e in heard if isinstance(e, EpochDone)] == [1, 2, 3]


def test_no_steps_leave_the_network_alone(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    before = copy.deepcopy(model.state_dict())
    assert fit(model, batches, FitSettings(epochs=0)).step == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_last_epoch_and_only_that_is_observed(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    seen = 0

    @contextmanager
    def observer() -> Iterator[None]:
        nonlocal seen

        def count(*_: object) -> None:
            nonlocal seen
            seen += 1

        handle = model.register_forward_hook(count)
        try:
            yield
        finally:
            handle.remove()

    fit(model, batches, CONSTANT, FitOptions(validation=batches, observe=observer()))
    assert seen == len(batches)


def test_the_network_that_is_kept_is_never_below_the_one_before_training(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    kept: dict[str, Evaluation | None] = {}
    weights: list[Tensor] = []

    def keep(name: str, evaluation: Evaluation | None) -> None:
        kept[name] = evaluation
        if name == "best":
            weights.append(model[0].weight.detach().clone())  # type: ignore[index]

    fit(model, batches, CONSTANT.model_copy(update={"epochs": 20}))  # so that there is something to lose
    before, trained = evaluate(model, batches), copy.deepcopy(model.state_dict())
    assert before.metric > 0.8
    wrong = [(inputs, 1 - targets) for inputs, targets in batches]  # so that every epoch makes it worse
    context = replace(plain(), save=keep)
    result = fit(model, wrong, CONSTANT.with_rate(1.0), FitOptions(validation=batches, context=context))
    assert [done.epoch for done in result.history] == [0, 1, 2]
    assert max(done.metric or 0.0 for done in result.history[1:]) < before.metric
    assert result.start == result.kept == kept["best"] == before
    assert result.kept_epoch == 0
    assert kept["last"] == result.evaluation
    assert torch.equal(weights[-1], model[0].weight)  # type: ignore[index]
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_a_number_stops_before_the_step(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    kept = []
    poisoned = [*batches[:2], (torch.full_like(batches[2][0], float("nan")), batches[2][1])]
    context = RunContext(save=lambda name, _: kept.append(name))
    with pytest.raises(TrainingError, match="the loss is nan at epoch 1, step 3; lower the learning rate"):
        fit(model, poisoned, CONSTANT, FitOptions(context=context))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert kept == ["last"]  # the state before the first step, and nothing after the accident


def test_a_gradient_that_is_not_a_number_stops_before_the_step(batches: list[tuple[Tensor, Tensor]]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    before = copy.deepcopy(model.state_dict())

    def loss_fn(scores: Tensor, _: Tensor) -> Tensor:
        return (scores - scores).sum().sqrt()  # 0, with a derivative of infinity times 0

    with pytest.raises(TrainingError, match="the norm of the gradient is nan at epoch 1, step 1"):
        fit(model, batches, CONSTANT.model_copy(update={"clip_norm": 1.0}), FitOptions(loss_fn=loss_fn))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_keeps_the_state(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], number: int
) -> None:
    kept: list[Tensor] = []

    class Interrupt(Recorder):
        def on_progress(self, progress: Progress) -> None:
            if progress.done == 4:
                os.kill(os.getpid(), number)

    with interruptible() as interruption:
        context = RunContext(
            callbacks=[Interrupt()],
            interruption=interruption,
            save=lambda *_: kept.append(model[0].weight.detach().clone()),  # type: ignore[index]
        )
        with pytest.raises(StoppedError):
            fit(model, batches, CONSTANT, FitOptions(context=context))
    assert len(kept) == 3  # before the first epoch, after it, and when stopped
    assert torch.equal(kept[-1], model[0].weight)  # type: ignore[index]
    assert not torch.equal(kept[-1], kept[-2])


def test_no_batches_are_an_error(model: nn.Module) -> None:
    with pytest.raises(DataError, match="no batches"):
        fit(model, [], CONSTANT)


@pytest.mark.parametrize("settings", [CONSTANT, FitSettings(epochs=1)])
def test_a_batch_of_one_example_is_too_small_for_batch_normalisation(settings: FitSettings) -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    single = [(torch.randn(1, 4), torch.tensor([0])) for _ in range(4)]
    with pytest.raises(UsageError, match=r"in '1' \(BatchNorm1d\): .* at least two examples in every batch"):
        fit(net, single, settings)


def test_auxiliary_heads_are_trained(batches: list[tuple[Tensor, Tensor]]) -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.auxiliary = nn.Linear(36, 2), nn.Linear(36, 2)

        def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            flat = inputs.flatten(1)
            return (self.main(flat), self.auxiliary(flat)) if self.training else self.main(flat)

    model = TwoHeads()
    before = copy.deepcopy(model)
    fit(model, batches, CONSTANT, FitOptions(validation=batches))
    assert not torch.equal(model.main.weight, before.main.weight)
    assert not torch.equal(model.auxiliary.weight, before.auxiliary.weight)


@pytest.mark.parametrize(
    ("examples", "found", "kept"),
    # The standard error of 0.9 is about 2 points with 200 examples, and 0.2 with 20,000.
    [
        # Within the standard error of the difference, the later one is kept, whatever its loss.
        (200, [(0.90, 0.30), (0.92, 0.28), (0.91, 0.40), (0.905, 0.50)], [0, 1, 2, 3]),
        (20_000, [(0.90, 0.30), (0.92, 0.28), (0.91, 0.25), (0.93, 0.27)], [0, 1, 3]),
        # What is lower by more is not.
        (200, [(0.90, 0.30), (0.96, 0.35), (0.91, 0.20)], [0, 1]),
        # Nothing is kept that is below the start.
        (200, [(0.90, 0.30), (0.895, 0.31), (0.895, 0.29), (0.90, 0.50), (0.80, 0.10)], [0, 3]),
        # Of a user's metric, only a higher value counts.
        (0, [(0.90, 0.0), (0.90, 0.0), (0.91, 0.0)], [0, 2]),
    ],
)
def test_of_what_differs_by_less_than_the_standard_error_the_last_is_kept(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    examples: int,
    found: list[tuple[float, float]],
    kept: list[int],
) -> None:
    coming = iter(found)
    evaluations = patch.object(loop, "validate", lambda *_, **__: Evaluation(*next(coming), examples))
    settings = CONSTANT.model_copy(update={"epochs": len(found) - 1})
    with evaluations:
        result = fit(model, batches, settings, FitOptions(validation=batches))
    assert [done.epoch for done in result.history if done.kept] == kept
    assert result.kept_epoch == kept[-1]


def test_patience_counts_epochs_without_a_higher_accuracy_or_a_lower_loss(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    found = [(0.90, 0.30), (0.90, 0.31), (0.90, 0.29), (0.90, 0.30), (0.90, 0.29), (0.95, 0.20)]
    coming = iter(found)
    settings = CONSTANT.model_copy(update={"epochs": 5, "patience": 2})
    with patch.object(loop, "validate", lambda *_, **__: Evaluation(*next(coming), 200)):
        result = fit(model, batches, settings, FitOptions(validation=batches))
    assert [done.epoch for done in result.history] == [0, 1, 2, 3, 4]
    assert result.kept_epoch == 4


def test_defaults_are_counted_in_updates_and_evaluated_about_ten_times(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    heard = Recorder()
    settings = FitSettings(optimizer={"learning_rate": 0.01})
    result = fit(
        model, batches, settings, FitOptions(validation=batches, context=RunContext(callbacks=[heard]))
    )
    assert result.step == 1000  # 100 √3 is less
    assert [done.epoch for done in heard.of(EpochDone)] == [0, *range(34, 334, 34), 334]
    assert heard.of(EpochDone)[-1].epochs == 334


def test_batches_that_can_be_gone_through_only_once_are_refused() -> None:
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])) for _ in range(2)]
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(UsageError, match="batches is a list_iterator, which can be gone through only once"):
        fit(model, iter(batches), FitSettings(epochs=1))
    with pytest.raises(UsageError, match="validation is a generator"):
        fit(model, batches, FitSettings(epochs=2), FitOptions(validation=(batch for batch in batches)))
    assert torch.equal(model.weight, before)


class _GivesLess:
    """Batches of which every pass gives less, and no iterator."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.left = iter(batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.left


def test_batches_that_end_after_one_pass_are_named(
    model: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    class Sized(_GivesLess):
        def __len__(self) -> int:
            return 2

    settings = FitSettings(epochs=3, optimizer=OptimizerSettings(learning_rate=0.01))
    with pytest.raises(DataError, match="they can be gone through only once: pass a list"):
        fit(model, Sized(batches[:2]), settings)


def test_a_metric_of_nan_before_training_is_worse_than_any(
    model: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    values = iter([float("nan"), 0.4, 0.9])
    options = FitOptions(metric=lambda _: next(values))
    state = fit(model, batches, FitSettings(epochs=2), options)
    assert state.kept is not None
    assert (state.kept_epoch, state.kept.metric) == (2, 0.9)
