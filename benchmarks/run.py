"""Run one benchmark and write its result file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from benchmarks.benchmark import Benchmark, Options, Row, load
from benchmarks.results import RESULTS, ROOT, Machine, Result, git, read, today, write

UNPUBLISHED = ROOT / "runs" / "benchmarks"
"""Folder of quick runs, and of the rows of interrupted ones."""


def measure(name: str, case: str, settings: Sequence[str], *, quick: bool, out: Path | None = None) -> Path:
    """Run a benchmark, print its table, and write its result file.

    Each row is stored as soon as it is measured. An interrupted run with the same options, at the same
    commit, goes on where it stopped.

    Args:
        name: of the benchmark.
        case: name of a published run; empty for the defaults.
        settings: options as ``name=value``; values are JSON, or text.
        quick: use small settings that finish soon, and publish nothing.
        out: file to write instead of the published one.

    Returns:
        The file.
    """
    benchmark = load(name)
    options = chosen(benchmark, case, settings, quick=quick)
    file = f"{name}.{case}.json" if case else f"{name}.json"
    if out is None:
        out = UNPUBLISHED / f"{name}.quick.json" if quick else RESULTS / file
    commit, modified = state()
    rows = measured_rows(benchmark, options, UNPUBLISHED / f"{out.stem}.rows.jsonl", commit)
    known = read(out) if out.is_file() else None
    result = Result(
        title=known.title if known else case.replace("-", " ") or benchmark.title,
        command=command(name, case, settings, quick=quick),
        commit=commit,
        date=today(),
        modified=modified,
        machine=Machine.this(),
        seeds=options.seeds,
        rows=[row.model_dump(mode="json") for row in rows],
    )
    write(out, result)
    print(benchmark.table(rows))
    return out


def chosen(benchmark: Benchmark, case: str, settings: Sequence[str], *, quick: bool) -> Options:
    """Make options of the defaults, a case, quick settings, and those of the command line.

    Raises:
        SystemExit: there is no such case or option, or a value does not fit.
    """
    if case and case not in benchmark.cases:
        cases = ", ".join(benchmark.cases) or "none"
        raise SystemExit(f"{benchmark.name}: no case {case}; there are: {cases}")
    values: dict[str, Any] = {**benchmark.cases.get(case, {}), **(benchmark.quick if quick else {})}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise SystemExit(f"--set {setting}: write NAME=VALUE")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    try:
        return benchmark.options(**values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        known = ", ".join(benchmark.options.model_fields)
        raise SystemExit(f"{benchmark.name}: {wrong}. Options are: {known}") from None


def measured_rows(benchmark: Benchmark, options: Options, journal: Path, commit: str) -> list[Row]:
    """Run a benchmark, storing each row; rows of an interrupted run are taken from the journal."""
    head = json.dumps({"commit": commit, "options": options.model_dump(mode="json")})
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
    earlier = lines[1:] if lines[:1] == [head] else []
    rows = [benchmark.row.model_validate_json(line) for line in earlier]
    journal.parent.mkdir(parents=True, exist_ok=True)
    journal.write_text("\n".join([head, *earlier]) + "\n", encoding="utf-8")
    options.resume(rows)
    prepare(options)
    for row in benchmark.run(options):
        rows.append(row)
        with journal.open("a", encoding="utf-8") as file:
            file.write(row.model_dump_json() + "\n")
        print(row, flush=True)
    journal.unlink()
    return rows


def prepare(options: Options) -> None:
    """Set threads, seed and memory as a benchmark asks for; also used by the processes that it starts."""
    import torch

    from secateur.cli.memory import keep_freed_memory

    if options.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seeds[0])


def state() -> tuple[str, bool]:
    """Return the commit of the project, and whether its code differs from it."""
    commit = git("rev-parse", "HEAD")
    return commit or "unknown", bool(git("status", "--porcelain", "--", "src", "benchmarks/*.py"))


def command(name: str, case: str, settings: Sequence[str], *, quick: bool) -> str:
    """Return the command line of a run."""
    words = ["python", "-m", "benchmarks", "run", name]
    words += ["--case", case] if case else []
    words += ["--quick"] if quick else []
    return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])
