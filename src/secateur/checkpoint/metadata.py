"""Describe the tensors of a checkpoint as JSON, and reject descriptions that are too large or malformed."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from secateur.checkpoint.values import decoded
from secateur.errors import CheckpointError, UsageError
from secateur.graph.branches import Replacement
from secateur.inputs import Json
from secateur.models import InputSpec, ModelSpec

FORMAT = 4
_MOST_CHARACTERS = 16 << 20
_DEEPEST = 32
_LARGEST = 2**31

Attributes = dict[str, dict[str, Any]]
"""Plain attributes by module path and name, each as :mod:`secateur.checkpoint.values` writes it, or as
``{"tensor": name}`` for a stored tensor."""


@dataclass(frozen=True)
class Metadata:
    """Store what a checkpoint contains besides tensors.

    Attributes:
        builder: what builds the network at its full size; ``None`` for a user's own class.
        attributes: plain attributes of modules, by module path and name. With a builder only those that
            differ from what it builds; without, all.
        aliases: for tensors that are one and the same under several names, the name under which it is stored.
        transient: stored buffers that ``state_dict`` leaves out.
        hooked: paths of the modules with hooks, which no file holds.
        replaced: the modules that removed residual branches have lost, with what takes their place.
        frozen: parameters that require no gradient.
        input_size: shape of one input, without the batch.
        normalization: mean and deviation per channel.
        classes: names of the outputs.
        metrics: figures such as accuracy.
        history: what was done to the network, oldest first.
        version: of Secateur that wrote the file.
    """

    builder: ModelSpec | None
    attributes: Attributes
    aliases: dict[str, str]
    transient: tuple[str, ...]
    hooked: tuple[str, ...]
    replaced: tuple[Replacement, ...]
    frozen: tuple[str, ...]
    input_size: tuple[int, ...] | None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None
    classes: tuple[str, ...] | None
    metrics: dict[str, Json]
    history: tuple[Json, ...]
    version: str

    @property
    def input(self) -> InputSpec | None:
        """Return size and normalisation together, if both are known."""
        if self.input_size is None or self.normalization is None:
            return None
        return InputSpec(self.input_size, *self.normalization)

    def to_json(self) -> str:
        """Convert to one line of JSON.

        Raises:
            UsageError: if metrics or history hold what JSON cannot, such as a tensor or an infinite number.
            CheckpointError: if it is too long to be read back.
        """
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        data["builder"] = self.builder.to_dict() if self.builder else None
        data["replaced"] = [item.to_dict() for item in self.replaced]
        try:
            text = json.dumps({"format": FORMAT, **data}, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"metrics and history must be plain finite values: {error}") from error
        _bounded(text)
        return text

    @classmethod
    def from_json(cls, text: str) -> Metadata:
        """Read what :meth:`to_json` wrote, from text of any origin.

        Raises:
            CheckpointError: if the text is of another form, or of a later version of the format.
        """
        data = _bounded(text)
        if not isinstance(data, dict) or not _is_integer(data.get("format")):
            raise CheckpointError("the description of the network is of an unknown form")
        written = data.pop("format")
        if not 1 <= written <= FORMAT:
            raise CheckpointError("it was written by a newer version of Secateur: upgrade to read it")
        if written <= 2:
            data["hooked"] = []
        if written <= 3:
            data["replaced"] = []
        if written == 1:
            data["attributes"] = _modern(data.get("attributes"))
        checks = {
            "builder": _optional(_builder),
            "attributes": _attributes,
            "aliases": _aliases,
            "transient": _texts,
            "hooked": _texts,
            "replaced": _replacements,
            "frozen": _texts,
            "input_size": _optional(_size),
            "normalization": _optional(_normalization),
            "classes": _optional(_texts),
            "metrics": _mapping,
            "history": _sequence,
            "version": _text,
        }
        if data.keys() != checks.keys():
            odd = ", ".join(sorted(data.keys() ^ checks.keys()))
            raise CheckpointError(f"the description of the network lacks, or has too much: {odd[:200]}")
        return cls(**{name: check(name, data[name]) for name, check in checks.items()})


def _bounded(text: str) -> Any:
    """Parse the text, if it is neither too long nor nested too deeply."""
    if len(text) > _MOST_CHARACTERS:
        raise CheckpointError(f"the description of the network is over {_MOST_CHARACTERS:,} characters long")
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the description of the network is not JSON ({str(error)[:100]})") from error
    level = [data]
    for _ in range(_DEEPEST):
        level = [item for node in level for item in _children(node)]
        if not level:
            return data
    raise CheckpointError(f"the description of the network is nested deeper than {_DEEPEST}")


def _children(node: object) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a finite number")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _require(name: str, good: bool) -> None:
    if not good:
        raise CheckpointError(f"its {name} are of an unknown form")


def _optional(check: Any) -> Any:
    return lambda name, value: None if value is None else check(name, value)


def _text(name: str, value: Any) -> str:
    _require(name, isinstance(value, str))
    return str(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    _require(name, isinstance(value, list) and all(isinstance(item, str) for item in value))
    return tuple(value)


def _size(name: str, value: Any) -> tuple[int, ...]:
    _require(name, isinstance(value, list) and all(_is_integer(item) and item > 0 for item in value))
    return tuple(value)


def _normalization(name: str, value: Any) -> tuple[tuple[float, ...], ...]:
    _require(name, isinstance(value, list) and len(value) == 2)
    for part in value:
        _require(name, isinstance(part, list) and all(type(item) in (int, float) for item in part))
    return tuple(tuple(float(item) for item in part) for part in value)


def _mapping(name: str, value: Any) -> dict[str, Json]:
    _require(name, isinstance(value, dict))
    return dict(value)


def _sequence(name: str, value: Any) -> tuple[Json, ...]:
    _require(name, isinstance(value, list))
    return tuple(value)


def _aliases(name: str, value: Any) -> dict[str, str]:
    _require(name, isinstance(value, dict) and all(isinstance(item, str) for item in value.values()))
    return dict(value)


def _attributes(name: str, value: Any) -> Attributes:
    _require(name, isinstance(value, dict))
    for of_module in value.values():
        _require(name, isinstance(of_module, dict))
        for item in of_module.values():
            match item:
                case {"tensor": str(), **rest} if not rest:
                    continue
            try:
                decoded(item)
            except ValueError:
                _require(name, False)
    return dict(value)


def _replacements(name: str, value: Any) -> tuple[Replacement, ...]:
    _require(name, isinstance(value, list))
    try:
        return tuple(Replacement.from_dict(item) for item in value)
    except UsageError as error:
        raise CheckpointError(str(error)) from error


def _modern(attributes: Any) -> Any:
    """Convert attributes of format 1, in which a list may also mean a tuple."""
    if not isinstance(attributes, dict) or not all(isinstance(item, dict) for item in attributes.values()):
        return attributes
    return {
        path: {name: {"sequence": item} if isinstance(item, list) else item for name, item in values.items()}
        for path, values in attributes.items()
    }


def _builder(_name: str, value: Any) -> ModelSpec:
    try:
        return ModelSpec.from_dict(value)
    except UsageError as error:
        raise CheckpointError(f"its network is not known here ({error}): pass model=") from error
