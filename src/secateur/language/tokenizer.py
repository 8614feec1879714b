"""Open tokenizers of transformers, and turn documents into one sequence of tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import DataError, UsageError
from secateur.formats import first_line
from secateur.integrations.huggingface import offline
from secateur.integrations.libraries import library, quiet_logs, silent

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")

_TOGETHER = 256
"""Documents that are tokenized at once."""


def holds_tokenizer(folder: str | Path) -> bool:
    """Return whether a folder holds files of a tokenizer."""
    return any((Path(folder) / name).is_file() for name in _FILES)


def open_tokenizer(folder: str | Path) -> Any:
    """Open the tokenizer in a folder of transformers; nothing is downloaded, and no code of it is run.

    Args:
        folder: contains ``tokenizer.json`` or other files of a tokenizer.

    Raises:
        UsageError: there is none, it cannot be read, or transformers is not installed.
    """
    if not holds_tokenizer(folder):
        raise UsageError(
            f"{folder} holds no tokenizer ({', '.join(_FILES)}); copy its files there, or name its folder "
            "with data.text.tokenizer"
        )
    with offline(), silent():
        try:
            return library("transformers").AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # tokenizers fail in many ways
            raise UsageError(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from error


def tokenized(documents: Iterable[str], tokenizer: Any) -> Tensor:
    """Turn documents into one sequence of tokens, with the end-of-text token between two documents.

    Args:
        documents: texts.
        tokenizer: is called as tokenizers of transformers are: ``tokenizer(texts, add_special_tokens=False)``
            returns a mapping with ``input_ids``. ``eos_token_id`` is its end-of-text token.

    Returns:
        Token ids, int64, one dimension.

    Raises:
        DataError: there is no token.
        UsageError: there are several documents, and the tokenizer has no end-of-text token.
    """
    end = getattr(tokenizer, "eos_token_id", None)
    parts: list[Tensor] = []
    for ids in _token_ids(documents, tokenizer):
        if parts:
            if end is None:
                raise UsageError(
                    "there are several documents, and the tokenizer has no end-of-text token (eos_token_id) "
                    "to put between them; set tokenizer.eos_token"
                )
            parts.append(torch.tensor([end]))
        parts.append(torch.tensor(ids, dtype=torch.int64))
    if not sum(map(len, parts)):
        raise DataError("the text holds no token")
    return torch.cat(parts)


def _token_ids(documents: Iterable[str], tokenizer: Any) -> Iterable[list[int]]:
    texts = iter(documents)
    while True:
        some = [text for _, text in zip(range(_TOGETHER), texts, strict=False)]
        if not some:
            return
        with quiet_logs(logging.WARNING):  # a document is longer than the network reads at once
            yield from tokenizer(some, add_special_tokens=False)["input_ids"]
