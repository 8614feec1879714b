"""Wrong arguments of public functions end with an error that says what was given and what to pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur as sec
from secateur.ablation import ablate

X = torch.randn(3, 6)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def graph() -> sec.ChannelGraph:
    return sec.trace(net(), X)


def plan() -> sec.PruningPlan:
    return sec.plan_from(graph(), {"0": [0]})


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "a method": (
        lambda: sec.trace(net().forward, X),
        "model is the method forward of a Sequential: pass a net",
    ),
    "nothing": (lambda: sec.trace(None, X), "model is None: pass a network"),
    "a class": (lambda: sec.trace(nn.Linear, X), "model is the class Linear, not an object of it"),
    "a function": (lambda: sec.cost(torch.relu, X), "model is the function relu: pass a network"),
    "no graph": (lambda: sec.score(net(), X, "magnitude"), "graph is a Tensor: pass the channel graph"),
    "ablation": (lambda: ablate(net(), X, [], F.cross_entropy), "graph is a Tensor: pass the channel graph"),
    "a network as graph": (
        lambda: sec.plan_from(net(), {"0": [0]}),
        "graph is a Sequential: pass the channel",
    ),
    "a list": (lambda: sec.plan_from(graph(), [0, 1]), r"remove is a list: pass .*\{'conv1': \[0, 3\]\}"),
    "a list to keep": (lambda: sec.PruningPlan(graph(), [0, 1]), "keep is a list: pass a mapping"),
    "swapped": (lambda: sec.apply_plan(plan(), net()), "model is a PruningPlan: pass a network"),
    "no plan": (lambda: sec.apply_plan(net(), {"0": [1]}), "plan is a dict: pass a pruning plan"),
    "nothing to save": (lambda: sec.save("net.safetensors", None), "model is None: pass a network"),
    "a share": (lambda: sec.prune(nn.Linear(6, 3), X, 0.5), "budget is 0.5: pass a budget"),  # type: ignore[arg-type]
    "nothing to prune": (lambda: sec.prune(None, X, sec.Budget(macs=0.5)), "model is None: pass a network"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name: str) -> None:
    call, message = WRONG[name]
    with pytest.raises(sec.UsageError, match=message):
        call()


def test_a_checkpoint_is_not_loaded_into_a_number(tmp_path: Path) -> None:
    sec.save(tmp_path / "net.safetensors", net())
    with pytest.raises(sec.UsageError, match="model is 3: pass a network"):
        sec.load(tmp_path / "net.safetensors", model=3)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_cut_in_inference_mode_can_be_trained(inplace: bool) -> None:
    model = net()
    model.register_buffer("scale", torch.ones(16))
    before = sec.plan_from(sec.trace(model, X), {"0": [0]})
    with torch.inference_mode():
        small = sec.apply_plan(model, before, inplace=inplace)
    assert not any(tensor.is_inference() for tensor in [*small.parameters(), *small.buffers()])
    small(X).sum().backward()
    assert small[0].weight.grad.shape == (15, 6)


def test_a_loaded_network_can_be_trained(tmp_path: Path) -> None:
    sec.save(tmp_path / "net.safetensors", net())
    with torch.inference_mode():
        found = sec.load(tmp_path / "net.safetensors", model=net())
    assert not any(parameter.is_inference() for parameter in found.parameters())
