"""Run one command in several processes, started by ``--devices`` or by ``torchrun``, one for each device."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import typer


def is_main() -> bool:
    """Return whether this process writes and prints: the only one, or the first of several."""
    return os.environ.get("RANK", "0") == "0"


def is_worker() -> bool:
    """Return whether a launcher started this process, and reports its errors."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def process_counts(devices: int | None) -> dict[str, int]:
    """Return how many processes take part, as device settings name them.

    Args:
        devices: number of devices on this machine, as the user gave it; ``None`` if ``torchrun`` sets it.

    Returns:
        ``devices``, and under ``torchrun`` the number of machines in ``nodes``.

    Raises:
        UsageError: ``torchrun`` has started another number.

    >>> process_counts(None), process_counts(2)
    ({'devices': 1}, {'devices': 2})
    """
    from secateur.errors import UsageError

    if "LOCAL_WORLD_SIZE" not in os.environ:
        return {"devices": devices or 1}
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if devices not in (None, here):
        raise UsageError(
            f"--devices {devices}, but torchrun has started {here} processes on this machine; leave "
            "--devices out"
        )
    return {"devices": here, "nodes": everywhere // here}


def run_in_processes(devices: int | None) -> None:
    """Run this command in several processes, and exit with their exit code.

    Return immediately if one process is enough, and in each of the started processes.

    Args:
        devices: number of processes; ``None`` for one, or if ``torchrun`` has started them.

    Raises:
        typer.Exit: the processes have ended.
    """
    if devices is not None and devices > 1 and "LOCAL_WORLD_SIZE" not in os.environ:
        raise typer.Exit(_launch(devices))


def _launch(count: int) -> int:
    """Start processes, wait until all have ended, and print the error of the first that failed, if any.

    If one fails, the others get SIGTERM, and are killed after 30 seconds. Ctrl-C and SIGTERM are passed on.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    # Python's resource tracker warns about the semaphores of a killed process, and then frees them.
    warnings = [os.environ.get("PYTHONWARNINGS"), "ignore:resource_tracker"]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, warnings))
    logging.disable(logging.CRITICAL)  # this process only waits, and prints the error below
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
        )
        try:
            elastic_launch(config, _worker)()
        except SignalException as error:
            return 128 + int(error.sigval)
        except ChildFailedError as error:
            return _report(error, Path(folder))
    return 0


def _worker() -> None:
    from secateur.cli import main

    main()


def _report(error: Any, folder: Path) -> int:
    """Print why processes failed; return the exit code."""
    from secateur.cli.errors import SIGNALLED, recorded_line

    rank, failure = error.get_first_failure()
    if failure.exitcode > SIGNALLED:
        return int(failure.exitcode)  # stopped by a signal: the main process has reported it
    # Other processes fail after the first one has ended, so the oldest error is the cause.
    files = sorted(folder.rglob("error.json"), key=lambda file: file.stat().st_mtime_ns)
    if failure.exitcode < 0:
        line = (
            f"error: process {rank} of this run was killed ({failure.signal_name()}); if it has a run "
            "folder, the same command with --resume continues"
        )
    elif files:
        line = recorded_line(files[0])
    else:
        line = f"error: process {rank} of this run ended with exit code {failure.exitcode}"
    print(line, file=sys.stderr)  # noqa: T201
    return max(1, int(failure.exitcode))
