"""Compute a checksum of everything in a file, so that damage is found when it is read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.errors import CheckpointError

_KEY, _OPENING, _CLOSING = "secateur", '{"crc32": "', '", '
_DIGITS = 8


def with_checksum(text: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Join the description and a checksum of it and the tensors, as safetensors metadata.

    There is one entry, not two: the library does not write entries in a fixed order, and equal networks
    must give equal files.

    >>> with_checksum('{"format": 1}', {"a": torch.zeros(2)})
    {'secateur': '{"crc32": "55f2f246", "format": 1}'}
    """
    return {_KEY: f"{_OPENING}{_checksum(text, tensors)}{_CLOSING}{text[1:]}"}


def without_checksum(metadata: Mapping[str, str] | None) -> str:
    """Return the description of the network; the checksum is not yet compared.

    Raises:
        CheckpointError: if Secateur did not write the file.
    """
    if not metadata or not metadata.get(_KEY, "").startswith(_OPENING):
        raise CheckpointError("it holds tensors, but Secateur did not write it: give it as weights instead")
    return "{" + metadata[_KEY][len(_OPENING) + _DIGITS + len(_CLOSING) :]


def check_checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Check that nothing has changed since the file was written.

    Raises:
        CheckpointError: if the checksum differs.
    """
    text = without_checksum(metadata)
    if metadata != with_checksum(text, tensors):
        raise CheckpointError("its checksum is wrong: the file was damaged or changed after it was written")


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
