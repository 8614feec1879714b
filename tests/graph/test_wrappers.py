"""Networks that are wrapped as a whole are refused; wrapped parts are not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel

import secateur as sec
from secateur.graph.capture.wrappers import is_compiled, refuse_wrapped


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


@pytest.mark.parametrize(
    ("wrapped", "inner"),
    [
        (nn.DataParallel(network()), "model.module"),
        (torch.compile(network(), backend="eager"), "model._orig_mod"),
        (AveragedModel(network()), "model.module"),
        (Fabric(accelerator="cpu", devices=1).setup_module(network()), "model.module"),
        (nn.DataParallel(torch.compile(network(), backend="eager")), "model.module._orig_mod"),
    ],
)
def test_the_message_names_the_network_inside(wrapped: nn.Module, inner: str) -> None:
    with pytest.raises(sec.UsageError, match=rf"pass {inner}, and wrap the result again"):
        refuse_wrapped(wrapped)
    path = inner.split(".")[1:]
    found = wrapped
    for name in path:
        found = getattr(found, name)
    refuse_wrapped(found)  # what the message says to pass is accepted


def test_sharded_networks_have_no_whole_tensors() -> None:
    kind = type("FullyShardedDataParallel", (nn.Module,), {})
    kind.__module__ = "torch.distributed.fsdp.fully_sharded_data_parallel"
    with pytest.raises(sec.UsageError, match="prune the plain network, and apply FSDP to the result"):
        refuse_wrapped(kind())


def test_wrapped_parts_are_no_obstacle() -> None:
    part = torch.compile(nn.Linear(6, 16), backend="eager")
    refuse_wrapped(nn.Sequential(part, nn.Linear(16, 3)))
    assert is_compiled(part)
    assert not is_compiled(nn.DataParallel(nn.Linear(2, 2)))


@pytest.mark.parametrize("wrap", [nn.DataParallel, partial(torch.compile, backend="eager")])
def test_what_takes_a_network_refuses_a_wrapped_one(wrap, tmp_path) -> None:  # type: ignore[no-untyped-def]
    wrapped, inputs = wrap(network()), torch.randn(2, 6)
    for call in (
        lambda: sec.save(tmp_path / "net.safetensors", wrapped),
        lambda: sec.cost(wrapped, inputs),
        lambda: sec.measure_latency(wrapped, inputs, min_runs=1, min_seconds=0),
    ):
        with pytest.raises(sec.UsageError, match="model is wrapped by"):
            call()
    sec.save(tmp_path / "net.safetensors", network())
    with pytest.raises(sec.UsageError, match="model is wrapped by"):
        sec.load(tmp_path / "net.safetensors", model=wrapped)
