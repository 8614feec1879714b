"""The road on a GPU, held against the same road on the CPU; batches lie in RAM, as loaders leave them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import Result
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur as sec
from secateur.ablation import ablate
from secateur.cli import app
from secateur.criteria import Obd, criterion_names, resolve
from secateur.export import export
from secateur.latency import latency_table
from secateur.models import ModelSpec
from secateur.precision import full_precision
from secateur.recipes import RecipeContext, Training, run_recipe
from secateur.recovery import recalibrate
from secateur.training.run_folder import read_summary
from secateur.training.settings import DeviceSettings
from tests.families import QUICK, build, example

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU with CUDA, and to be asked for: make test-gpu"
)

Batches = list[tuple[Tensor, Tensor]]
BUDGET = sec.Budget(macs=0.5)


@pytest.fixture
def net() -> nn.Module:
    """A residual network with statistics as a training leaves them: every channel its own."""
    model = sec.build("secateur:resnet20")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    assert tensor is not None
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
        # Else one class is certain, and gradients are nothing but rounding.
        model.get_parameter("linear.weight").mul_(0.01)
    return model.eval()


@pytest.fixture
def batches() -> Batches:
    draw = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 3, 32, 32, generator=draw), torch.randint(10, (16,), generator=draw))
        for _ in range(4)
    ]


def pair(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The network here, and a copy on the GPU."""
    return net, copy.deepcopy(net).cuda()


def on_gpu(model: nn.Module) -> bool:
    """Whether all of a network lies there."""
    return all(tensor.is_cuda for tensor in model.state_dict().values())


def close(one: Tensor, other: Tensor, within: float) -> bool:
    """Whether numbers differ by no more than a share of the largest."""
    one, other = one.detach().cpu(), other.detach().cpu()
    return float((one - other).abs().max()) <= within * float(one.abs().max())


@pytest.mark.parametrize("criterion", [name for name in criterion_names() if resolve(name).scores_channels])
def test_scores_are_those_of_the_cpu(net: nn.Module, batches: Batches, criterion: str) -> None:
    x = batches[0][0][:2]
    # With fewer passes than classes, obd depends on the signs of eigenvectors, which are anyone's choice.
    rule = Obd(passes=10) if criterion == "obd" else criterion
    with full_precision():
        scores = [sec.score(net, sec.trace(net, x), rule, batches, F.cross_entropy) for net in pair(net)]
    assert scores[0].keys() == scores[1].keys()
    for name in scores[0]:
        assert close(scores[0][name], scores[1][name], 1e-3), name


@pytest.mark.parametrize("name", QUICK)
def test_graphs_are_those_of_the_cpu_and_examples_may_lie_in_ram(name: str) -> None:
    here, there = pair(build(name))
    x = example(name)
    assert torch.backends.cudnn.allow_tf32  # the ordinary case: factors of convolutions are rounded
    graphs = [sec.trace(model, x) for model in (here, there)]
    for one, other in zip(graphs[0].groups, graphs[1].groups, strict=True):
        assert (one.name, one.channels, one.reason) == (other.name, other.channels, other.reason)
    plan = sec.make_plan(
        graphs[1], sec.score(there, graphs[1], "magnitude"), sec.Budget(channels=0.5), allocation="uniform"
    )
    check = sec.verify(there, sec.apply_plan(there, plan), plan, x)
    assert check.ok, str(check)
    assert sec.cost(there, x) == graphs[0].cost()


def test_curves_and_reconstruction_are_those_of_the_cpu(net: nn.Module, batches: Batches) -> None:
    answers, plans = [], []
    for model, device in zip(pair(net), ("cpu", "cuda"), strict=True):
        x = batches[0][0]
        graph = sec.trace(model, x[:2])
        scores = sec.score(model, graph, "reconstruction", batches)
        curves = sec.width_curves(model, graph, scores, batches)
        plan = sec.make_plan(graph, curves, BUDGET)
        small = sec.apply_plan(model, plan)
        check = sec.verify(model, small, plan, x)
        assert check.ok, str(check)
        assert sec.cost(small, x[:2]) == plan.cost_after
        sec.reconstruct(model, small, plan, batches)
        assert on_gpu(small) == on_gpu(model) == (device == "cuda")
        plans.append(plan.keep)
        with torch.no_grad():
            answers.append(small(x.to(device)))
        recalibrate(small, batches)
    assert plans[0] == plans[1]
    assert close(answers[0], answers[1], 1e-2)


