"""Write and read the folder of a run: its settings, its log, its result."""

from __future__ import annotations

import json
import math
import re
import shutil
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w
from filelock import FileLock, Timeout

from secateur.errors import SecateurError, StoppedError, UsageError
from secateur.files import append_text, write_text

CONFIG, METRICS, SUMMARY, MEASURED, CHECKPOINTS, LOCK = (
    "config.toml",
    "metrics.jsonl",
    "summary.json",
    "measured.json",
    "checkpoints",
    ".lock",
)
NETWORK, ANSWERS, REPORT, TENSORBOARD = "network.json", "answers.json", "report.html", "tensorboard"
DETECTOR, ULTRALYTICS = "pruned.pt", "ultralytics"
TOKENIZER, PRETRAINED, EXPORTED_FILES = "tokenizer", "pretrained", "exported.json"
_OWN = frozenset(
    (
        *(CONFIG, METRICS, SUMMARY, MEASURED, CHECKPOINTS, LOCK),
        *(NETWORK, ANSWERS, REPORT, TENSORBOARD, DETECTOR, ULTRALYTICS, TOKENIZER, PRETRAINED),
        EXPORTED_FILES,
    )
)
_BY_ULTRALYTICS = re.compile(
    rf"{Path(DETECTOR).stem}(\.(onnx|torchscript|engine|mlpackage|mlmodel|tflite|pb|mnn|pte|axm)|_[a-z0-9]+_model)"
)
"""What ``YOLO("pruned.pt").export(format=...)`` writes beside the file."""


class RunError(SecateurError):
    """A run folder is in use, holds something already, or cannot be read or written."""


