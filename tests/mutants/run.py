"""Try all mutants: ``python -m tests.mutants.run --out runs/mutants --jobs 2``.

Each mutant has a process of its own, forked from one that has traced all networks already, with limits on its
time and memory. Results are lines of JSON; the table is made of them at the end.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import secateur as sec
from secateur.graph import tracing
from secateur.verification import Verification
from tests.mutants import suite
from tests.mutants.operators import Mutant, mutants
from tests.mutants.trial import (
    COSTS,
    HANG,
    OUTCOMES,
    SAME_CODE,
    SAME_GRAPH,
    STALE,
    TRACE,
    UNNOTICED,
    UNREACHED,
    VERIFY,
    Prepared,
    prepare,
    tried,
)

ERROR = "error"
"""What is written of a mutant that was caught by nothing but an error of its own code."""

NETWORKS = 6
"""How many networks a mutant is tried on, not counting those of which it changes no graph."""

MOST = 60
"""How many networks are looked at in search of these."""

WALL = 300.0
"""Seconds after which a process is ended, whatever it does."""

MEMORY = 4 << 30
"""Bytes that a mutant may take beside what is there before."""

EVERY = {
    "swap index",
    "negate",
    "element-wise rule",
    "another operator's rule",
    "swap rows and columns",
    "skip attribute",
}
"""Kinds of which no mutant is left out, beside all that begin with these words."""

WORDS = ("delete", "roll", "reverse", "return", "cut", "skip one", "do nothing", "repeat", "leave")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/mutants"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", default="*", help="a pattern for the names of mutants")
    parser.add_argument("--networks", default="*", help="a pattern for the names of networks")
    parser.add_argument("--share", type=float, default=1.0, help="of the mutants of less telling kinds")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--unchecked", action="store_true", help="with a check that lets everything pass")
    parser.add_argument("--resume", action="store_true", help="leave out what has a result already")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "results.jsonl"
    done = {item["name"] for item in _read(path)} if options.resume else set()
    started = time.perf_counter()
    networks = [prepare(name) for name in suite.names() if fnmatch.fnmatchcase(name, options.networks)]
    _say(f"{len(networks)} networks in {time.perf_counter() - started:.0f} s")
    met = sorted({operator for network in networks for operator in network.operators})
    wanted = f"*{options.only}*"
    chosen = [
        item
        for item in mutants(met)
        if fnmatch.fnmatchcase(item.name, wanted) and item.name not in done and _drawn(item, options.share)
    ]
    chosen = sorted(chosen, key=lambda item: zlib.crc32(item.name.encode()))[: options.limit or None]
    how = unchecked() if options.unchecked else nullcontext()
    with how, path.open("a" if options.resume else "w", encoding="utf-8") as file:
        for number, result in enumerate(results(chosen, networks, options.jobs), 1):
            file.write(json.dumps(result) + "\n")
            file.flush()
            if result["outcome"] in (UNNOTICED, HANG) or number % 50 == 0:
                spent = time.perf_counter() - started
                _say(f"{number}/{len(chosen)} {spent:.0f} s {result['outcome']} {result['name']}")
    (options.out / "table.md").write_text(table(_read(path)), encoding="utf-8")
    _say((options.out / "table.md").read_text(encoding="utf-8"))


def results(
    chosen: Sequence[Mutant], networks: Sequence[Prepared], jobs: int = 1
) -> Iterator[dict[str, Any]]:
    """Try mutants, each in a process of its own.

    Args:
        chosen: the mutants.
        networks: the networks, prepared.
        jobs: how many processes at once.

    Yields:
        For each mutant its name, kind, file, outcome, and what came of each network.
    """
    gc.collect()
    gc.freeze()
    waiting = list(reversed(chosen))
    running: dict[int, _Child] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            reached = reaching(mutant, networks)
            if not reached:
                yield _result(mutant, [])
                continue
            child = _Child.started(mutant, reached)
            running[child.pipe] = child
        if not running:
            continue
        for pipe in select.select(list(running), [], [], 1.0)[0]:
            if running[pipe].reads():
                continue
            yield running.pop(pipe).ended()
        for child in running.values():
            if time.monotonic() - child.since > WALL:
                os.kill(child.process, signal.SIGKILL)


def reaching(mutant: Mutant, networks: Sequence[Prepared]) -> list[Prepared]:
    """Networks that run what is changed: the three smallest, and others by a draw of their own."""
    if mutant.operator:
        hit = [item for item in networks if mutant.operator in item.operators]
    else:
        hit = [item for item in networks if not item.lines[mutant.file].isdisjoint(mutant.lines)]
    hit.sort(key=lambda item: item.rank)
    rest = [item for item in hit[3:] if item.graph.prunable]
    rest.sort(key=lambda item: zlib.crc32(f"{mutant.name} {item.name}".encode()))
    return hit[:3] + rest[: MOST - 3]


@dataclass
class _Child:
    mutant: Mutant
    process: int
    pipe: int
    since: float
    text: bytes = b""
    names: list[str] = field(default_factory=list)

    @classmethod
    def started(cls, mutant: Mutant, networks: Sequence[Prepared]) -> _Child:
        reading, writing = os.pipe()
        process = os.fork()
        if process:
            os.close(writing)
            return cls(mutant, process, reading, time.monotonic(), names=[item.name for item in networks])
        try:  # the child never comes back from here
            os.close(reading)
            _work(mutant, networks, writing)
        finally:
            os._exit(0)

    def reads(self) -> bool:
        """Takes what the process wrote; false at its end."""
        found = os.read(self.pipe, 1 << 16)
        self.text += found
        return bool(found)

    def ended(self) -> dict[str, Any]:
        os.close(self.pipe)
        status = os.waitpid(self.process, 0)[1]
        found = [json.loads(line) for line in self.text.decode().splitlines()]
        if found and found[-1] == "done":
            return _result(self.mutant, found[:-1], time.monotonic() - self.since)
        name = self.names[min(len(found), len(self.names) - 1)]
        found.append(
            {"network": name, "outcome": HANG, "reason": f"the process ended early (status {status})"}
        )
        return _result(self.mutant, found, time.monotonic() - self.since)


def _work(mutant: Mutant, networks: Sequence[Prepared], writing: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    changed = 0
    with os.fdopen(writing, "w") as file:
        for network in networks:
            try:
                found = tried(mutant, network).to_dict()
            except Exception:  # noqa: BLE001 - a fault of this harness: told as it is
                found = {"network": network.name, "outcome": HANG, "reason": traceback.format_exc()[-600:]}
            file.write(json.dumps(found) + "\n")
            file.flush()
            changed += found["reason"] not in (SAME_GRAPH, SAME_CODE)
            if found["outcome"] in (UNNOTICED, HANG) or found["reason"] == SAME_CODE or changed == NETWORKS:
                break
        file.write(json.dumps("done"))


def _result(mutant: Mutant, found: list[dict[str, Any]], seconds: float = 0.0) -> dict[str, Any]:
    outcome = min((item["outcome"] for item in found), key=OUTCOMES.index, default=UNREACHED)
    return {
        "name": mutant.name,
        "kind": mutant.kind,
        "file": mutant.file.removeprefix("graph/"),
        "outcome": outcome,
        "seconds": round(seconds, 2),
        "networks": found,
    }


def _drawn(mutant: Mutant, share: float) -> bool:
    if mutant.kind in EVERY or mutant.kind.startswith(WORDS):
        return True
    return zlib.crc32(mutant.name.encode()) % 1000 < 1000 * share


def table(found: Sequence[dict[str, Any]]) -> str:
    """The outcomes by kind and by file, in Markdown; what only raised an error is a column of its own."""
    lines = []
    columns = [*OUTCOMES[:-2], ERROR, *OUTCOMES[-2:]]
    for title, key in (("kind of change", "kind"), ("file", "file")):
        lines.append(f"| {title} | mutants | {' | '.join(columns)} |")
        lines.append("|---" + "|--:" * (len(columns) + 1) + "|")
        for name in [*sorted({item[key] for item in found}), ""]:
            counts = Counter(_column(item) for item in found if item[key] == name or not name)
            numbers = " | ".join(str(counts[column] or "") for column in columns)
            lines.append(f"| {name or '**all**'} | {sum(counts.values())} | {numbers} |")
        lines.append("")
    for outcome in (UNNOTICED, HANG, STALE, COSTS):
        for item in sorted(found, key=lambda item: item["name"]):
            if item["outcome"] == outcome:
                last = next(one for one in item["networks"] if one["outcome"] == outcome)
                lines.append(f"- {outcome}: `{item['name']}` on {last['network']}: {last['reason']}")
    return "\n".join(lines) + "\n"


def _column(item: dict[str, Any]) -> str:
    """The outcome; of what was caught, whether anything but an error caught it."""
    reasons = [one["reason"] for one in item["networks"] if one["outcome"] == item["outcome"]]
    caught = item["outcome"] in (VERIFY, TRACE)
    return ERROR if caught and all(reason.startswith("error:") for reason in reasons) else item["outcome"]


@contextmanager
def unchecked() -> Iterator[None]:
    """Let every trial cut pass and every verification succeed, to see what the check is for."""
    examined, verify = tracing.examined, sec.verify
    always = Verification(max_error=0.0, tolerance=1e-8, outputs=1, channels_removed=1)
    tracing.examined = lambda _model, graph, *_: graph
    sec.verify = lambda *_: always
    try:
        yield
    finally:
        tracing.examined, sec.verify = examined, verify


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
