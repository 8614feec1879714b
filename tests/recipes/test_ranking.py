from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import secateur as sec
from secateur.budget import WidthCurves
from secateur.errors import StoppedError, UsageError
from secateur.recipes import Recipe
from secateur.training.events import Progress
from secateur.training.interrupt import interruptible
from secateur.training.settings import FitSettings
from tests.recipes.running import in_place
from tests.recorder import Recorder

Batch = tuple[Tensor, Tensor]


def test_allocation_by_curves_cuts_what_a_plan_by_measured_curves_cuts(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    twin = copy.deepcopy(net)
    settings = Recipe.preset("plain", steps=1, allocation="curves", finetune=FitSettings(epochs=0))
    heard = Recorder()
    result = in_place(net, example, sec.Budget(macs=0.6), batches, settings, callbacks=[heard])
    graph = sec.trace(twin, example)
    scores = sec.score(twin, graph, "taylor", batches, nn.functional.cross_entropy)
    plan = sec.make_plan(graph, sec.width_curves(twin, graph, scores, batches), sec.Budget(macs=0.6))
    assert result.cuts[0].plan.removed == plan.removed
    measured = [event for event in heard if isinstance(event, Progress) and event.task == "measuring widths"]
    assert [event.done for event in measured] == list(range(1, len(graph.prunable) + 1))
    assert {event.total for event in measured} == {len(graph.prunable)}


def test_scores_widths_and_repair_come_from_the_calibration_examples(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    """With other training examples, and no training, nothing changes."""
    settings = Recipe.preset(
        "plain", steps=1, allocation="curves", reconstruct=True, finetune=FitSettings(epochs=0)
    )
    ends = []
    for training in (batches, [(torch.zeros_like(x), y) for x, y in batches]):
        twin = copy.deepcopy(net)
        in_place(twin, example, sec.Budget(macs=0.6), training, settings, calibration=batches)
        ends.append(twin.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_measuring_can_be_interrupted(net: nn.Module, example: Tensor, batches: list[Batch]) -> None:
    heard: list[WidthCurves] = []

    class Interrupt(sec.Callback):
        def on_curves(self, curves: WidthCurves) -> None:
            heard.append(curves)
            os.kill(os.getpid(), signal.SIGINT)

    with interruptible() as interruption, pytest.raises(StoppedError):
        in_place(
            net,
            example,
            sec.Budget(macs=0.6),
            batches,
            Recipe(criterion="magnitude"),
            callbacks=[Interrupt()],
            interruption=interruption,
        )
    assert len(heard) == 1


CURVES = Recipe.preset("one-shot", allocation="curves")


def test_curves_in_one_call(net: nn.Module, example: Tensor, batches: list[Batch]) -> None:
    budget = sec.Budget(macs=0.6)
    result = sec.prune(net, example, budget, batches=batches, recipe=CURVES)
    graph = sec.trace(net, example)
    scores = sec.score(net, graph, "taylor", batches, nn.functional.cross_entropy)
    curves = sec.width_curves(net, graph, scores, batches)
    assert result.plan.removed == sec.make_plan(graph, curves, budget).removed
    assert result.curves == curves
    assert result.ok


@pytest.mark.parametrize("given", ["nothing", "an iterator"])
def test_curves_in_one_call_need_batches_that_last(
    net: nn.Module, example: Tensor, batches: list[Batch], given: str
) -> None:
    once = None if given == "nothing" else iter(batches)
    with pytest.raises(UsageError, match="pass batches=|gone through only once"):
        sec.prune(net, example, sec.Budget(macs=0.6), batches=once, recipe=CURVES)


def test_the_teacher_is_the_network_before_the_first_cut(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    """With nothing but the teacher's answers to learn from, wrong targets change nothing."""
    inputs = torch.cat([x for x, _ in batches])
    with torch.no_grad():
        wanted = torch.softmax(net.eval()(inputs), 1)
    settings = Recipe.preset(
        "plain",
        steps=2,
        distillation={"weight": 1.0},
        between=FitSettings(epochs=1, optimizer=Recipe.preset("plain").between.optimizer),
        finetune=FitSettings(epochs=30),
    )
    ends = []
    for shift in (0, 1):
        twin = copy.deepcopy(net)
        shifted = [(x, (y + shift) % 3) for x, y in batches]
        settled = settings.model_copy(update={"criterion": "magnitude"})
        in_place(twin, example, sec.Budget(channels=0.7), shifted, settled)
        with torch.no_grad():
            ends.append(torch.softmax(twin.eval()(inputs), 1))
    assert torch.equal(ends[0], ends[1])
    assert float((ends[0] - wanted).abs().mean()) < 0.1


def test_a_mirrored_teacher_of_symmetric_images_teaches_the_same(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    """Images that are their own mirror images are taught alike; others are not."""
    symmetric = [(x + x.flip(-1), y) for x, y in batches]
    for images, alike in ((symmetric, True), (batches, False)):
        ends = []
        for mirror in (False, True):
            twin = copy.deepcopy(net)
            settings = Recipe.preset(
                "plain", distillation={"weight": 1.0, "flip": mirror}, steps=1, finetune=FitSettings(epochs=3)
            )
            in_place(twin, example, sec.Budget(channels=0.7), images, settings)
            ends.append(twin[0].weight)
        assert torch.equal(*ends) is alike


def test_inputs_that_are_not_images_are_not_mirrored() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    before = copy.deepcopy(net)
    batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]
    settings = Recipe.preset("plain", distillation={"weight": 0.5, "flip": True})
    with pytest.raises(UsageError, match=r"not \(8, 4\); switch it off"):
        in_place(net, batches[0][0], sec.Budget(macs=0.5), batches, settings)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))


def test_watched_scores_do_not_hear_the_teacher(
    net: nn.Sequential, example: Tensor, batches: list[Batch]
) -> None:
    """Distilling by next to nothing must change nothing: only the student's own gates are looked at."""
    removed = []
    for distill in (0.0, 1e-6):
        twin = copy.deepcopy(net)
        settings = Recipe.preset(
            "plain", steps=2, distillation={"weight": distill}, finetune=FitSettings(epochs=0)
        )
        result = in_place(twin, example, sec.Budget(channels=0.5), batches, settings)
        removed.append([cut.plan.removed for cut in result.cuts])
    assert removed[0] == removed[1]


def test_a_loss_of_ones_own_has_no_teacher(net: nn.Sequential, example: Tensor, batches: list[Batch]) -> None:
    """The same formula under another name: outputs may be no class scores, so none are compared."""

    def own(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    ends = []
    for distill, loss_fn in ((0.0, own), (0.9, own), (0.9, nn.CrossEntropyLoss()), (0.9, cross_entropy)):
        twin = copy.deepcopy(net)
        settings = Recipe.preset(
            "plain",
            steps=1,
            criterion="magnitude",
            distillation={"weight": distill},
            finetune=FitSettings(epochs=1, keep_best=False),
        )
        in_place(twin, example, sec.Budget(channels=0.7), batches, settings, loss_fn=loss_fn)
        ends.append(torch.cat([p.detach().flatten() for p in twin.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])
    assert torch.equal(ends[2], ends[3])
