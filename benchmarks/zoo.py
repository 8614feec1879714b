"""Coverage: cuts half of every group out of each network of a list, and proves each cut.

One network at a time, in a process of its own with a time limit, on one thread. Weights are random;
normalisation statistics and everything that is constant at the start (biases, scales) are randomised too,
so that a wrong cut shows. Which channels go is drawn at random; the classifier is left alone.

The list is JSON: ``{"models": [{"source": "torchvision"|"timm", "model": NAME, "input": [3, 224, 224]}]}``;
results of torch-pruning under ``"torch_pruning_1_6_1"`` are put beside ours.

    python benchmarks/zoo.py LIST [LIST ...] [--out runs/zoo] [--only PATTERN] [--limit 300] [--jobs 1]

Networks that ``OUT/results.jsonl`` holds already are not run again; ``OUT/table.md`` is written at the end.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

PEER = "torch_pruning_1_6_1"
SHARE = 0.5
SLOW = 40.0  # seconds that no network should take


def one(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Traces, plans, cuts and proves one network; every stage timed."""
    import torch

    import secateur as sec

    torch.set_num_threads(1)
    model = built(entry)
    x = torch.randn(1, *entry["input"], generator=torch.Generator().manual_seed(2))
    steps = sec.trace, sec.make_plan, sec.apply_plan, sec.verify
    assert all(map(callable, steps))  # imported before the clock runs: names are imported on first use
    clock = Clock()
    half = partial(sec.make_plan, budget=sec.Budget(channels=SHARE), allocation="uniform")
    graph = clock.timed("trace", lambda: sec.trace(model, x))
    draw = torch.Generator().manual_seed(5)
    scores = {group.name: torch.rand(group.channels, generator=draw) for group in graph.prunable}
    plan = clock.timed("plan", lambda: half(graph, scores))
    small = clock.timed("surgery", lambda: sec.apply_plan(model, plan))
    check = clock.timed("proof", lambda: sec.verify(model, small, plan, x))
    counted = sec.cost(small, x)
    predicted = plan.cost_after
    trains(small, torch.cat([x, x]))
    frozen = Counter(group.reason for group in graph.frozen)
    return {
        "proved": check.ok,
        "modes": list(check.modes),
        "tolerance": check.tolerance,
        "not_checked": list(check.not_checked),
        "error": check.max_error,
        "counted": (counted.params, counted.macs) == (predicted.params, predicted.macs),
        "params_left": predicted.params / plan.cost_before.params,
        "macs_left": predicted.macs / max(1, plan.cost_before.macs),
        "groups": len(graph.groups),
        "frozen": len(graph.frozen),
        "reasons": frozen.most_common(4),
        "seconds": clock.seconds,
    }


def built(entry: Mapping[str, Any]) -> Any:
    """The network with random weights, none of them constant."""
    import torch

    from secateur._torchvision import torchvision

    torch.manual_seed(0)
    if entry["source"] == "torchvision":
        bare = {"init_weights": False} if entry["model"] in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(entry["model"], weights=None, **bare)
    else:
        import timm

        model = timm.create_model(entry["model"], pretrained=False)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if (
                tensor.is_floating_point()
                and tensor.numel() > 1
                and bool((tensor == tensor.flatten()[0]).all())
            ):
                about = 1.0 if float(tensor.abs().max()) > 0 else 0.0
                tensor.copy_(about + torch.rand(tensor.shape, generator=draw) - 0.5)
    return model.eval()


def trains(model: Any, x: Any) -> None:
    """Forward and backward pass in training mode; raises if either fails."""
    import torch

    from secateur._compat import tree_leaves

    answers = [leaf for leaf in tree_leaves(model.train()(x)) if isinstance(leaf, torch.Tensor)]
    torch.stack([answer.float().square().mean() for answer in answers]).sum().backward()


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, action: Any) -> Any:
        """The result of an action, its time kept."""
        start = time.perf_counter()
        result = action()
        self.seconds[stage] = round(time.perf_counter() - start, 3)
        return result


