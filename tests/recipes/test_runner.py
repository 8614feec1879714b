from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.criteria import Scores
from secateur.data import Loader
from secateur.errors import BudgetError, StoppedError, TrainingError
from secateur.models import InputSpec
from secateur.recipes import Cut, PruneResult, Recipe, attention, runner
from secateur.training import loop
from secateur.training.evaluate import Evaluation
from secateur.training.events import EpochDone, Progress
from secateur.training.interrupt import interruptible
from secateur.training.resume import Journal
from secateur.training.settings import FitSettings, OptimizerSettings
from tests.recipes.running import in_place
from tests.recorder import Recorder

Batch = tuple[Tensor, Tensor]
SHORT = Recipe.preset("plain", steps=3, finetune=FitSettings(epochs=2))


def run(
    net: nn.Module, example: Tensor, batches: list[Batch], settings: Recipe
) -> tuple[PruneResult, Recorder, list[str]]:
    heard = Recorder()
    kept: list[str] = []

    def keep(name: str, evaluation: Evaluation | None) -> None:
        kept.append(name)

    result = in_place(
        net,
        example,
        sec.Budget(channels=0.5),
        batches,
        settings,
        validation=batches,
        callbacks=[heard],
        save=keep,
    )
    return result, heard, kept


def test_the_network_itself_is_cut_to_the_budget_in_proved_steps(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    weight = net[0].weight
    result, heard, kept = run(net, example, batches, SHORT)
    assert result.model is net
    assert net[0].weight is weight
    assert sum(group.channels for group in result.graph.prunable) == 18
    assert sec.cost(net, example) == result.cost_after
    assert [cut.number for cut in result.cuts] == [1, 2, 3]
    assert all(cut.verification.ok for cut in result.cuts)
    phases = [(event.phase, event.epoch) for event in heard if isinstance(event, EpochDone)]
    between = [(f"after cut {cut}", epoch) for cut in (1, 2) for epoch in (0, 1)]
    assert phases == [*between, *(("after the last cut", epoch) for epoch in (0, 1, 2))]
    assert [event for event in heard if isinstance(event, Cut)] == list(result.cuts)
    # A larger network than the budget allows is never the best.
    last_cut = len(kept) - 1 - kept[::-1].index("best")
    assert kept.index("best") > kept.index("last")
    assert kept[: kept.index("best")].count("last") >= 5
    assert last_cut >= 0


def test_the_network_is_traced_once_and_looked_at_once(
    net: nn.Module, example: Tensor, batches: list[Batch]
) -> None:
    with patch.object(attention, "trace", wraps=attention.trace) as trace:
        _, heard, _ = run(net, example, batches, SHORT)
    assert trace.call_count == 1
    scoring = [event for event in heard if isinstance(event, Progress) and event.task == "scoring"]
    assert len(scoring) == len(batches)  # one pass before the first cut, none between


def test_scores_come_from_the_last_epoch_of_training(
    net: nn.Module, example: Tensor, batches: list[Batch]
) -> None:
    """The second cut must go by what a hand-written watch over the same steps finds."""
    settings = Recipe.preset("plain", steps=2, finetune=FitSettings(epochs=0))
    watched: list[Scores] = []
    original = runner.ScoreCollector.scores

    def scores(self: runner.ScoreCollector, **options: bool) -> Scores:
        found = original(self, **options)
        watched.append(found)
        return found

    with patch.object(runner.ScoreCollector, "scores", scores):
        result, _, _ = run(net, example, batches, settings)
    second = result.cuts[1].plan
    for name, removed in second.removed.items():
        ranked = watched[-1][name].argsort(stable=True)[: len(removed)]
        assert sorted(ranked.tolist()) == list(removed)


@pytest.mark.parametrize("criterion", ["magnitude", "mutual-information", "activation-mean"])
def test_criteria_that_cannot_watch_training_get_what_they_need(
    net: nn.Module, example: Tensor, batches: list[Batch], criterion: str
) -> None:
    _, heard, _ = run(net, example, batches, SHORT.model_copy(update={"criterion": criterion}))
    scoring = sum(isinstance(event, Progress) and event.task == "scoring" for event in heard)
    expected = {"magnitude": 0, "mutual-information": 3, "activation-mean": 1}[criterion]
    assert scoring == expected * len(batches)


def test_the_optimizer_goes_through_every_cut(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    in_place(net, example, sec.Budget(macs=0.5), batches, SHORT, optimizer=optimizer)
    for parameter in net.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape
        assert optimizer.state[parameter]["momentum_buffer"].abs().sum() > 0


def test_without_epochs_between_the_examples_are_looked_at_before_each_cut(
    net: nn.Module, example: Tensor, batches: list[Batch]
) -> None:
    settings = SHORT.model_copy(update={"between": FitSettings(epochs=0), "scoring_batches": 2})
    _, heard, _ = run(net, example, batches, settings)
    scoring = [event for event in heard if isinstance(event, Progress) and event.task == "scoring"]
    assert [event.done for event in scoring] == [1, 2] * 3
    assert {event.total for event in scoring} == {2}


def test_the_original_protocol_by_its_name(net: nn.Sequential, example: Tensor, batches: list[Batch]) -> None:
    original = Recipe.preset("original")
    assert original.channels_per_step == 512
    assert (original.between.epochs, original.finetune.epochs) == (10, 15)
    assert original.between.optimizer == OptimizerSettings(name="sgd", learning_rate=1e-3, momentum=0.9)
    assert original.between.optimizer == original.finetune.optimizer
    assert original.between.schedule == original.finetune.schedule == "constant"
    small = original.model_copy(update={"channels_per_step": 5})
    result = in_place(net, example, sec.Budget(channels=1 / 3), batches, small)
    assert [cut.plan.channels_removed for cut in result.cuts] == [5, 5, 4]
    assert net[7].out_features == 16
    assert [fit.step for fit in result.fits] == [40, 40, 60]


def test_the_protocol_of_the_paper_by_its_name(net: nn.Module, example: Tensor, batches: list[Batch]) -> None:
    paper = Recipe.preset("paper")
    assert (paper.channels_per_step, paper.between.updates) == (1, 30)
    short = paper.model_copy(update={"finetune": FitSettings(epochs=0)})
    result = in_place(net, example, sec.Budget(channels=32), batches, short)
    assert [cut.plan.channels_removed for cut in result.cuts] == [1] * 4
    assert [fit.step for fit in result.fits] == [30] * 3 + [0]


def test_an_impossible_budget_is_refused_before_anything_is_done(
    net: nn.Module, example: Tensor, batches: list[Batch]
) -> None:
    before = sec.cost(net, example)
    with pytest.raises(BudgetError, match="least possible"):
        in_place(net, example, sec.Budget(macs=1), batches, Recipe())
    assert sec.cost(net, example) == before


def test_a_loss_that_is_not_a_number_leaves_a_network_that_works(
    net: nn.Module, example: Tensor, batches: list[Batch]
) -> None:
    calls = 0

    def loss_fn(scores: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        loss = nn.functional.cross_entropy(scores, targets)
        return loss * float("nan") if calls > 6 else loss

    with pytest.raises(TrainingError, match="after cut 1: the loss is nan"):
        in_place(net, example, sec.Budget(macs=0.5), batches, SHORT, loss_fn=loss_fn)
    assert net(example).isfinite().all()


def test_few_updates_are_worth_neither_a_file_nor_a_look_at_the_validation_examples(
    net: nn.Module, example: Tensor, batches: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secateur.recipes.runner._SECONDS_BETWEEN_WRITES", 1e6)  # even on a slow machine
    paper = Recipe.preset("paper").model_copy(update={"finetune": FitSettings(epochs=1)})
    _, heard, kept = run(net, example, batches, paper)
    assert len([event for event in heard if isinstance(event, Cut)]) == 18
    # After the first cut, before the epoch at the end, and after it.
    assert [name for name in kept if name == "last"] == ["last"] * 3
    assert kept[:3] == ["last", "last", "best"]
    looks = [event for event in heard.of(Progress) if event.task == "validating"]
    assert len(looks) == 2 * len(batches)


def test_ctrl_c_stops_between_two_steps(net: nn.Module, example: Tensor, batches: list[Batch]) -> None:
    kept: list[str] = []

    class Interrupt(sec.Callback):
        def on_cut(self, cut: Cut) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    with interruptible() as interruption, pytest.raises(StoppedError):
        in_place(
            net,
            example,
            sec.Budget(macs=0.5),
            batches,
            SHORT,
            callbacks=[Interrupt()],
            interruption=interruption,
            save=lambda name, _: kept.append(name),
        )
    assert kept[-1] == "last"
    assert net(example).shape == (2, 3)


def test_repair_brings_responses_back_before_any_training(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    inputs = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        wanted = net.eval()(inputs)
    gaps = []
    for repair in (False, True):
        twin = copy.deepcopy(net)
        settings = Recipe.preset("plain", steps=1, reconstruct=repair, finetune=FitSettings(epochs=0))
        in_place(twin, example, sec.Budget(channels=0.7), batches, settings)
        with torch.no_grad():
            gaps.append(float((twin.eval()(inputs) - wanted).square().mean()))
    assert gaps[1] < 0.5 * gaps[0]


def test_a_training_loop_and_a_metric_of_ones_own(
    net: nn.Module, example: Tensor, batches: list[Batch]
) -> None:
    trained: list[tuple[int, int]] = []

    def train(model: nn.Module, settings: FitSettings) -> None:
        trained.append((sum(p.numel() for p in model.parameters()), settings.epochs))

    result = in_place(net, example, sec.Budget(channels=0.5), batches, SHORT, train=train)
    assert [epochs for _, epochs in trained] == [1, 1, 2]
    assert [size for size, _ in trained] == [cut.plan.cost_after.params for cut in result.cuts]
    assert result.fits == ()


def test_a_metric_chooses_the_epoch_and_sees_the_network_in_evaluation_mode(
    net: nn.Module, example: Tensor, batches: list[Batch]
) -> None:
    seen: list[dict[str, Tensor]] = []

    def metric(model: nn.Module) -> float:
        assert not any(module.training for module in model.modules())
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return float(-abs(len(seen) - 4))  # the third epoch is the best; the first look is before training

    after = FitSettings(epochs=4, schedule="constant", optimizer=OptimizerSettings(learning_rate=0.1))
    settings = Recipe.preset("plain", steps=1, finetune=after)
    result = in_place(net, example, sec.Budget(channels=0.5), batches, settings, metric=metric)
    assert [epoch.metric for epoch in result.fits[-1].history] == [-3, -2, -1, 0, -1]
    left = net.state_dict()
    assert all(torch.equal(left[name], tensor) for name, tensor in seen[3].items())
    assert not all(torch.equal(left[name], tensor) for name, tensor in seen[4].items())


def test_an_optimizer_that_would_train_nothing_is_refused_before_the_first_cut(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.01)
    before = sec.cost(net, example)
    with pytest.raises(sec.UsageError, match="contains none of the parameters"):
        in_place(net, example, sec.Budget(macs=0.5), batches, SHORT, optimizer=optimizer)
    assert sec.cost(net, example) == before


LOOKING = Recipe.preset(
    "plain",
    steps=3,
    reconstruct=True,
    between=FitSettings(epochs=2),
    finetune=FitSettings(epochs=2),
    criterion="mutual-information",
)
"""Looks at the training batches for scores and repairs, besides training on them."""


class Counting(list[Batch]):
    """A loader of the user's that counts its passes; its number is not for others to set."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__(batches)
        self.begun: list[int] = []

    @property
    def epoch(self) -> int:
        return len(self.begun)

    @epoch.setter
    def epoch(self, number: int) -> None:
        raise AssertionError(f"epoch was set to {number}")

    def __iter__(self) -> Iterator[Batch]:
        self.begun.append(self.epoch)
        return super().__iter__()


def test_the_pass_of_a_loader_of_the_users_is_never_set(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    counting = Counting(batches)
    in_place(net, example, sec.Budget(macs=0.5), counting, LOOKING)
    assert len(counting.begun) > 6  # it was looked at for scores and repairs as well


def test_a_look_at_the_training_batches_does_not_set_the_passes_of_a_loader_back(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    inputs, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    images = list((inputs * 40 + 128).clamp(0, 255).byte())
    spec = InputSpec(tuple(inputs.shape[1:]), (0.5,) * inputs.shape[1], (0.2,) * inputs.shape[1])
    loader = Loader(images, targets, spec, batch_size=16, shuffle=True)
    trained: list[int] = []
    original = loop._train_round

    def train_epoch(*arguments: Any) -> tuple[float, float]:
        trained.append(loader.epoch)
        return original(*arguments)

    with patch.object(loop, "_train_round", train_epoch):
        in_place(net, example, sec.Budget(macs=0.5), loader, LOOKING)
    assert trained == list(range(6))


def test_an_optimizer_of_the_last_layer_alone_trains_it_and_nothing_else(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    optimizer = torch.optim.SGD(net[9].parameters(), lr=0.1, momentum=0.9)
    whole = net[0].weight.detach().clone()
    last = net[9].weight
    result = in_place(net, example, sec.Budget(macs=0.5), batches, SHORT, optimizer=optimizer)
    kept = list(range(8))
    for done in result.cuts:
        kept = [kept[place] for place in done.plan.keep.get("0", range(len(kept)))]
    assert torch.equal(net[0].weight, whole[kept])
    assert net[9].weight is last
    assert optimizer.state[last]["momentum_buffer"].shape == last.shape


def test_a_resumed_run_has_the_scores_of_the_whole_network(
    net: nn.Sequential, example: Tensor, batches: list[Batch], tmp_path: Path
) -> None:
    class Killed(sec.Callback):
        def on_cut(self, cut: Cut) -> None:
            if cut.number == 2:
                raise KeyboardInterrupt

    recipe = Recipe.preset("plain", steps=2, between={"epochs": 1}, finetune={"epochs": 0})
    file, budget, whole = tmp_path / "state.safetensors", sec.Budget(macs=0.5), copy.deepcopy(net)
    again = copy.deepcopy(net)
    expected = in_place(whole, example, budget, batches, recipe)
    with pytest.raises(KeyboardInterrupt):
        in_place(net, example, budget, batches, recipe, callbacks=[Killed()], journal=Journal(file))
    found = in_place(again, example, budget, batches, recipe, journal=Journal(file))
    assert [cut.plan.keep for cut in found.cuts] == [cut.plan.keep for cut in expected.cuts]
    assert found.scores == expected.scores
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())
