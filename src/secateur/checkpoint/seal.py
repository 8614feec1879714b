"""A checksum over everything in a file, so that damage is found when it is read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.errors import CheckpointError

_TEXT, _SUM = "secateur", "secateur.crc32"


def seal(text: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The description together with a checksum of it and the tensors, as safetensors metadata.

    >>> seal("{}", {"a": torch.zeros(2)})
    {'secateur': '{}', 'secateur.crc32': 'c2d4cc31'}
    """
    return {_TEXT: text, _SUM: _checksum(text, tensors)}


def unsealed(metadata: Mapping[str, str] | None) -> str:
    """The description of the network, not yet held against the checksum.

    Raises:
        CheckpointError: if Secateur did not write the file.
    """
    if not metadata or not {_TEXT, _SUM} <= metadata.keys():
        raise CheckpointError("it holds tensors, but Secateur did not write it: give it as weights instead")
    return metadata[_TEXT]


def check_seal(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Make sure that nothing has changed since the file was written.

    Raises:
        CheckpointError: if anything has.
    """
    if metadata[_SUM] != _checksum(metadata[_TEXT], tensors):
        raise CheckpointError("its checksum is wrong: the file was damaged or changed after it was written")


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
