from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.training.context import RunContext
from secateur.training.ema import WeightAverage
from secateur.training.loop import FitOptions, fit
from secateur.training.settings import FitSettings, OptimizerSettings


@pytest.fixture
def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(5)]


SETTINGS = FitSettings(
    epochs=2, schedule="constant", keep_best=False, optimizer=OptimizerSettings(learning_rate=0.1)
)


def test_the_network_left_behind_is_the_average_of_all_steps(
    net: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    twin = copy.deepcopy(net)
    seen: list[dict[str, Tensor]] = []
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    original = optimizer.step

    def step(*arguments: object) -> None:
        original(*arguments)
        seen.append({name: tensor.detach().clone() for name, tensor in twin.state_dict().items()})

    optimizer.step = step  # type: ignore[method-assign]
    fit(twin, batches, SETTINGS, FitOptions(optimizer=optimizer))
    fit(net, batches, SETTINGS.model_copy(update={"ema_decay": 0.8}))
    assert len(seen) == 10
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        expected = seen[0][name]
        for state in seen[1:]:
            expected = 0.8 * expected + 0.2 * state[name]
        assert torch.allclose(tensor, expected, atol=1e-6), name


def test_the_average_is_judged_and_kept_while_training_goes_on_with_the_weights_themselves(
    net: nn.Sequential, batches: list[tuple[Tensor, Tensor]]
) -> None:
    kept: list[Tensor] = []
    context = RunContext(save=lambda name, _: kept.append(net[0].weight.detach().clone()))
    fit(
        net,
        batches,
        SETTINGS.model_copy(update={"ema_decay": 0.9}),
        FitOptions(validation=batches, context=context),
    )
    assert torch.equal(kept[-1], net[0].weight)
    assert not torch.equal(kept[-1], kept[0])


def test_own_weights_come_back_when_judging_fails(net: nn.Sequential) -> None:
    average = WeightAverage(net, 0.5)
    average.update()
    with torch.no_grad():
        net[0].weight.add_(1.0)
    own = net[0].weight.detach().clone()

    def fail_inside() -> None:
        with average.applied():
            assert not torch.equal(net[0].weight, own)
            raise RuntimeError("judging failed")

    with pytest.raises(RuntimeError, match="judging"):
        fail_inside()
    assert torch.equal(net[0].weight, own)
