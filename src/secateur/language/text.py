"""Open text as training, validation and test blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from secateur.errors import DataError, UsageError
from secateur.language.blocks import TextBlocks, blocks_of, overlapping_blocks
from secateur.language.documents import read_documents, splits_of
from secateur.language.settings import TextSettings
from secateur.language.tokenizer import tokenized


@dataclass(frozen=True)
class TextData:
    """Tokens of a text, divided into training, validation and test tokens that do not overlap.

    Attributes:
        tokens: by split, ``train``, ``val`` and ``test``: int64, one dimension. Without a test text,
            ``test`` is ``val``.
        settings: block length and the like.
        batch_size: blocks in a batch.
        seed: of the order of the training blocks.
    """

    tokens: Mapping[str, Tensor] = field(repr=False)
    settings: TextSettings
    batch_size: int
    seed: int = 0

    def training_batches(self) -> TextBlocks:
        """Return shuffled batches of the training blocks; a last batch that is not full is left out."""
        ids = blocks_of(self.tokens["train"], self.settings.block)
        return TextBlocks(ids, self.batch_size, shuffle=True, seed=self.seed)

    def validation_batches(self) -> TextBlocks | None:
        """Return batches to choose networks on, in the order of the text; ``None`` if nothing is held out."""
        return self._evaluation(self.tokens["val"]) if "val" in self.tokens else None

    def test_batches(self) -> TextBlocks:
        """Return batches to report on, in the order of the text."""
        return self._evaluation(self.tokens["test"])

    @property
    def tested_on(self) -> str:
        """Return ``test``, or ``validation`` where there is no other text."""
        return "validation" if self.tokens["test"] is self.tokens.get("val") else "test"

    @property
    def protocol(self) -> dict[str, Any]:
        """Describe how perplexity is measured: block, stride, number of blocks and of predicted tokens."""
        blocks = self.test_batches()
        targets = blocks.ids if blocks.targets is None else blocks.targets
        stride = self.settings.stride or self.settings.block
        counted = int((targets[:, 1:] >= 0).sum())
        return {"block": self.settings.block, "stride": stride, "blocks": len(targets), "predicted": counted}

    def _evaluation(self, tokens: Tensor) -> TextBlocks:
        settings = self.settings
        chosen = (
            tokens[: max(settings.evaluation_tokens, settings.block)]
            if settings.evaluation_tokens
            else tokens
        )
        if settings.stride in (None, settings.block):
            return TextBlocks(blocks_of(chosen, settings.block), self.batch_size)
        assert settings.stride is not None
        ids, targets = overlapping_blocks(chosen, settings.block, settings.stride)
        return TextBlocks(ids, self.batch_size, targets)


def open_text(
    source: Any,
    tokenizer: Any,
    settings: TextSettings | None = None,
    *,
    batch_size: int = 4,
    held_out: float = 0.1,
    seed: int = 0,
    training: bool = True,
) -> TextData:
    """Open a text for a language model.

    Documents are joined, with the end-of-text token between two, and divided into blocks of one length. If
    the source is not divided into ``train``, ``val`` and ``test``, its last part is held out: no token is in
    two parts.

    Args:
        source: a text file, JSON lines, a folder of them, a data set of the library datasets, or any iterable
            of strings, as for :func:`read_documents`. A folder or a mapping may be divided into splits:
            ``train``, ``val`` (``valid``, ``validation``) and ``test``.
        tokenizer: with the calling convention of transformers.
        settings: block length and the like.
        batch_size: blocks in a batch.
        held_out: share of the tokens that are held out for validation, where there is no ``val``; 0 for none.
        seed: of the order of the training blocks.
        training: whether there must be a training text; without, an undivided source is the test text.

    Raises:
        DataError: a text is missing, cannot be read, or fills no block.
        UsageError: an argument is wrong.

    Example:
        >>> class Bytes:  # a tokenizer with one token for each byte
        ...     eos_token_id = 0
        ...     def __call__(self, texts, add_special_tokens=True):
        ...         return {"input_ids": [list(text.encode()) for text in texts]}
        >>> text = open_text(["abc" * 40, "def" * 40], Bytes(), TextSettings(block=8), held_out=0.25)
        >>> {name: len(tokens) for name, tokens in text.tokens.items()}
        {'train': 181, 'val': 60, 'test': 60}
        >>> inputs, targets = next(iter(text.training_batches()))
        >>> inputs["input_ids"].shape, targets.shape
        (torch.Size([4, 8]), torch.Size([4, 8]))
    """
    settings = settings or TextSettings()
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size} must be at least 1")
    if not 0 <= held_out < 1:
        raise UsageError(f"the held-out share {held_out} must be at least 0 and below 1")

    def read(part: Any) -> Tensor:
        return tokenized(read_documents(part, settings.field), tokenizer)

    parts = splits_of(source)
    if not training:
        part = parts.get("test", parts.get("val", parts.get("")))
        if part is None:
            raise DataError(f"{_named(source)} has neither test nor val")
        tokens = {"test": read(part)}
    else:
        tokens = _with_training(parts, read, held_out, _named(source))
    for name, found in tokens.items():
        if len(found) < settings.block:
            raise DataError(
                f"{_named(source)}: the {name} text has {len(found):,} tokens, and a block "
                f"{settings.block:,}; give more text, or a shorter block (data.text.block)"
            )
    return TextData(tokens, settings, batch_size, seed)


def _with_training(parts: Mapping[str, Any], read: Any, held_out: float, named: str) -> dict[str, Tensor]:
    """Read the splits; hold a part of the training text out where there is no validation text."""
    whole = parts.get("train", parts.get(""))
    if whole is None:
        raise DataError(f"{named} has no train; give a text to train on")
    train = read(whole)
    others = {name: read(part) for name, part in parts.items() if name in ("val", "test")}
    if "val" not in others and held_out:
        first = len(train) - round(held_out * len(train))
        train, others["val"] = train[:first], train[first:]
    if not others:
        raise DataError(
            f"{named}: there is no test text, and nothing is held out; give data.held_out above 0"
        )
    if "test" not in others:
        others["test"] = others["val"]
    return {"train": train, **{name: others[name] for name in ("val", "test") if name in others}}


def _named(source: Any) -> str:
    return str(source) if isinstance(source, str) or hasattr(source, "suffix") else "the text"
