"""Coverage: cut half of every group out of each network, then half of its branches too, and verify each cut.

One network at a time, in a separate process with a time limit, on one thread. Weights are random;
normalisation statistics and everything that is constant at the start (biases, scales) are randomised too,
so that a wrong cut shows. The channels to remove are drawn at random; the classifier is left alone. Inputs
have two examples, so that networks with batch norm on maps of one pixel are checked in training mode too.

The small network is trained for a step, saved, loaded again and compared. ``covered`` is the share of weight
dimensions along which channels may be cut. ``branches`` tells how many residual branches there are, how many
of them may be removed, and whether the network without half of them, and half of every group, is verified.
With ``--onnx``, that network (or the one without half of every group, if it has no branches) is also exported
and run by ONNX Runtime: ``onnx`` is the largest difference to PyTorch, relative to the largest output.

A list is JSON: ``{"models": [{"source": "torchvision"|"timm", "model": NAME, "input": [3, 224, 224]}]}``;
results of torch-pruning under ``"torch_pruning_1_6_1"`` are shown beside ours. Or it is TOML, as
``benchmarks/families.toml``, of networks of other libraries.

    python -m benchmarks.zoo LIST [LIST ...] [--out runs/zoo] [--only PATTERN] [--onnx] [--publish]

Networks that ``OUT/results.jsonl`` holds already are not run again; ``OUT/table.md`` is written at the end.
With ``--publish`` the results become ``benchmarks/results/families.json``, which ``docs/coverage.md`` shows.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, Machine, Result, git, today, write

PEER = "torch_pruning_1_6_1"
SHARE = 0.5
EQUAL = 1e-5  # relative difference of an exported file
SLOW = 40.0  # seconds that no network should take


def one(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Trace, plan, cut and verify one network; every stage is timed."""
    import torch

    import secateur as sec

    torch.set_num_threads(1)
    model, x = built(entry), example(entry)
    steps = sec.trace, sec.make_plan, sec.apply_plan, sec.verify
    assert all(map(callable, steps))  # imported before the clock runs: names are imported on first use
    clock = Clock()
    half = partial(sec.make_plan, budget=sec.Budget(channels=SHARE), allocation="uniform")
    graph = clock.timed("trace", lambda: sec.trace(model, x))
    draw = torch.Generator().manual_seed(5)
    scores = {group.name: torch.rand(group.channels, generator=draw) for group in graph.prunable}
    plan = clock.timed("plan", lambda: half(graph, scores))
    small = clock.timed("surgery", lambda: sec.apply_plan(model, plan))
    check = clock.timed("check", lambda: sec.verify(model, small, plan, x))
    branches, shorter = clock.timed("branches", lambda: shortened(model, graph, plan, x, entry))
    exported = onnx(small if shorter is None else shorter, x) if entry.get("onnx") else {}
    counted = sec.cost(small, x)
    predicted = plan.cost_after
    frozen = Counter(group.reason for group in graph.frozen)
    return {
        "covered": covered(model, graph),
        "branches": branches,
        "trains": problem(lambda: trains(small, x)),
        "loads": problem(lambda: loads(small, x, entry)),
        "verified": check.ok,
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
        **exported,
    }