def apart(entry: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """Runs one network in a process of its own; what went wrong is part of the result."""
    head = {key: entry[key] for key in ("source", "model", "input")}
    if PEER in entry:
        head["peer"] = entry[PEER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--one", json.dumps(dict(entry))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {**head, "proved": False, "failure": f"not done after {limit:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {**head, "proved": False, "failure": last[:300]}
    return {**head, **json.loads(done.stdout.splitlines()[-1])}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A row for every network, and the sums below, in Markdown."""
    head = "network | proved | params left | MACs left | groups | frozen | s: trace | plan | surgery | proof"
    rows = [
        f"| {head} | peer: params, MACs left |",
        "|---" * 11 + "|",
    ]
    for item in results:
        peer = item.get("peer", {})
        theirs = f"{peer['params_left']:.3f}, {peer['macs_left']:.3f}" if peer.get("ok") else "fails"
        theirs = theirs if peer else ""
        name = f"{item['source']}:{item['model']}"
        if "failure" in item:
            rows.append(f"| {name} | no: {item['failure']} | | | | | | | | | {theirs} |")
            continue
        seconds = item["seconds"]
        rows.append(
            f"| {name} | {'yes' if item['proved'] else 'NO'} | {item['params_left']:.3f} "
            f"| {item['macs_left']:.3f} | {item['groups']} | {item['frozen']} | {seconds['trace']:.1f} "
            f"| {seconds['plan']:.2f} | {seconds['surgery']:.2f} | {seconds['proof']:.2f} | {theirs} |"
        )
    return "\n".join([*rows, "", *summary(results)]) + "\n"


def summary(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader wants to know first."""
    proved = [item for item in results if item["proved"]]
    lines = [f"{len(proved)} of {len(results)} proved"]
    if peers := [item["peer"] for item in results if "peer" in item]:
        lines[0] += f" (torch-pruning 1.6.1: {sum(peer.get('ok', False) for peer in peers)} of {len(peers)})"
    if proved:
        small = sum(item["params_left"] <= 0.4 for item in proved)
        seconds = [sum(item["seconds"].values()) for item in proved]
        lines += [
            f"{small} with at least 60% of the parameters removed",
            f"MACs left, median: {statistics.median(item['macs_left'] for item in proved):.3f}",
            f"seconds a network, median: {statistics.median(seconds):.1f}, most: {max(seconds):.1f}",
            f"over {SLOW:.0f} seconds: {sum(value > SLOW for value in seconds)}",
            f"predicted cost is not the counted cost: {sum(not item['counted'] for item in proved)}",
        ]
    return [f"- {line}" for line in lines]


def main() -> None:
    """Runs what is missing and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lists", type=Path, nargs="*")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--only", default="*", help="pattern of network names")
    parser.add_argument(
        "--limit", type=float, default=300, help="seconds for one network, construction and all"
    )
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(json.loads(options.one))))
        return
    if not options.lists:
        parser.error("give a list of networks")
    entries = [entry for path in options.lists for entry in json.loads(path.read_text())["models"]]
    entries = [entry for entry in entries if fnmatch.fnmatchcase(entry["model"], options.only)]
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    known = {}
    if path.exists():
        known = {(item["source"], item["model"]): item for item in map(json.loads, path.open())}
    todo = [entry for entry in entries if (entry["source"], entry["model"]) not in known]
    with ThreadPoolExecutor(options.jobs) as pool, path.open("a") as file:
        for item in pool.map(lambda entry: apart(entry, options.limit), todo):
            known[item["source"], item["model"]] = item
            print(json.dumps(item), file=file, flush=True)
            verdict = item.get("failure") or f"{item['params_left']:.3f} of the parameters left"
            print(
                f"{item['source']}:{item['model']}: {'proved' if item['proved'] else 'NOT PROVED'}, {verdict}"
            )
    results = [known[entry["source"], entry["model"]] for entry in entries]
    (options.out / "table.md").write_text(table(results))
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