def test_what_single_channels_are_worth_is_what_the_cpu_measures() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.LazyLinear(10))
    x, y = torch.randn(40, 3, 8, 8), torch.randint(10, (40,))
    net(x)
    found = [ablate(model, sec.trace(model, x[:2]), [(x, y)], F.cross_entropy) for model in pair(net)]
    for name in found[0]:
        assert close(found[0][name], found[1][name], 1e-3), name


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_whole_road_goes_on_there(net: nn.Module, batches: Batches, precision: str) -> None:
    there = net.cuda()
    context = RecipeContext(DeviceSettings(accelerator="cuda", precision=precision))
    recipe = sec.Recipe.preset(
        "plain",
        steps=2,
        between={"epochs": 1},
        finetune={"epochs": 1, "ema_decay": 0.9},
        reconstruct=True,
        reconstruct_batches=2,
        distillation={"weight": 0.5},
    )
    training = Training(batches, validation=batches)
    result = run_recipe(there, batches[0][0][:2], BUDGET, recipe, training, context)
    assert all(cut.verification.ok for cut in result.cuts)
    assert on_gpu(result.model)
    assert result.cost_after.macs <= 0.5 * result.cost_before.macs


def test_networks_are_made_smaller_in_one_call(net: nn.Module, batches: Batches) -> None:
    there = net.cuda()
    optimizer = torch.optim.AdamW(there.parameters())
    F.cross_entropy(there(batches[0][0].cuda()), batches[0][1].cuda()).backward()
    optimizer.step()
    result = sec.prune(there, batches[0][0][:2], BUDGET, "taylor", batches, optimizer=optimizer)
    assert result.verification.ok
    assert on_gpu(result.model)
    F.cross_entropy(result.model(batches[0][0].cuda()), batches[0][1].cuda()).backward()
    optimizer.step()


def test_times_are_those_of_the_gpu(net: nn.Module, batches: Batches) -> None:
    there, x = net.cuda(), batches[0][0].cuda()
    latency = sec.measure_latency(there, x, min_seconds=0.2)
    assert latency.device == "cuda:0"
    graph = sec.trace(there, x)
    table = latency_table(there, graph, x)
    assert table.milliseconds(graph.widths) == pytest.approx(latency.median_ms, rel=0.3)


def test_files_are_read_to_where_they_are_wanted(net: nn.Module, tmp_path: Path) -> None:
    there, x = net.cuda(), torch.randn(2, 3, 32, 32)
    result = sec.prune(there, x, BUDGET, "magnitude")
    file = tmp_path / "small.safetensors"
    sec.save(file, result.model, builder=ModelSpec.parse("secateur:resnet20"))
    for device in ("cpu", "cuda"):
        again = sec.load(file, device=device).eval()
        assert on_gpu(again) == (device == "cuda")
        with torch.no_grad():
            assert close(result.model.eval()(x.cuda()), again(x.to(device)), 1e-5)
    export(tmp_path / "small.onnx", result.model, x.cuda())
    assert on_gpu(result.model)


@pytest.fixture(scope="module")
def secateur() -> Callable[..., Result]:
    """Runs the command line in this process, on the GPU."""

    def run(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result

    return run


def test_commands_compute_there(secateur: Callable[..., Result], tmp_path: Path) -> None:
    gpu = ("--device", "cuda", "--data", "digits")
    whole, small = tmp_path / "whole", tmp_path / "small"
    secateur("train", "--model", "secateur:digits", "--epochs", 3, "--lr", 0.05, *gpu, "--out", whole)
    cut = ("prune", whole, "--macs", "25%", "--set", "allocation=curves", "--set", "finetune.epochs=2", *gpu)
    secateur(*cut, "--out", small)
    summary = read_summary(small)
    assert summary["baseline"]["top1"] > 0.9
    assert summary["pruned"]["top1"] > 0.85
    assert summary["pruned"]["macs"] <= 0.25 * summary["baseline"]["macs"]
    secateur("evaluate", small, *gpu)
    secateur("measure", whole, small, "--device", "cuda", "--seconds", 0)
