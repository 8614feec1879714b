from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import UsageError
from secateur.latency import PreparedNetwork, PyTorchRuntime, compare_latency, measure_latency
from secateur.runtimes import Runner

SEEN: SimpleQueue[tuple[bool, torch.dtype]] = SimpleQueue()
"""What was seen, out of sight of what puts a network back."""


class Watching(nn.Module):
    """Notes how what it computes lies in memory, and in which type."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        y = self.conv(x)
        SEEN.put((y.is_contiguous(memory_format=torch.channels_last), y.dtype))
        return y


X = torch.zeros(2, 4, 8, 8)


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("eager", (False, torch.float32)),
        ("channels-last", (True, torch.float32)),
        ("bf16", (False, torch.bfloat16)),
    ],
)
def test_each_runtime_runs_its_own_way_and_leaves_the_network_alone(
    runtime: str, expected: tuple[bool, torch.dtype]
) -> None:
    net = Watching().train()
    before = net.conv.weight.clone()
    latency = measure_latency(net, X, runtime=runtime, min_runs=2, min_seconds=0)
    assert {SEEN.get() for _ in range(SEEN.qsize())} == {expected}
    assert latency.runtime == runtime
    assert (runtime in str(latency)) is (runtime != "eager")
    assert net.training
    assert torch.equal(net.conv.weight, before)
    assert net.conv.weight.is_contiguous()
    assert net.conv.weight.stride() == before.stride()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler about itself
def test_a_compiled_network_is_a_copy() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU()).train()
    latency = measure_latency(net, torch.ones(2, 4), runtime="compile", min_runs=2, min_seconds=0)
    assert latency.runtime == "compile"
    assert net.training


def test_a_network_that_cannot_be_compiled_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: object) -> Callable[..., object]:
        def run(*_: object) -> object:
            raise RuntimeError("no compiler here\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UsageError, match=r"torch.compile cannot run this network here .*no compiler here\)"):
        measure_latency(nn.Linear(2, 2), torch.ones(1, 2), runtime="compile")


def test_unknown_runtimes_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'fast'; choose one of eager, channels-last, compile, bf16"):
        measure_latency(nn.Linear(2, 2), torch.ones(1, 2), runtime="fast")


class Opened:
    """What an exported file that was opened looks like."""

    device = torch.device("cpu")
    runtime = "some engine"

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, *inputs: Tensor) -> object:
        assert [tuple(item.shape) for item in inputs] == [(2, 4)]
        self.runs += 1
        return None


def test_prepared_networks_and_custom_runtimes_are_compared_with_networks() -> None:
    prepared = Opened()
    assert isinstance(prepared, PreparedNetwork)
    twice = PyTorchRuntime("twice", lambda model: lambda x: (model(x), model(x)))
    net = nn.Linear(4, 4)
    found = compare_latency(
        {"module": net, "twice": net, "file": prepared},
        torch.ones(2, 4),
        runtime={"module": "eager", "twice": twice, "file": "eager"},
        warmup=1,
        min_runs=3,
        min_seconds=0,
    )
    assert prepared.runs == 4
    assert {name: item.runtime for name, item in found.latencies.items()} == {
        "module": "eager",
        "twice": "twice",
        "file": "some engine",
    }


def test_a_runner_of_an_exported_file_is_a_prepared_network() -> None:
    runner = Runner("engine", lambda inputs: (2 * inputs[0],))
    assert isinstance(runner, PreparedNetwork)
    latency = measure_latency(runner, torch.ones(3, 4), min_runs=2, min_seconds=0)
    assert (latency.runtime, latency.batch) == ("engine", 3)
