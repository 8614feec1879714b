"""What a run needs in order to go on after a kill: one file, written again and again.

The file holds tensors and JSON in parts, such as the state of a fit and that of the recipe around it. All
parts are written together, so what is read back belongs together.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.checkpoint.seal import check_seal, seal, unsealed
from secateur.errors import CheckpointError
from secateur.files import replacing

FORMAT = 1
_FOREIGN = (ValueError, KeyError, TypeError, AttributeError)  # what JSON of another shape leads to
_SHARE = 0.1  # of the time that may go into writing


@dataclass(frozen=True)
class Entry:
    """One part of the state.

    Attributes:
        facts: plain values.
        tensors: by name; not changed afterwards.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Journal:
    """Keeps the state of a run on disk; without a path it keeps nothing.

    Args:
        path: the file; read now if it exists.
        about: plain values that are written beside the parts as they are at that moment.

    Raises:
        CheckpointError: the file is damaged or of another kind.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "state.safetensors"
    ...     Journal(file).record("fit", Entry({"epoch": 3}, {"weight": torch.ones(2)}))
    ...     again = Journal(file).recall("fit")
    >>> again.facts, again.tensors
    ({'epoch': 3}, {'weight': tensor([1., 1.])})
    """

    def __init__(self, path: Path | None = None, about: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._path, self._about = path, about
        self._parts: dict[str, Entry] = {}
        self._told: Mapping[str, Any] = {}
        self._stale = False
        self._wrote_at, self._took = -float("inf"), 0.0
        self.about: Mapping[str, Any] = {}
        """What was written beside the parts that were read."""
        self._found: dict[str, Entry] = {}
        if path is not None and path.is_file():
            self._found, self.about = _read(path)

    @classmethod
    def of_another(cls, path: Path | None) -> Journal:
        """A journal that another process keeps: what it holds can be recalled, and nothing is written.

        Args:
            path: the file; without one there is nothing to recall.

        Raises:
            CheckpointError: the file is damaged or of another kind.
        """
        journal = cls()
        if path is not None and path.is_file():
            journal._found, journal.about = _read(path)
        return journal

    @property
    def parts(self) -> list[str]:
        """Names of the parts that were read and not recalled yet."""
        return sorted(self._found)

    def __bool__(self) -> bool:
        """Whether anything is kept at all."""
        return self._path is not None

    def recall(self, part: str) -> Entry | None:
        """A part as it was read, once; ``None`` if there is none, or it was recalled already."""
        return self._found.pop(part, None)

    def put(self, part: str, entry: Entry) -> None:
        """Changes a part, to be written with the next :meth:`record`."""
        self._parts[part] = entry

    def drop(self, part: str) -> None:
        """Takes a part out, from the next :meth:`record` on."""
        self._parts.pop(part, None)

    def record(self, part: str, entry: Entry) -> None:
        """Changes a part; all parts now belong together, and are written unless that was done just before.

        Writing takes a tenth of the time at most; what was not written is written by :meth:`flush`.
        """
        self._parts[part] = entry
        if self._path is None:
            return
        self._told, self._stale = dict(self._about()), True
        self._latest = dict(self._parts)
        if time.monotonic() - self._wrote_at >= self._took / _SHARE:
            self.flush()

    def flush(self) -> None:
        """Writes what was recorded last, if it is not on the disk yet.

        Raises:
            CheckpointError: the file cannot be written; the old one is kept.
        """
        if self._path is None or not self._stale:
            return
        began = time.monotonic()
        _write(self._path, self._latest, self._told)
        self._wrote_at, self._stale = time.monotonic(), False
        self._took = self._wrote_at - began

    def close(self) -> None:
        """Removes the file: there is nothing to go on with any more."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self._stale = False


def _write(path: Path, parts: Mapping[str, Entry], about: Mapping[str, Any]) -> None:
    text = json.dumps(
        {
            "state": FORMAT,
            "about": about,
            "facts": {name: entry.facts for name, entry in parts.items()},
        }
    )
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
        for part, entry in parts.items()
        for name, tensor in entry.tensors.items()
    }
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=seal(text, tensors))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be written: {reason}; the state before is kept") from error


def _read(path: Path) -> tuple[dict[str, Entry], Mapping[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            text = unsealed(metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        check_seal(metadata, tensors)
        state = json.loads(text)
        if state.get("state") != FORMAT:
            raise CheckpointError(f"it is of format {state.get('state')}, and this version reads {FORMAT}")
        parts = {name: Entry(facts, {}) for name, facts in state["facts"].items()}
    except (
        OSError,
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        CheckpointError,
    ) as error:
        raise CheckpointError(
            f"{path} cannot be gone on from: {error}; start anew with --overwrite instead of --resume"
        ) from error
    by_part: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        by_part.setdefault(part, {})[rest] = tensor
    return {name: Entry(entry.facts, by_part[name]) for name, entry in parts.items()}, state["about"]
