"""Several processes take the steps that one would take alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from secateur.criteria import watch
from secateur.graph import trace
from secateur.ranks import Ranks
from secateur.training import process_group
from secateur.training.context import RunContext
from secateur.training.distillation import Teacher
from secateur.training.evaluate import evaluate
from secateur.training.loop import FitOptions, fit
from secateur.training.settings import FitSettings
from tests.processes import in_processes

CRITERIA = ("taylor", "taylor-squared", "taylor-weight", "activation-std", "reconstruction")


def network() -> nn.Module:
    """A network without batch norm, whose statistics on CPUs are those of each process's part."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
        nn.LayerNorm(7),
        nn.Linear(7, 4),
    )


def normalised_network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
        nn.BatchNorm1d(7, affine=False),
        nn.Linear(7, 4),
    )


def batches(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(size, 1, 6, 6, generator=generator), torch.randint(4, (size,), generator=generator))
        for size in sizes
    ]


def train(context: RunContext, sizes: tuple[int, ...], criterion: str) -> dict[str, Any]:
    """Two epochs with all that a fit can have, watched in the last."""
    model, examples = network(), batches(sizes)
    settings = FitSettings(epochs=2, ema_decay=0.5, clip_norm=1.0, label_smoothing=0.1, keep_best=False)
    watching = watch(
        model, trace(model, examples[0][0]), criterion, across_ranks=context.ranks.is_distributed
    )
    state = fit(
        model,
        examples,
        settings,
        FitOptions(
            validation=batches((5, 1, 3)), teacher=Teacher(network(), 0.5), observe=watching, context=context
        ),
    )
    found = evaluate(model, batches((4, 2, 1)), context=context)
    history = [[done.loss, done.metric, done.validation_loss] for done in state.history[1:]]
    return {
        "weights": dict(model.state_dict()),
        "scores": {name: watching.scores()[name] for name in watching.scores()},
        "history": torch.tensor(history, dtype=torch.float64),
        "judged": torch.tensor([found.metric, found.loss, found.examples], dtype=torch.float64),
    }


def check_same(together: list[Any], alone: Any) -> None:
    """All processes find the same bits, and what one would find but for the order of additions."""
    for found in together[1:]:
        torch.testing.assert_close(found, together[0], rtol=0, atol=0)
    torch.testing.assert_close(together[0], alone, rtol=1e-5, atol=1e-6)


# The last batch of the second has an example for one process alone.
SIZES = {"even": (12, 12, 12), "uneven": (8, 7, 2, 5)}


def train_both(context: RunContext) -> dict[str, Any]:
    return {"plain": train(context, SIZES["uneven"], "taylor"), "normalised": train_normalised(context)}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes find, which are started once."""
    return in_processes(train_both, 2, tmp_path_factory.mktemp("both"))


def test_two_processes_train_like_one(both: list[dict[str, Any]], tmp_path: Path) -> None:
    [alone] = in_processes(train, 1, tmp_path, SIZES["uneven"], "taylor")
    check_same([found["plain"] for found in both], alone)


def train_all(context: RunContext) -> dict[str, Any]:
    return {
        f"{criterion} {name}": train(context, sizes, criterion)
        for name, sizes in SIZES.items()
        for criterion in CRITERIA
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_processes_train_like_one(count: int, tmp_path: Path) -> None:
    [alone] = in_processes(train_all, 1, tmp_path)
    check_same(in_processes(train_all, count, tmp_path), alone)


def train_normalised(context: RunContext) -> dict[str, Any]:
    model = normalised_network()
    settings = FitSettings(epochs=2, ema_decay=0.5, keep_best=False)
    fit(model, batches((8, 8, 4)), settings, FitOptions(context=context))
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_batch_norms_on_cpus_end_at_the_same_statistics_in_all_processes(
    both: list[dict[str, Any]],
) -> None:
    found = [each["normalised"] for each in both]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    before = normalised_network().state_dict()
    assert not torch.equal(found[0]["1.running_mean"], before["1.running_mean"])


class Distributed:
    is_distributed = True


def test_batch_norms_on_gpus_are_synchronised_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "_is_on_gpu", lambda norm: norm.num_features != 7)
    model = normalised_network()
    modules, ranks = list(model.modules()), cast("Ranks", Distributed)
    with process_group.synchronized_batch_norm(model, ranks):
        kinds = [type(module) for module in model.modules()]
        assert kinds.count(nn.SyncBatchNorm) == 2
        assert nn.BatchNorm1d in kinds  # not on a GPU
        model(torch.randn(4, 1, 6, 6))  # one process: no synchronisation, the same arithmetic
    assert [type(module) for module in model] == [type(module) for module in normalised_network()]
    assert list(model.modules()) == modules
    assert not hasattr(model[1], "process_group")
