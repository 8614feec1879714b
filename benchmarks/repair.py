"""How long and how much memory least-squares repair takes, and how long width curves do.

``reconstruction``: a network of torchvision with random weights, every group cut to half its channels at
random, its consumers refitted for random pictures; seconds and the most memory that the process held.

``curves``: a CIFAR-10 residual network, or one that was trained before. The straightforward way is to cut one
group, repair the copy and run it on the held-back pictures; since that takes long, it is done for every so
many cuts (``--every``), and counted twice: with its repair, and the evaluation alone. The damages that both
find are compared.

    python benchmarks/repair.py reconstruction [--network vgg16] [--size 224] [--examples 256] [--threads 2]
    python benchmarks/repair.py curves --data cifar10 --weights resnet56.th [--network resnet56] [--threads 2]
    python benchmarks/repair.py curves --data cats_dogs --run RUN [--examples 512] [--threads 2]
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from statistics import median

import torch
from cifar import Pictures, batches, joined, pictures
from criteria import draw
from torch import Tensor, nn
from trained import opened

import secateur as sec
from secateur.plan import plan_from
from secateur.recovery.curves import ENOUGH, CurveOptions, diverge


def reconstruction(options: argparse.Namespace) -> None:
    """Cuts a network to half its widths, repairs it, and prints time and memory."""
    torch.manual_seed(0)
    model = sec.build(f"torchvision:{options.network}").eval()
    x = torch.randn(options.examples, 3, options.size, options.size)
    graph = sec.trace(model, x[:1])
    scores = sec.score(model, graph, "random")
    channels = sum(group.channels for group in graph.prunable)
    plan = sec.make_plan(graph, scores, sec.Budget(channels=channels // 2), allocation="uniform")
    small = sec.apply_plan(model, plan)
    held = _most_memory()
    began = time.perf_counter()
    repairs = sec.reconstruct(model, small, plan, batches((x, torch.zeros(len(x))), 32))
    seconds = time.perf_counter() - began
    print(f"{options.network}, {options.examples} pictures of {options.size} px, {options.threads} threads")
    print(
        f"{len(repairs)} layers in {seconds:.0f} s; most memory {_most_memory():.2f} GiB, {held:.2f} before"
    )


def _most_memory() -> float:
    """The most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def curves(options: argparse.Namespace) -> None:
    """Measures all width curves, and some of their points the straightforward way."""
    model, data = subject(options)
    graph = sec.trace(model, data[0][:1])
    scores = sec.score(model, graph, "magnitude")
    count = len(data[1])
    measuring = min(ENOUGH, count // 2)
    began = time.perf_counter()
    held_back = CurveOptions(held_back=measuring / count)
    found = sec.width_curves(model, graph, scores, batches(data, 64), held_back)
    ours = time.perf_counter() - began
    fitting_pictures = batches((data[0][:-measuring], data[1][:-measuring]), 64)
    expected = answers(model, data[0][-measuring:])
    points = [(name, width) for name, curve in found.items() for width in curve.widths[:-1]]
    fitting = evaluating = 0.0
    differences: dict[str, float] = {}
    for name, width in points[:: options.every]:
        plan = plan_from(graph, {name: found[name].order[: graph[name].channels - width]})
        began = time.perf_counter()
        small = sec.apply_plan(model, plan)
        sec.reconstruct(
            model, small, plan, fitting_pictures, refit_downstream=False, correct_shortcut_error=False
        )
        fitted = time.perf_counter()
        outputs = answers(small, data[0][-measuring:])
        evaluating += time.perf_counter() - fitted
        fitting += fitted - began
        damage = found[name].damages[found[name].widths.index(width)]
        plain = diverge(outputs, expected, "kl")
        differences[f"{name} at {width}, {damage:.2e} and {plain:.2e}"] = abs(plain / damage - 1)
    scale = len(points) / len(points[:: options.every])
    evaluating, plain = scale * evaluating, scale * (fitting + evaluating)
    print(
        f"{options.run or options.network}, {count} pictures, {options.threads} threads, {len(points)} cuts"
    )
    print(f"curves {ours:.0f} s; each cut by itself {plain:.0f} s ({plain / ours:.1f} times)")
    print(f"of that, evaluations alone {evaluating:.0f} s ({evaluating / ours:.1f} times)")
    worst = max(differences, key=differences.__getitem__)
    print(f"damages differ by {median(differences.values()):.1%} in the median; most: {worst}")


def subject(options: argparse.Namespace) -> tuple[nn.Module, Pictures]:
    """The network that the command line names, and pictures to measure it on."""
    if options.run:
        network, data = opened(options.run, options.data)
        return network.model, joined(draw(data, options.examples, 0))
    model = sec.build(f"secateur:{options.network}", weights=options.weights).eval()
    return model, pictures(options.data / "train", options.examples, 0)


@torch.inference_mode()
def answers(model: nn.Module, x: Tensor) -> Tensor:
    """The network's outputs, 64 pictures at a time."""
    return torch.cat([model(part) for part in x.split(64)])


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", choices=["reconstruction", "curves"])
    parser.add_argument("--network")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--run", type=Path, help="a trained network instead, by its run folder")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.section == "reconstruction":
        options.network, options.examples = options.network or "vgg16", options.examples or 256
        reconstruction(options)
    elif options.data is None or not (options.weights or options.run):
        parser.error("curves needs --data, and --weights or --run")
    else:
        options.network, options.examples = options.network or "resnet56", options.examples or 512
        curves(options)


if __name__ == "__main__":
    main()