class RunFolder:
    """Write a folder while a job runs; others can read it at any moment.

    ``config.toml`` holds what is needed to repeat the run, ``metrics.jsonl`` one JSON object a
    line, ``summary.json`` the result so far, ``measured.json`` what was measured on the network,
    ``checkpoints/`` the networks. Files are replaced as a whole; to
    ``metrics.jsonl`` lines are added, and a reader leaves out a last line that is not finished.
    Use it as a context manager: until its end the folder is locked against other processes, and the
    status in ``summary.json`` is ``running``; afterwards it is ``done``, ``interrupted`` or ``failed``.

    Args:
        path: the folder; made, with its parents, if it does not exist.
        overwrite: remove an earlier run in this folder. Only files that a run makes are removed, and those
            that were exported into it.
        resume: continue the earlier run in this folder.
        is_writer: whether this process writes; of the processes that share a run, the main one does. The
            others can make the same calls.

    Raises:
        RunError: the folder is in use, is not empty, cannot be made, or holds nothing to continue.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with RunFolder(Path(folder) / "first") as run:
    ...         run.log({"epoch": 1, "loss": 0.5})
    ...     read_metrics(run.path)
    [{'epoch': 1, 'loss': 0.5}]
    """

    def __init__(
        self, path: Path | str, *, overwrite: bool = False, resume: bool = False, is_writer: bool = True
    ) -> None:
        self.path = Path(path)
        self._is_writer = is_writer
        self._records: list[str] = []
        self._is_written = False  # whether the file holds the records as they are here
        self._summary: dict[str, Any] = {}
        self._lock = FileLock(self.path / LOCK, timeout=0)
        if not is_writer:
            return
        if resume:
            _check_unfinished(self.path)
        try:
            self._claim(overwrite, resume)
        except OSError as error:
            raise RunError(
                f"cannot write the run folder {self.path}: {error.strerror}; choose another with --out"
            ) from error

    def _claim(self, overwrite: bool, resume: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path} is a file; give --out a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        exported = set(_exported(self.path))
        strangers = sorted(
            entry.name
            for entry in self.path.iterdir()
            if not _is_own(entry.name) and entry.name not in exported
        )
        if strangers or (_entries(self.path) and not _is_run(self.path)):
            other = strangers[0] if strangers else _entries(self.path)[0].name
            raise RunError(f"{self.path} holds other files ({other}); give --out a new folder")
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunError(
                f"{self.path} is in use by another process; wait for it or choose another --out"
            ) from error
        try:
            if resume:
                self._records = _lines(self.path)
                for part in self.path.rglob(".*.part"):  # unfinished when the run was killed
                    part.unlink()
            else:
                self._clear(overwrite)
            (self.path / CHECKPOINTS).mkdir(exist_ok=True)
            self.summarise(status="running")
        except BaseException:
            self.close()
            raise

    def _clear(self, overwrite: bool) -> None:
        # A run without a checkpoint and without measurements holds nothing to lose.
        results = [*(self.path / CHECKPOINTS).glob("*.safetensors"), *self.path.glob(MEASURED)]
        if results and not overwrite:
            raise RunError(
                f"{self.path} holds an earlier run; choose another --out, or replace it with --overwrite"
            )
        for entry in _entries(self.path):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.summarise(status="done")
            else:
                stopped = isinstance(error, StoppedError | KeyboardInterrupt)
                reason = {} if stopped else {"error": " ".join(str(error).split())}
                with suppress(RunError):  # the first error matters more than that it cannot be written
                    self.summarise(status="interrupted" if stopped else "failed", **reason)
        finally:
            self.close()

    def close(self) -> None:
        """Let other processes use the folder. The files stay."""
        # The lock file stays: another process may have opened it already, and could lock the removed file
        # while a third one locks a new file.
        self._lock.release()

    def configure(self, settings: Mapping[str, object]) -> None:
        """Write ``config.toml``.

        Args:
            settings: everything needed to repeat the run: texts, numbers, truth values, paths and lists of
                these, in nested tables. Entries that are ``None`` are left out.

        Raises:
            UsageError: a value has no form in TOML.
        """
        try:
            text = tomli_w.dumps(_toml(settings))
        except TypeError as error:
            raise UsageError(f"a setting cannot be written to {CONFIG}: {error}") from error
        self._write(CONFIG, text)

    def log(self, record: Mapping[str, object]) -> None:
        """Add one line to ``metrics.jsonl``.

        Args:
            record: plain values; numbers that are not finite are written as ``null``.
        """
        line = json.dumps(_json(record), allow_nan=False) + "\n"
        self._records.append(line)
        self._append(line)

    @property
    def logged(self) -> int:
        """Return the number of lines in ``metrics.jsonl``."""
        return len(self._records)

    def forget(self, lines: int) -> None:
        """Keep only the first lines of ``metrics.jsonl``: what a resumed run repeats is logged again.

        Args:
            lines: how many stay.
        """
        self._records = self._records[:lines]
        self._is_written = False

    def adopt(self, summary: Mapping[str, Any]) -> None:
        """Take over the summary of another process; nothing is written.

        Args:
            summary: of the run, as plain values.
        """
        self._summary = dict(summary)

    def summarise(self, **entries: object) -> None:
        """Add or replace entries of ``summary.json``.

        Args:
            **entries: plain values, in nested mappings and lists.
        """
        self._summary.update(entries)
        self._write(SUMMARY, json.dumps(_json(self._summary), indent=2, allow_nan=False) + "\n")

    def remember(self, found: Mapping[str, object], name: str = MEASURED) -> None:
        """Write ``measured.json``, or another file of one object.

        Args:
            found: plain values, in nested mappings and lists.
            name: of the file.
        """
        self._write(name, json.dumps(_json(found), allow_nan=False) + "\n")

    @property
    def summary(self) -> Mapping[str, Any]:
        """Return the content of ``summary.json``."""
        return self._summary

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint.

        Args:
            name: without folder and ending, such as ``"best"``.
        """
        return self.path / CHECKPOINTS / f"{name}.safetensors"

    def _append(self, line: str) -> None:
        if not self._is_writer:
            return
        if not self._is_written:
            self._write(METRICS, "".join(self._records))
            self._is_written = True
            return
        try:
            append_text(self.path / METRICS, line)
        except OSError as error:
            self._is_written = False
            raise RunError(
                f"cannot write {self.path / METRICS}: {error.strerror}; what was there is kept"
            ) from error

    def _write(self, name: str, text: str) -> None:
        if not self._is_writer:
            return
        try:
            write_text(self.path / name, text)
        except OSError as error:
            raise RunError(
                f"cannot write {self.path / name}: {error.strerror}; what was there is kept"
            ) from error


def _is_own(name: str) -> bool:
    """Return whether a run makes files of that name, finished or (after a kill) unfinished."""
    unfinished = name.startswith(".") and name.endswith(".part")
    return name in _OWN or unfinished or _BY_ULTRALYTICS.fullmatch(name) is not None


def note_exported(file: Path | str) -> None:
    """Note in a run folder that a file in it was exported, so that it does not keep the run from replacement.

    Args:
        file: what was written. Nothing is done if it does not lie in a run folder.

    Raises:
        RunError: the note cannot be written.
    """
    file = Path(file).absolute()
    if _is_own(file.name) or not _is_run(file.parent):
        return
    names = sorted({*_exported(file.parent), file.name})
    try:
        write_text(file.parent / EXPORTED_FILES, json.dumps(names) + "\n")
    except OSError as error:
        raise RunError(f"cannot write {file.parent / EXPORTED_FILES}: {error.strerror}") from error


def _exported(path: Path) -> list[str]:
    """Return the names of the files in a run folder that were exported."""
    try:
        found = json.loads((path / EXPORTED_FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


def _entries(path: Path) -> list[Path]:
    """Return the content of a run folder besides the lock."""
    return sorted(entry for entry in path.iterdir() if entry.name != LOCK)


def _is_run(path: Path) -> bool:
    """Return whether a run wrote the folder's summary."""
    try:
        return "status" in read_summary(path)
    except (RunError, ValueError):
        return False


