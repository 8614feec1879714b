"""Networks that cannot be captured: the message names the place, the kind of obstacle and the remedy."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.errors import TraceError, UsageError
from secateur.graph.capture.obstacles import find_obstacle

INPUTS = torch.randn(4, 6)


class Two(nn.Module):
    """Two layers with something between them."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        self.act = act or nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(self.act(self.first(x)))


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 0.1:
            x = -x
        return x


class Number(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(x.abs().mean())


class Loop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(x.abs().sum())):
            x = x + 1
        return x


class Count(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, x.new_zeros(int((x > 0).sum()), x.shape[1])])


class NumPy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(np.tanh(x.detach().numpy()))


class Gradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.layer(x).sum(), x, create_graph=True)
        return x + slope.sum()


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(6, 16, batch_first=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.recurrent(packed)[1][0][-1]


@dataclass
class Answer:
    scores: torch.Tensor


class Unknown:
    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores


class Wraps(Two):
    def forward(self, x: torch.Tensor) -> Unknown:
        return Unknown(super().forward(x))


class Late(nn.Module):
    """Makes its last layer in the first forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.head: nn.Module | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        if self.head is None:
            self.head = nn.Linear(x.shape[1], 3)
        return self.head(x)


def message(model: nn.Module, inputs: Any = INPUTS) -> str:
    with pytest.raises(sec.TraceError) as caught:
        sec.trace(model.eval(), inputs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("act", "source", "kind"),
    [
        (Branch(), "`if x.mean() > 0.1:`", "branches on the values"),
        (Number(), "`return x * float(x.abs().mean())`", "into a Python number"),
        (Loop(), "`for _ in range(int(x.abs().sum())):`", "how often the loop runs depends on the values"),
        (Count(), "`return torch.cat(", "into a Python number"),
        (NumPy(), "np.tanh", "NumPy computes in the forward pass"),
    ],
)
def test_code_that_depends_on_values_is_named_with_its_line(act: nn.Module, source: str, kind: str) -> None:
    told = message(Two(act))
    assert "'act'" in told
    assert "test_obstacles.py:" in told
    assert source in told
    assert kind in told
    assert "trace(model.backbone" in told


class SizeOfItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros((x > 0).sum().item(), x.shape[1])])


class SliceTo(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: (x > 0).sum()]


class SliceOfChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x[:, : x.argmax().item()].sum(1, keepdim=True)


class Positions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.nonzero(x.sum(1) > 0).squeeze(1)
        return x[rows] if rows.numel() > 0 else x


class Masked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        kept = x[x.sum(1) > 0]
        return kept / len(kept)


class WhileLarge(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = x / 2
        return x


class Order(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, x.sum(0).argsort().tolist()]


class OnePlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[0, x.argmax(1).tolist()[0]] = 0
        return x


class Key(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * {0: 1.0}.get(x.argmax().item(), 2.0)


class OfTensors(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([x.mean(), x.max()]).sum()


class Printed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print(f"{x.mean().item():.3f}")  # noqa: T201
        return x


class Logged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.text = f"{x.mean():.3f}"
        return x


class Caught(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return x * float(x.mean())
        except Exception as error:
            raise ValueError("bad values") from error


class CaughtInSecret(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return x * float(x.mean())
        except Exception:  # noqa: BLE001
            raise ValueError("bad values") from None


class Memory(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x.data_ptr() % 3)


class Pickled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pickle.dumps(x)
        return x


@pytest.mark.parametrize(
    ("act", "source", "kind"),
    [
        (SizeOfItem, "(x > 0).sum().item()", "the size of a tensor depends on values"),
        (SliceTo, "return x[: (x > 0).sum()]", "the size of a tensor depends on values"),
        (SliceOfChannels, "x[:, : x.argmax().item()]", "the size of a tensor depends on values"),
        (Positions, "if rows.numel() > 0", "the size of a tensor depends on values"),
        (Masked, "kept / len(kept)", "the size of a tensor depends on values"),
        (WhileLarge, "while x.norm() > 1:", "how often the loop runs depends on the values"),
        (Order, "x.sum(0).argsort().tolist()", "into a Python number"),
        (OnePlace, "x[0, x.argmax(1).tolist()[0]] = 0", "into a Python number"),
        (Key, "x.argmax().item()", "into a Python number"),
        (OfTensors, "torch.tensor([x.mean(), x.max()])", "into a Python number"),
        (Printed, "print(f", "writes values of a tensor as text"),
        (Logged, "self.text = f", "writes values of a tensor as text"),
        (Caught, "float(x.mean())", "into a Python number"),
        (CaughtInSecret, "float(x.mean())", "into a Python number"),
        (Memory, "x.data_ptr() % 3", "reads the memory of a tensor"),
        (Pickled, "pickle.dumps(x)", "torch.export does not capture this code"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_unusual_code_is_refused_in_words_of_this_library(
    act: Callable[[], nn.Module], source: str, kind: str
) -> None:
    told = message(Two(act()))
    assert "test_obstacles.py:" in told
    assert source in told
    assert kind in told
    assert "trace(model.backbone" in told
    first = told.partition(". ")[0]
    assert not re.search(r"\bu\d|Guard|torch\._|Sym(Int|Float|Bool)|Fake|Error", first)


class Fails(nn.Module):
    """Goes on where an operator fails."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return x @ x
        except RuntimeError:
            return x.tanh()


class AsManyAsKept(nn.Module):
    """Counts what a mask picks, and gives the number to other operators."""

    def forward(self, x: Tensor) -> Tensor:
        kept, others = x[x.sum(1) > 0], x[x.sum(1) <= 0]
        number = kept.shape[0]
        row = x[:1].repeat(number, 1) + x[:number].sum(0) + others.sum(0)
        return F.pad(kept.reshape(number, x.shape[1]) + row, (0, 0, 0, 4 - number))


class Shows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("mean", x.mean())  # noqa: T201
        return x


@pytest.mark.parametrize("act", [Fails, AsManyAsKept, Shows])
def test_unusual_code_that_can_be_captured(act: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = Two(act())
    graph = sec.trace(net, INPUTS)
    assert graph["first"].reason is None
    plan = sec.plan_from(graph, {"first": [1, 4]})
    assert sec.verify(net, sec.apply_plan(net, plan), plan, INPUTS).ok


def test_gradients_inside_are_named_with_their_line() -> None:
    told = message(Two(Gradient()))
    assert "gradients are taken in the forward pass" in told
    assert "torch.autograd.grad(self.layer(x).sum()" in told


def test_types_that_are_not_known() -> None:
    told = message(Wraps())
    assert "returns an object of Unknown" in told
    assert "in a tuple, dict or data class" in told


class Unwraps(Two):
    def forward(self, x: Answer) -> torch.Tensor:
        return super().forward(x.scores)


def test_arguments_of_types_that_are_not_known() -> None:
    assert "an argument is of type Answer" in message(Unwraps(), (Answer(INPUTS),))


def test_packed_sequences() -> None:
    told = message(Packed(), (torch.randn(3, 5, 6), torch.tensor([5, 4, 2])))
    assert "padded sequences, without pack_padded_sequence" in told
    assert "test_obstacles.py:" in told


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules() -> None:
    told = message(Two(torch.jit.script(nn.SiLU())))
    assert "'act' (torch.jit.script or torch.jit.trace of SiLU) is a TorchScript module" in told
    for scripted in (torch.jit.script(nn.Sequential(nn.Linear(6, 3))), torch.jit.trace(Two(), INPUTS)):
        assert "Trace the Python module that it was made from" in message(scripted)
    told = message(Two(torch.jit.trace(nn.Linear(16, 16), torch.randn(4, 16))))
    assert (
        "'act' (torch.jit.script or torch.jit.trace of Linear) is a TorchScript module with weights" in told
    )


def test_exported_programs() -> None:
    exported = torch.export.export(nn.Linear(16, 16), (torch.randn(4, 16),)).module()
    for model, name in ((exported, "the network itself"), (Two(exported), "'act'")):
        with pytest.raises(TraceError) as caught:  # it has no eval()
            sec.trace(model, INPUTS)
        assert f"{name} (GraphModule) is the result of torch.export" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_quantised_networks() -> None:
    quantised = torch.ao.quantization.quantize_dynamic(Two(), {nn.Linear})
    told = message(quantised)
    assert "'first' (Linear) is quantised" in told
    assert "Prune the float model" in told


def test_layers_without_weights_yet() -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
    assert "'0' (LazyLinear) has no weights before its first call" in message(lazy)
    told = message(Late())
    assert "it makes 'head' in its first forward pass" in told
    assert "Call the network once" in told
    network = Late().eval()
    network(INPUTS)
    assert [group.name for group in sec.trace(network, INPUTS).prunable] == ["first"]


def test_meta_devices() -> None:
    assert "'first.weight' is on the meta device" in message(Two().to("meta"))
    assert find_obstacle(Two(), INPUTS.to("meta")) is not None


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.randn(4, 5), "mat1 and mat2 shapes cannot be multiplied"),
        ((INPUTS, INPUTS), "Two.forward takes (x: "),
        ({"y": INPUTS}, "Two.forward takes (x: "),
    ],
)
def test_inputs_that_the_network_itself_refuses(inputs: Any, words: str) -> None:
    told = message(Two(), inputs)
    assert "the network itself fails on these inputs" in told
    assert words in told


