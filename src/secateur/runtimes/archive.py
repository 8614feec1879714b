"""Programs of ``torch.export`` (``.pt2``), read within limits.

``torch.export.load`` by itself unpickles what a file tells it to, evaluates text as Python, and lets
the program call anything below ``torch``. So a file is not handed to it: what a network needs is taken
out, looked at, and laid into a fresh archive, and that is loaded.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from secateur.errors import CheckpointError
from secateur.runtimes.base import first_line

CARD = "secateur.json"
"""Name of the extra file in the archive that holds the card."""

_ROOT = "network"
_MODEL, _SAMPLE, _EXTRA = "models/model.json", "data/sample_inputs/model.pt", f"extra/{CARD}"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_CONFIGS = {
    f"{_WEIGHTS}model_weights_config.json": (_WEIGHTS, re.compile(r"weight_\d+")),
    f"{_CONSTANTS}model_constants_config.json": (_CONSTANTS, re.compile(r"tensor_\d+")),
}
_PLAIN = ("archive_format", "archive_version", "byteorder", ".data/version")

_SWELLING, _SLACK = 2, 16 << 20  # times the size of the file, and bytes that may be compressed beyond

_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, (positive|nonnegative|integer)=True)*\)")
_FUNCTION = re.compile(r"\b(FloorDiv|CeilDiv|CleanDiv|ModularIndexing|PythonMod|Mod|Max|Min|Integer)\b")
_ARITHMETIC = re.compile(r"[\d\s+\-*/%(),]*|true|false|True|False|-?int_oo|oo|-oo")
_FOREIGN = frozenset({"as_operator", "as_custom_obj"})
_CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})
_SCALARS = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|eq|ne|lt|le|gt|ge)|math\.(trunc|floor|ceil)"
    r"|torch\.(sym_(max|min|int|float|not|ite))"
)
_CHOICES = frozenset(
    {"approximate", "assert_msg", "driver", "equation", "indexing", "interpolation", "mode", "norm", "ord"}
    | {"p", "pad_mode", "padding", "padding_side", "reduce", "rounding_mode", "side", "UPLO"}
)
"""Names of arguments whose text chooses between ways of computing."""

_REGIONS = ("torch.ops.higher_order.wrap_with_set_grad_enabled", "torch.ops.higher_order.wrap_with_autocast")


def load_program(path: Path) -> tuple[torch.export.ExportedProgram, str | None]:
    """The program in a file, and the text of its card.

    Args:
        path: the file.

    Raises:
        CheckpointError: it is no such file, is damaged, or asks for more than a network needs.
    """
    try:
        admitted, card = _admitted(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(admitted), card
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be opened: {error}") from error
    except Exception as error:  # foreign bytes fail in many ways
        raise CheckpointError(f"{path} cannot be opened as a program: {first_line(error)}") from error


def _admitted(path: Path) -> tuple[io.BytesIO, str | None]:
    """A fresh archive with what is admitted from a file, and its card."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"it is no .pt2 file, or is incomplete ({first_line(error)})") from error
    card = records.pop(_EXTRA, None)
    records[_MODEL] = json.dumps(_harmless(_parsed(records, _MODEL))).encode()
    fresh = io.BytesIO()
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as archive:
        while records:  # one after the other, so that no network lies in memory twice
            name, data = records.popitem()
            archive.writestr(f"{_ROOT}/{name}", data)
        archive.writestr(f"{_ROOT}/{_SAMPLE}", b"")  # the samples are a pickle, and not needed
    fresh.seek(0)
    return fresh, card.decode("utf-8", "replace") if card is not None else None


