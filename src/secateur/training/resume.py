"""Keep what a run needs to continue after a kill: one file, replaced as the run proceeds.

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
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.checkpoint.checksum import check_checksum, with_checksum, without_checksum
from secateur.errors import CheckpointError
from secateur.files import replacing
from secateur.formats import first_line
from secateur.training.random_state import random_states, set_random_states

FORMAT = 1
_SHARE = 0.1  # of the time that may be spent on writing
_MODEL, _OPTIMIZER, _RANDOM = "model.", "optimizer.", "random."


@dataclass(frozen=True)
class Entry:
    """Hold one part of the state.

    Attributes:
        facts: plain values.
        tensors: by name; not changed afterwards.
    """

    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Journal:
    """Keep the state of a run on disk; without a path, keep nothing.

    Args:
        path: the file; read now if it exists.
        about: returns plain values that are written beside the parts, as they are when a part is recorded.
        writes: whether this process writes the file; if not, another one does.

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

    def __init__(
        self,
        path: Path | None = None,
        about: Callable[[], Mapping[str, Any]] = dict,
        *,
        writes: bool = True,
    ) -> None:
        self._path, self._about = path if writes else None, about
        self._parts: dict[str, Entry] = {}
        self._latest: Mapping[str, Entry] = {}
        self._about_latest: Mapping[str, Any] = {}
        self._stale = False
        self._wrote_at, self._took = -float("inf"), 0.0
        self.about: Mapping[str, Any] = {}
        """What was written beside the parts that were read."""
        self._found: dict[str, Entry] = {}
        if path is not None and path.is_file():
            self._found, self.about = _read(path)

    @property
    def parts(self) -> list[str]:
        """List the names of the parts that were read and are not recalled yet."""
        return sorted(self._found)

    def __bool__(self) -> bool:
        """Return whether anything is kept."""
        return self._path is not None

    def recall(self, part: str) -> Entry | None:
        """Return a part that was read, once; ``None`` if there is none, or it was recalled already."""
        return self._found.pop(part, None)

    def put(self, part: str, entry: Entry) -> None:
        """Change a part; it is written with the next :meth:`record`."""
        self._parts[part] = entry

    def drop(self, part: str) -> None:
        """Remove a part, from the next :meth:`record` on."""
        self._parts.pop(part, None)

    def record(self, part: str, entry: Entry) -> None:
        """Change a part, and write all parts, which now belong together, unless that was done just before.

        Writing takes a tenth of the time at most; :meth:`flush` writes what was left out.
        """
        self._parts[part] = entry
        if self._path is None:
            return
        self._about_latest, self._stale = dict(self._about()), True
        self._latest = dict(self._parts)
        if time.monotonic() - self._wrote_at >= self._took / _SHARE:
            self.flush()

    def flush(self) -> None:
        """Write what was recorded last, if it is not on the disk yet.

        Raises:
            CheckpointError: the file cannot be written; the old one is kept.
        """
        if self._path is None or not self._stale:
            return
        began = time.monotonic()
        _write(self._path, self._latest, self._about_latest)
        self._wrote_at, self._stale = time.monotonic(), False
        self._took = self._wrote_at - began

    def close(self) -> None:
        """Remove the file, when there is nothing left to continue."""
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
            save_file(tensors, temporary, metadata=with_checksum(text, tensors))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CheckpointError(f"{path} cannot be written: {reason}; the state before is kept") from error


def _read(path: Path) -> tuple[dict[str, Entry], Mapping[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            text = without_checksum(metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        check_checksum(metadata, tensors)
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
            f"{path} cannot be resumed from: {error}; start again with --overwrite instead of --resume"
        ) from error
    by_part: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        by_part.setdefault(part, {})[rest] = tensor
    return {name: Entry(entry.facts, by_part[name]) for name, entry in parts.items()}, state["about"]


def snapshot(model: nn.Module, optimizer: Optimizer) -> Entry:
    """Copy weights, the state of the optimizer, and the states of all random generators.

    Args:
        model: the network.
        optimizer: of its parameters.

    Returns:
        Tensors, and what else the optimizer keeps for each parameter.
    """
    tensors = prefixed(_MODEL, model.state_dict())
    plain: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{name}/{key}"] = value.detach().clone()
            else:
                plain.setdefault(name, {})[key] = value
    states, random_facts = random_states()
    tensors |= prefixed(_RANDOM, states)
    return Entry({"optimizer": plain, "random": random_facts}, tensors)


def restore(entry: Entry, model: nn.Module, optimizer: Optimizer) -> None:
    """Restore what :func:`snapshot` copied, bit for bit.

    Args:
        entry: the snapshot; may hold more.
        model: of the same sizes; changed in place.
        optimizer: of its parameters; its state is replaced.

    Raises:
        CheckpointError: the network has other tensors.
    """
    try:
        model.load_state_dict(under(_MODEL, entry.tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"the saved state belongs to another network: {str(error).splitlines()[-1].strip()}"
        ) from error
    optimizer.state.clear()
    kept = under(_OPTIMIZER, entry.tensors)
    for name, parameter in model.named_parameters():
        state: dict[str, Any] = dict(entry.facts["optimizer"].get(name, {}))
        for key, value in under(f"{name}/", kept).items():
            state[key] = value.to(parameter.device if value.shape == parameter.shape else value.device)
        if state:
            optimizer.state[parameter] = state
    set_random_states(under(_RANDOM, entry.tensors), entry.facts.get("random", {}))


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors, with a prefix to their names."""
    return {prefix + name: tensor.detach().clone() for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it.

    >>> import torch
    >>> under("a.", {"a.b": torch.zeros(1), "c": torch.ones(1)})
    {'b': tensor([0.])}
    """
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