def shortened(
    model: Any, graph: Any, plan: Any, x: Any, entry: Mapping[str, Any]
) -> tuple[dict[str, int | bool | str], Any]:
    """Remove half of the residual branches together with the channels of a plan; verify, train and load.

    Returns:
        The results, and the network, if it has branches that may be removed.
    """
    import random

    import secateur as sec

    names = [branch.name for branch in graph.branches if branch.prunable]
    found: dict[str, int | bool | str] = {"found": len(graph.branches), "prunable": len(names)}
    if not names:
        return found, None
    without = random.Random(5).sample(names, -(-len(names) // 2))
    plan = sec.PruningPlan(graph, plan.keep, tuple(without))
    small = sec.apply_plan(model, plan)
    results: dict[str, int | bool | str] = {
        "verified": sec.verify(model, small, plan, x).ok,
        "trains": problem(lambda: trains(small, x)),
        "loads": problem(lambda: loads(small, x, entry)),
    }
    return found | results, small


def onnx(model: Any, x: Any) -> dict[str, float | str]:
    """Export a network and run the file; return the largest relative difference, or what failed."""
    from secateur.export import export

    with tempfile.TemporaryDirectory() as folder:
        try:
            return {"onnx": export(Path(folder, "small.onnx"), model.eval(), x).check.max_error}
        except Exception as error:  # noqa: BLE001  a failure is part of the result
            return {"onnx": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]}


def built(entry: Mapping[str, Any]) -> Any:
    """Build the network with random weights, none of them constant."""
    import torch

    from secateur._torchvision import torchvision

    torch.manual_seed(0)
    if "spec" in entry or "architecture" in entry:
        with specification(entry) as spec:
            model = spec.build()
    elif entry["source"] == "torchvision":
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


@contextmanager
def specification(entry: Mapping[str, Any]) -> Iterator[Any]:
    """Make the specification of a network of another library, with a folder for its config."""
    from secateur.models import ModelSpec

    arguments = entry.get("arguments", {})
    if "spec" in entry:
        yield ModelSpec.parse(entry["spec"], **arguments)
        return
    transformers = entry["source"] == "transformers"
    named = (
        {"architectures": [entry["architecture"]]} if transformers else {"_class_name": entry["architecture"]}
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(named | entry["settings"]))
        yield ModelSpec.parse(f"{'hf' if transformers else 'diffusers'}:{folder}", **arguments)


def example(entry: Mapping[str, Any]) -> Any:
    """Draw two examples of what the network takes."""
    import torch

    if "input" in entry:
        return torch.randn(2, *entry["input"], generator=torch.Generator().manual_seed(2))
    with specification(entry) as spec:
        return spec.inputs.example(2)


def covered(model: Any, graph: Any) -> float:
    """Return the share of weight dimensions along which channels may be cut.

    Counted are the first two dimensions of every weight, each as many times as the weight has values. Left
    out are dimensions of three or less, the outputs of the network, and tables of words and positions.
    """
    import torch

    free = {(part.tensor, part.dim) for group in graph.prunable for part in group.members}
    outputs = {
        (part.tensor, part.dim)
        for group in graph.frozen
        if group.reason == "is an output of the network"
        for part in group.members
    }
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    cut = every = 0
    for name, weight in model.named_parameters():
        if weight.ndim < 2 or id(weight) in tables or "pos" in name.rpartition(".")[2]:
            continue
        for dim in (0, 1):
            place = name, dim
            if weight.shape[dim] > 3 and (place in free or place not in outputs):
                every += weight.numel()
                cut += weight.numel() * (place in free)
    return round(cut / max(1, every), 3)


def problem(action: Callable[[], None]) -> str:
    """Return why an action failed; nothing where it did not."""
    try:
        action()
    except Exception as error:  # noqa: BLE001  a failure is part of the result
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:300]
    return ""


def answers(model: Any, x: Any) -> list[Any]:
    """Run a network; return the tensors of its output."""
    from secateur.outputs import parts_of

    return list(parts_of(model(**x) if isinstance(x, dict) else model(x)).tensors)


def trains(model: Any, x: Any) -> None:
    """Run a forward and a backward pass in training mode; raises if either fails."""
    import torch

    found = [answer for answer in answers(model.train(), x) if answer.requires_grad]
    torch.stack([answer.float().square().mean() for answer in found]).sum().backward()


def loads(model: Any, x: Any, entry: Mapping[str, Any]) -> None:
    """Save a network and load it again; raises if its outputs are not the same to the bit."""
    import torch

    import secateur as sec

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder, "small.safetensors")
        if "input" in entry:
            sec.save(path, model)
            again = sec.load(path, model=built(entry))
        else:
            sec.save(path, model, builder=stack.enter_context(specification(entry)))
            again = sec.load(path)
    with torch.no_grad():
        pairs = zip(answers(model.eval(), x), answers(again.eval(), x), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), "the outputs differ"


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, stage: str, action: Any) -> Any:
        """Run an action and record its time."""
        start = time.perf_counter()
        result = action()
        self.seconds[stage] = round(time.perf_counter() - start, 3)
        return result


