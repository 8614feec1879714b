"""Result files: what was measured, with which command, when, on what, and at which commit."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


class Machine(BaseModel):
    """Where something was measured.

    Attributes:
        cpu: model of the processor.
        cores: how many the system has.
        torch: version of PyTorch.
        remark: what else ran, or how this machine differs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    cpu: str
    cores: int
    torch: str
    remark: str = ""

    @classmethod
    def this(cls) -> Machine:
        """Describe this machine."""
        information = Path("/proc/cpuinfo")
        lines = information.read_text().splitlines() if information.is_file() else []
        models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = models[0] if models else platform.processor() or platform.machine()
        return cls(cpu=cpu, cores=os.cpu_count() or 1, torch=version("torch"))


class Result(BaseModel):
    """One result file.

    Attributes:
        title: heading above its table.
        command: what measured it.
        commit: of the project, when it was measured; the commit that added the text of transcribed figures.
        date: of that day, ISO 8601.
        modified: whether files differed from the commit.
        machine: where it was measured.
        seeds: of the run.
        transcribed: whether the rows are lines of an earlier document, in text. Their columns are those of
            the document, and single measurements were not kept. Where lines were added by another commit
            than ``commit``, it stands in their column ``commit``.
        rows: of the benchmark, or lines of a table.
        remarks: paragraphs on how to read them; written by hand.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    command: str
    commit: str
    date: str
    modified: bool = False
    machine: Machine
    seeds: tuple[int, ...]
    transcribed: bool = False
    rows: list[dict[str, Any]]
    remarks: list[str] = []


def read(path: Path) -> Result:
    """Read a result file."""
    return Result.model_validate_json(path.read_text(encoding="utf-8"))


def write(path: Path, result: Result) -> None:
    """Write a result file in whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(result.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")
    part.replace(path)


def all_results() -> dict[str, Result]:
    """Read the published results, by the names of their files: ``benchmark`` or ``benchmark.case``."""
    return {path.name.removesuffix(".json"): read(path) for path in sorted(RESULTS.glob("*.json"))}


def today() -> str:
    """Return the date in UTC, ISO 8601."""
    return dt.datetime.now(dt.UTC).date().isoformat()


def git(*arguments: str) -> str | None:
    """Run git in the project; return what it prints, or nothing where it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def age(commit: str) -> int | None:
    """Count the commits since a commit that touched ``src``; nothing where git does not know it."""
    count = git("rev-list", "--count", f"{commit}..HEAD", "--", "src")
    return None if count is None else int(count)
