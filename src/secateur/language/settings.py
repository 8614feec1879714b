"""Define the settings of text: how it is divided into blocks of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from secateur.settings import Settings


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    return path


class TextSettings(Settings):
    """Choose how text is divided into blocks of tokens.

    Attributes:
        block: tokens in a block; the network reads so many at once.
        stride: tokens from the start of one block to that of the next, when a network is evaluated; ``block``
            if not given. With a smaller one, blocks overlap, and a token counts only in the first block that
            predicts it, where it has at least ``block - stride`` tokens before it.
        evaluation_tokens: the most tokens of the validation or test text that are read to evaluate a network,
            in whole blocks and at least one; all if it is 0.
        field: name of the text in JSON lines and in rows of data sets.
        tokenizer: folder of the tokenizer, if it is not beside the network.
    """

    block: int = Field(default=256, ge=2)
    stride: int | None = Field(default=None, ge=1)
    evaluation_tokens: int = Field(default=65_536, ge=0)
    field: str = Field(default="text", min_length=1)
    tokenizer: Annotated[Path, AfterValidator(_folder)] | None = None

    @model_validator(mode="after")
    def _strides_fit(self) -> TextSettings:
        if self.stride is not None and self.stride > self.block:
            raise ValueError(
                f"stride is {self.stride}, so tokens between blocks of {self.block} would not be read; give "
                f"at most {self.block}"
            )
        return self