def apart(entry: Mapping[str, Any], limit: float) -> dict[str, Any]:
    """Run one network in a separate process; a failure is part of the result."""
    head = {key: entry[key] for key in ("source", "model", "input", "architecture") if key in entry}
    if PEER in entry:
        head["peer"] = entry[PEER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.zoo", "--one", json.dumps(dict(entry))]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return {**head, "verified": False, "failure": f"not done after {limit:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # The message of an exception may have several lines, of which the first says what is wrong.
        said = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt): ", line)]
        # Paths of this machine say nothing to others.
        reason = re.sub(r"\S*/site-packages/|secateur\.errors\.", "", (said or lines)[-1])
        return {**head, "verified": False, "failure": reason[:300]}
    return {**head, **json.loads(done.stdout.splitlines()[-1])}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Make a table of every network, with a summary below, in Markdown."""
    head = "network | verified | covered | params left | MACs left | groups | frozen | "
    head += "s: trace | plan | surgery | check"
    rows = [
        f"| {head} | peer: params, MACs left |",
        "|---" * 12 + "|",
    ]
    for item in results:
        peer = item.get("peer", {})
        theirs = f"{peer['params_left']:.3f}, {peer['macs_left']:.3f}" if peer.get("ok") else "fails"
        theirs = theirs if peer else ""
        name = f"{item['source']}:{item['model']}"
        if "failure" in item:
            rows.append(f"| {name} | no: {item['failure']} | | | | | | | | | | {theirs} |")
            continue
        seconds = item["seconds"]
        rows.append(
            f"| {name} | {'yes' if item['verified'] else 'NO'} | {item.get('covered', '')} "
            f"| {item['params_left']:.3f} "
            f"| {item['macs_left']:.3f} | {item['groups']} | {item['frozen']} | {seconds['trace']:.1f} "
            f"| {seconds['plan']:.2f} | {seconds['surgery']:.2f} | {seconds['check']:.2f} | {theirs} |"
        )
    return "\n".join([*rows, "", *summary(results)]) + "\n"


def summary(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Summarise the results."""
    verified = [item for item in results if item["verified"]]
    lines = [f"{len(verified)} of {len(results)} verified"]
    if peers := [item["peer"] for item in results if "peer" in item]:
        lines[0] += f" (torch-pruning 1.6.1: {sum(peer.get('ok', False) for peer in peers)} of {len(peers)})"
    if verified:
        small = sum(item["params_left"] <= 0.4 for item in verified)
        branches = [item["branches"] for item in verified if "branches" in item]
        seconds = [sum(item["seconds"].values()) for item in verified]
        lines += [
            f"{small} with at least 60% of the parameters removed",
            f"MACs left, median: {statistics.median(item['macs_left'] for item in verified):.3f}",
            f"seconds a network, median: {statistics.median(seconds):.1f}, most: {max(seconds):.1f}",
            f"over {SLOW:.0f} seconds: {sum(value > SLOW for value in seconds)}",
            f"covered, median: {statistics.median(item.get('covered', 0.0) for item in verified):.3f}",
            f"residual branches: {sum(item['found'] for item in branches)}",
            f"residual branches that may be removed: {sum(item['prunable'] for item in branches)}",
            f"not verified without half of them: {sum(not item.get('verified', True) for item in branches)}",
            f"not trained: {sum(bool(item.get('trains')) for item in verified)}",
            f"not loaded: {sum(bool(item.get('loads')) for item in verified)}",
            f"predicted cost is not the counted cost: {sum(not item['counted'] for item in verified)}",
        ]
    if differences := [item["onnx"] for item in verified if "onnx" in item]:
        equal = sum(isinstance(value, float) and value <= EQUAL for value in differences)
        lines.append(f"equal to {EQUAL:.0e} in ONNX Runtime, cut: {equal} of {len(differences)}")
    return [f"- {line}" for line in lines]


def listed(path: Path) -> list[dict[str, Any]]:
    """Read a list of networks."""
    if path.suffix == ".json":
        return list(json.loads(path.read_text())["models"])
    data = tomllib.loads(path.read_text())
    shared = {"": {}, **data["like"]}
    return [
        {**entry, "settings": {**shared[entry.get("like", "")], **entry.get("settings", {})}}
        for entry in data["network"]
    ]


def publish(results: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
    """Write the result file of networks of other libraries."""
    machine = Machine.this()
    rows = [{key: value for key, value in item.items() if key != "tolerance"} for item in results]
    result = Result(
        title="Networks of other libraries",
        command=f"python -m benchmarks.zoo {' '.join(map(str, options.lists))} --publish",
        commit=git("rev-parse", "HEAD") or "",
        date=today(),
        modified=bool(git("status", "--porcelain", "--", "src")),
        machine=machine.model_copy(update={"remark": f"One thread, {options.jobs} at a time. {versions()}."}),
        seeds=(0, 1, 5),
        rows=rows,
    )
    write(RESULTS / "families.json", result)


def versions() -> str:
    """Name the versions of the libraries that networks come from."""
    names = "transformers", "ultralytics", "diffusers", "segmentation-models-pytorch", "timm"
    return ", ".join(f"{name} {version(name)}" for name in names)


def main() -> None:
    """Run what is missing and write the table."""
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
    parser.add_argument("--onnx", action="store_true", help="export each network and run the file")
    parser.add_argument("--publish", action="store_true", help="make the published result of these networks")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(json.loads(options.one))))
        return
    if not options.lists:
        parser.error("give a list of networks")
    entries = [{**entry, "onnx": options.onnx} for path in options.lists for entry in listed(path)]
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
            passed = "verified" if item["verified"] else "NOT VERIFIED"
            print(f"{item['source']}:{item['model']}: {passed}, {verdict}")
    results = [known[entry["source"], entry["model"]] for entry in entries]
    (options.out / "table.md").write_text(table(results))
    print("\n".join(summary(results)))
    if options.publish:
        publish(results, options)


if __name__ == "__main__":
    main()
