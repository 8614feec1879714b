"""How long it takes to cut 512 channels out of VGG16 at 224 px by Taylor scores.

Three ways, in one process, one after the other, each from a fresh copy of the same network:

- Secateur: trace (with its proof), plan, surgery, verification;
- torch-pruning: set-up of the pruner, step;
- one filter at a time: every removal reallocates the convolution and its reader, as the first
  public implementation of the method did it.

Scores cost the same forward and backward pass for all and are not counted.

    python benchmarks/surgery.py [--repeat 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur._torchvision import torchvision

CHANNELS = 512


def network() -> nn.Module:
    """A fresh VGG16 with random weights."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.vgg16(weights=None)
    return model.eval()


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """The result of an action and its seconds."""
    start = time.perf_counter()
    result = action()
    return result, time.perf_counter() - start


def ours(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, float]:
    """Seconds of each step with Secateur; fails if the cut is not exact and proved."""
    graph, trace_seconds = timed(lambda: sec.trace(model, x))
    scores = sec.score(model, graph, "taylor", batches=[(x, target)], loss_fn=F.cross_entropy)
    total = sum(group.channels for group in graph.prunable)
    plan, plan_seconds = timed(lambda: sec.make_plan(graph, scores, sec.Budget(channels=total - CHANNELS)))
    small, surgery_seconds = timed(lambda: sec.apply_plan(model, plan))
    check, verify_seconds = timed(lambda: sec.verify(model, small, plan, x))
    assert plan.channels_removed == CHANNELS
    assert check.ok
    in_place = copy.deepcopy(model)
    in_place_seconds = timed(lambda: sec.apply_plan(in_place, plan, inplace=True))[1]
    return {
        "trace": trace_seconds,
        "plan": plan_seconds,
        "surgery": surgery_seconds,
        "surgery in place": in_place_seconds,
        "verify": verify_seconds,
    }


def peer(model: nn.Module, x: Tensor, target: Tensor) -> dict[str, float]:
    """Seconds of each step with torch-pruning, and how many channels it really removed."""
    import torch_pruning as tp

    model = copy.deepcopy(model)
    F.cross_entropy(model(x), target).backward()
    # Hidden units that are silent for this picture tie at zero, and the peer removes all that tie at its
    # threshold: thousands instead of 512. A trace of noise makes them differ.
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
            pruning_ratio=CHANNELS / sum(widths),
            ignored_layers=[layers[-1]],
        )
    )
    step = timed(pruner.step)[1]
    left = [m.weight.shape[0] for m in layers[:-1]]
    return {"set-up": setup, "step": step, "channels removed": float(sum(widths) - sum(left))}


def one_at_a_time(model: nn.Module, _x: Tensor, _target: Tensor) -> dict[str, float]:
    """Removes the same number of filters one by one; which ones does not matter to the time."""
    model = copy.deepcopy(model)
    filters = [
        m.weight.detach().flatten(1).norm(dim=1) for m in features_of(model) if isinstance(m, nn.Conv2d)
    ]
    ranked = sorted(
        (float(value), number, channel)
        for number, norms in enumerate(filters)
        for channel, value in enumerate(norms / norms.norm())
    )[:CHANNELS]
    # Each removal shifts the filters behind it by one.
    removals = [
        (number, channel - sum(1 for _, same, other in ranked[:place] if same == number and other < channel))
        for place, (_, number, channel) in enumerate(ranked)
    ]

    def run() -> None:
        for number, channel in removals:
            remove_one_filter(model, number, channel)

    return {"all removals": timed(run)[1]}


def features_of(model: nn.Module) -> nn.Sequential:
    """The convolutions and what stands between them."""
    features = model.get_submodule("features")
    assert isinstance(features, nn.Sequential)
    return features


def remove_one_filter(model: nn.Module, number: int, channel: int) -> None:
    """Reallocates one convolution without one filter, and the layer that reads it."""
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
    """A new convolution of another width with given weights."""
    size, stride, padding = old.kernel_size[0], old.stride[0], int(old.padding[0])
    new = nn.Conv2d(weight.shape[1], weight.shape[0], size, stride=stride, padding=padding)
    assert new.bias is not None
    new.weight.data, new.bias.data = weight.data, bias.data
    return new


def main() -> None:
    """Runs all three and prints medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--slow-repeat", type=int, default=1, help="runs of one filter at a time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, x, target = network(), torch.randn(1, 3, 224, 224), torch.tensor([3])
    ways: dict[str, tuple[Callable[..., dict[str, float]], int]] = {
        "secateur": (ours, options.repeat),
        "torch-pruning 1.6.1": (peer, options.repeat),
        "one filter at a time": (one_at_a_time, options.slow_repeat),
    }
    results: dict[str, dict[str, float]] = {}
    for name, (way, repeats) in ways.items():
        rounds = [way(model, x, target) for _ in range(repeats)]
        results[name] = {key: statistics.median(item[key] for item in rounds) for key in rounds[0]}
        print(name, *(f"  {key:18} {value:8.3f}" for key, value in results[name].items()), sep="\n")
    mine = results["secateur"]["plan"] + results["secateur"]["surgery"]
    theirs = results["torch-pruning 1.6.1"]["set-up"] + results["torch-pruning 1.6.1"]["step"]
    slow = results["one filter at a time"]["all removals"]
    ratios = {
        "plan + surgery, seconds": mine,
        "peer (set-up + step) / ours (trace + plan + surgery)": theirs
        / (mine + results["secateur"]["trace"]),
        "peer step / our plan + surgery": results["torch-pruning 1.6.1"]["step"] / mine,
        "one at a time / our plan + surgery": slow / mine,
    }
    print(*(f"{key}: {value:.2f}" for key, value in ratios.items()), sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"medians": results, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