def _check_unfinished(path: Path) -> None:
    """Refuse to continue what is no run, or is finished."""
    if not path.is_dir() or not _is_run(path):
        raise RunError(f"{path} holds no run to continue; omit --resume to start one")
    if read_summary(path)["status"] == "done":
        raise RunError(f"the run in {path} is finished; there is nothing to continue")


def _lines(path: Path) -> list[str]:
    """Read the lines of ``metrics.jsonl``, without a last one that a kill or a full disk cut short."""
    file = path / METRICS
    if not file.is_file():
        return []
    # Not splitlines, which splits at characters that JSON may hold. Bytes: a cut may lie in a character.
    lines = file.read_bytes().split(b"\n")[:-1]
    return [line.decode("utf-8") + "\n" for line in lines]


def find_checkpoint(path: Path | str) -> Path:
    """Find the checkpoint that a path names: a file itself, or the best or last one of a run folder.

    Args:
        path: a checkpoint file or a run folder.

    Returns:
        The path of a file that exists.

    Raises:
        RunError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise RunError(f"{path} does not exist; give a checkpoint or a run folder")
    for name in ("best", "last"):
        file = path / CHECKPOINTS / f"{name}.safetensors"
        if file.is_file():
            return file
    raise RunError(
        f"{path} holds no checkpoint; looked for best.safetensors and last.safetensors in {CHECKPOINTS}/"
    )


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """Read a run's ``metrics.jsonl``, oldest line first; a line that is not finished is left out.

    Args:
        path: the run folder.
    """
    return [json.loads(line) for line in _lines(Path(path))]


def read_summary(path: Path | str) -> dict[str, Any]:
    """Read a run's ``summary.json``.

    Args:
        path: the run folder.

    Raises:
        RunError: there is none.
    """
    summary: dict[str, Any] = json.loads(_text(path, SUMMARY))
    return summary


def read_measured(path: Path | str) -> dict[str, Any]:
    """Read a run's ``measured.json``.

    Args:
        path: the run folder, or the file itself.

    Raises:
        RunError: there is none, or it is damaged.
    """
    file = Path(path)
    file = file / MEASURED if file.is_dir() else file
    if not file.is_file():
        raise RunError(f"{path} holds no {MEASURED}; give the folder of a run that measured something")
    try:
        measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{file} is damaged ({error}); measure again") from error
    return measured


def read_config(path: Path | str) -> dict[str, Any]:
    """Read a run's ``config.toml``.

    Args:
        path: the run folder.

    Raises:
        RunError: there is none.
    """
    return tomllib.loads(_text(path, CONFIG))


def _text(path: Path | str, name: str) -> str:
    """Read a file that every run folder holds."""
    file = Path(path) / name
    if not file.is_file():
        raise RunError(f"{path} holds no {name}; is it a run folder?")
    return file.read_text(encoding="utf-8")


def _json(value: object) -> object:
    """Replace numbers that JSON does not have by ``None``, and paths by texts, in a nest of containers.

    >>> _json({"loss": float("nan"), "out": Path("runs"), "sizes": (1, 2)})
    {'loss': None, 'out': 'runs', 'sizes': [1, 2]}
    """
    match value:
        case Mapping():
            return {str(name): _json(item) for name, item in value.items()}
        case list() | tuple():
            return [_json(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case Path():
            return str(value)
    return value


def _toml(table: Mapping[str, object]) -> dict[str, Any]:
    """Leave out entries that are ``None``, which TOML does not have, and turn paths into texts."""
    return {name: _toml_value(value) for name, value in table.items() if value is not None}


def _toml_value(value: object) -> object:
    match value:
        case Mapping():
            return _toml(value)
        case list() | tuple():
            return [_toml_value(item) for item in value]
        case Path():
            return str(value)
    return value
