"""Time of cutting 512 channels out of VGG16 at 224 px by Taylor scores.

Three ways, in one process and in alternation, each from the same network:

- Secateur: trace with its trial cuts, plan, surgery, verification;
- torch-pruning 1.6.1: set-up of the pruner, step;
- one filter at a time: every removal reallocates the convolution and its reader, as the first public
  implementation of the method did it.

Scores cost the same forward and backward pass for all and are not counted. Cells are medians, in seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.peer import imported
from benchmarks.tables import Table
from benchmarks.timing import timed

Way = Literal["Secateur", "torch-pruning 1.6.1", "one filter at a time"]
OURS, PEER, SLOW = WAYS = get_args(Way)


class Options(benchmark.Options):
    """Options.

    Attributes:
        network: of torchvision: convolutions in ``features``, linear layers in ``classifier``.
        size: side of the images in pixels.
        channels: to remove.
        ways: that are measured.
        rounds: how often all but the last way run.
        slow_rounds: how often one filter at a time runs.
    """

    network: str = "vgg16"
    size: int = 224
    channels: int = 512
    ways: tuple[Way, ...] = WAYS
    rounds: int = 5
    slow_rounds: int = 1


class Row(benchmark.Row):
    """One step of one way, once."""

    way: str
    step: str
    round: int
    seconds: float


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"network": "vgg11", "size": 64, "channels": 64, "rounds": 1, "ways": (OURS, SLOW)}


def run(options: Options) -> Iterator[Row]:
    """Run the ways in alternation."""
    torch.manual_seed(options.seeds[0])
    model = sec.build(f"torchvision:{options.network}", classes=1000).eval()
    x, target = torch.randn(1, 3, options.size, options.size), torch.tensor([3])
    for number in range(max(options.rounds, options.slow_rounds)):
        for way in options.ways:
            if number < (options.slow_rounds if way == SLOW else options.rounds):
                for step, seconds in MEASURED[way](model, x, target, options.channels).items():
                    yield Row(way=way, step=step, round=number, seconds=seconds)


def ours(model: nn.Module, x: Tensor, target: Tensor, channels: int) -> dict[str, float]:
    """Measure each step of Secateur; fails if the cut is not exact and verified."""
    graph, trace_seconds = timed(lambda: sec.trace(model, x))
    scores = sec.score(model, graph, "taylor", batches=[(x, target)], loss_fn=F.cross_entropy)
    total = sum(group.channels for group in graph.prunable)
    plan, plan_seconds = timed(lambda: sec.make_plan(graph, scores, sec.Budget(channels=total - channels)))
    small, surgery_seconds = timed(lambda: sec.apply_plan(model, plan))
    check, verify_seconds = timed(lambda: sec.verify(model, small, plan, x))
    assert plan.channels_removed == channels
    assert check.ok
    in_place = copy.deepcopy(model)
    in_place_seconds = timed(lambda: sec.apply_plan(in_place, plan, inplace=True))[1]
    return {
        "trace, with its trial cuts": trace_seconds,
        "plan": plan_seconds,
        "surgery on a copy": surgery_seconds,
        "surgery in place": in_place_seconds,
        "verification": verify_seconds,
    }


def peer(model: nn.Module, x: Tensor, target: Tensor, channels: int) -> dict[str, float]:
    """Measure each step of torch-pruning."""
    tp = imported()
    model = copy.deepcopy(model)
    F.cross_entropy(model(x), target).backward()
    # Hidden units without a gradient for this image tie at zero, and the peer removes all that tie at its
    # threshold: thousands instead of 512. A little noise makes them differ.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for gradient in gradients:
        gradient += 1e-6 * gradient.std() * torch.randn_like(gradient)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    widths = [m.weight.shape[0] for m in layers[:-1]]
    pruner, setup = timed(
        lambda: tp.pruner.BasePruner(
            model,
            x,
            importance=tp.importance.GroupTaylorImportance(),
            global_pruning=True,
            pruning_ratio=channels / sum(widths),
            ignored_layers=[layers[-1]],
        )
    )
    return {"set-up": setup, "step": timed(pruner.step)[1]}


def one_at_a_time(model: nn.Module, _x: Tensor, _target: Tensor, channels: int) -> dict[str, float]:
    """Measure the removal of as many filters one by one; which ones does not matter to the time."""
    model = copy.deepcopy(model)
    filters = [
        m.weight.detach().flatten(1).norm(dim=1) for m in features_of(model) if isinstance(m, nn.Conv2d)
    ]
    ranked = sorted(
        (float(value), number, channel)
        for number, norms in enumerate(filters)
        for channel, value in enumerate(norms / norms.norm())
    )[:channels]
    # Each removal shifts the filters behind it by one.
    removals = [
        (number, channel - sum(1 for _, same, other in ranked[:place] if same == number and other < channel))
        for place, (_, number, channel) in enumerate(ranked)
    ]

    def remove_all() -> None:
        for number, channel in removals:
            remove_one_filter(model, number, channel)

    return {"all removals": timed(remove_all)[1]}


MEASURED = {OURS: ours, PEER: peer, SLOW: one_at_a_time}


def features_of(model: nn.Module) -> nn.Sequential:
    """Return the convolutions and what stands between them."""
    features = model.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    return features


def remove_one_filter(model: nn.Module, number: int, channel: int) -> None:
    """Reallocate one convolution without one filter, and the layer that reads it."""
    features = features_of(model)
    convolutions = [(place, m) for place, m in enumerate(features) if isinstance(m, nn.Conv2d)]
    place, old = convolutions[number]
    assert old.bias is not None
    keep = torch.arange(old.out_channels) != channel
    features[place] = narrowed_convolution(old, old.weight[keep], old.bias[keep])
    if number + 1 < len(convolutions):
        place, following = convolutions[number + 1]
        assert following.bias is not None
        features[place] = narrowed_convolution(following, following.weight[:, keep], following.bias)
        return
    linear = model.get_submodule("classifier.0")
    assert isinstance(linear, nn.Linear)
    per_channel = linear.in_features // old.out_channels
    columns = keep.repeat_interleave(per_channel)
    new = nn.Linear(int(columns.sum()), linear.out_features)
    new.weight.data, new.bias.data = linear.weight.data[:, columns], linear.bias.data
    model.set_submodule("classifier.0", new)


def narrowed_convolution(old: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Build a convolution of another width with given weights."""
    size, stride, padding = old.kernel_size[0], old.stride[0], int(old.padding[0])
    new = nn.Conv2d(weight.shape[1], weight.shape[0], size, stride=stride, padding=padding)
    assert new.bias is not None
    new.weight.data, new.bias.data = weight.data, bias.data
    return new


def table(rows: Sequence[Row]) -> Table:
    """Show medians, a row for each step of each way."""
    lines = []
    for way, step in dict.fromkeys((row.way, row.step) for row in rows):
        seconds = median(row.seconds for row in rows if (row.way, row.step) == (way, step))
        lines.append((way, step, f"{seconds:.3f}"))
    return Table(("way", "step", "seconds"), lines)