@pytest.mark.parametrize("inputs", ["text", np.zeros((4, 6), np.float32)])
def test_inputs_of_unknown_types(inputs: Any) -> None:
    assert find_obstacle(Two(), inputs) is not None
    assert "the inputs are of type" in str(find_obstacle(Two(), inputs))


def test_no_obstacle_where_there_is_none() -> None:
    for inputs in (INPUTS, (INPUTS,), [INPUTS], {"x": INPUTS}):
        assert find_obstacle(Two(), inputs) is None


@pytest.mark.parametrize("act", [Branch, Number, NumPy])
def test_torch_stays_silent(
    act: Callable[[], nn.Module], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import sys

    stderr, disabled = sys.stderr, logging.getLogger("torch._subclasses.fake_tensor").disabled
    message(Two(act()))
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert sys.stderr is stderr
    assert logging.getLogger("torch._subclasses.fake_tensor").disabled == disabled


def test_what_the_network_prints_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    class Talks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            import sys

            sys.stderr.write("hello\n")
            return x * float(x.mean())

    message(Two(Talks()))
    assert capfd.readouterr().err.strip() == "hello"


def test_the_network_and_random_numbers_are_left_alone() -> None:
    network, state = Two(Number()).eval(), torch.get_rng_state()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    message(network)
    message(network, torch.randn(4, 5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_batch_without_examples_is_refused() -> None:
    for use in (sec.trace, sec.cost):
        with pytest.raises(sec.TraceError, match=r"has shape \(0, 6\) and holds no example"):
            use(Two(), torch.zeros(0, 6))


def test_gradients_by_torch_func_are_refused_with_the_line() -> None:
    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.func.grad(lambda y: y.square().sum())(self.a(x)))

    with pytest.raises(
        sec.TraceError, match=r"test_obstacles\.py:\d+.*gradients are taken in the forward pass"
    ):
        sec.trace(Slope(), torch.randn(2, 6))


def test_statistics_of_a_single_example() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    with pytest.raises(TraceError, match=r"'1' \(BatchNorm1d\).* at least two examples in every batch"):
        sec.trace(net, torch.randn(1, 3))
    graph = sec.trace(net, torch.randn(2, 3))
    plan = sec.plan_from(graph, {"0": [1]})
    with pytest.raises(UsageError, match="at least two examples in every batch"):
        sec.verify(net, sec.apply_plan(net, plan), plan, torch.randn(1, 3))


class KeyedByWeight(Two):
    """A factor for each weight, by the weight itself."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = {self.first.weight: 2.0}

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(x @ (self.first.weight * self.factors[self.first.weight]).t()))


def test_a_dict_with_parameters_as_keys() -> None:
    told = message(KeyedByWeight())
    assert "the code looks up a parameter or buffer in a dict" in told
    assert "Key the dict by the name" in told
    assert "fails on these inputs" not in told


class MadeByLength(Two):
    """Makes a tensor of the length of a bias, which the code gets as a plain number."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.zeros(len(x), len(self.first.bias)) + torch.relu(self.first(x)))


def test_a_length_follows_no_cut() -> None:
    reason = sec.trace(MadeByLength(), INPUTS)["first"].reason
    assert reason is not None
    assert (
        "zeros gets a number as size: write a size that follows, such as x.shape[1] (no len(...))" in reason
    )