def _records(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """All that a network needs, by name below the root.

    Raises:
        CheckpointError: something is missing, or there is more than a network of this size needs.
    """
    by_name = {name.partition("/")[2]: name for name in archive.namelist()}
    if _MODEL not in by_name:
        raise CheckpointError("it holds no program of a known format; PyTorch 2.9 or newer writes one")
    wanted = [name for name in (*_PLAIN, _MODEL, _EXTRA, *_CONFIGS) if name in by_name]
    read = _Reader(archive)
    records = {name: read(by_name[name]) for name in wanted}
    for config, (folder, pattern) in _CONFIGS.items():
        for tensor in _parsed(records, config)["config"].values():
            name = str(tensor["path_name"])
            if tensor["use_pickle"] or not pattern.fullmatch(name):
                raise CheckpointError("it holds pickled objects, which may hold code")
            if folder + name in by_name:
                records[folder + name] = read(by_name[folder + name])
    return records


class _Reader:
    """Reads from an archive, no more in all than a file of its size holds.

    PyTorch does not compress, so what is much larger within than on the disk was not written by it.

    Args:
        archive: the open archive.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        assert archive.fp is not None  # it was opened
        archive.fp.seek(0, io.SEEK_END)
        self._left = _SWELLING * archive.fp.tell() + _SLACK

    def __call__(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            CheckpointError: it is larger than what is left.
        """
        self._left -= self._archive.getinfo(name).file_size
        if self._left < 0:
            raise CheckpointError("it unfolds to many times its own size, as no program of PyTorch does")
        return self._archive.read(name)


def _parsed(records: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in records:
        raise CheckpointError(f"it lacks {name}")
    data = json.loads(records[name])
    if not isinstance(data, dict):
        raise CheckpointError(f"its {name} is of an unknown form")
    return data


def _harmless(program: dict[str, Any]) -> dict[str, Any]:
    """The description of a program without what is only for debugging, after a look at all that is left.

    Raises:
        CheckpointError: it holds text that would be run, or calls what does more than compute.
    """
    program["guards_code"] = []
    for entry in objects(program):
        if isinstance(entry.get("metadata"), dict):
            entry["metadata"] = {}
        if "expr_str" in entry and not _is_arithmetic(str(entry["expr_str"])):
            raise CheckpointError(f"it holds a size that is no formula: {str(entry['expr_str'])[:80]}")
        if not _FOREIGN.isdisjoint(entry):
            raise CheckpointError("it hands functions or objects to its operators")
        is_call = "target" in entry and ("inputs" in entry or "outputs" in entry)
        if is_call and not _computes(str(entry["target"])):
            raise CheckpointError(f"it calls {str(entry['target'])[:80]}, which does more than compute")
        for name in ("in_spec", "out_spec"):
            if isinstance(entry.get(name), str):
                _check_containers(json.loads(entry[name]))
    return program


def objects(data: Any) -> Iterator[dict[str, Any]]:
    """All objects within a piece of JSON, however deep.

    Args:
        data: as ``json.loads`` returns it.

    >>> [sorted(item) for item in objects([{"a": {"b": 1}}])]
    [['a'], ['b']]
    """
    waiting = [data]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _is_arithmetic(text: str) -> bool:
    return _ARITHMETIC.fullmatch(_FUNCTION.sub("", _SYMBOL.sub("1", text))) is not None


def _check_containers(spec: Any) -> None:
    for node in objects(spec):
        if "type" in node and node["type"] not in _CONTAINERS:
            raise CheckpointError(f"it takes or returns a {str(node['type'])[:80]}")


def _computes(target: str) -> bool:
    """Whether a call can do nothing but compute.

    Operators of ATen that take text may open files: all but those to whom it is a choice between ways.
    """
    if _SCALARS.fullmatch(target) or target in _REGIONS:
        return True
    match = re.fullmatch(r"torch\.ops\.(aten|prims|torchvision)\.(\w+)\.(\w+)", target)
    if match is None:
        return False
    namespace, name, overload = match.groups()
    try:
        operator = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    except AttributeError:
        return False
    texts = {argument.name for argument in operator._schema.arguments if "str" in str(argument.type)}
    return texts <= _CHOICES
