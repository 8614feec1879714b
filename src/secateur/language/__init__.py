"""Read text for language models: documents, tokens, and blocks of tokens to train and evaluate on.

transformers is imported only to open a tokenizer by the name of its folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur._lazy import lazy_names

if TYPE_CHECKING:
    from secateur.language.blocks import TextBlocks
    from secateur.language.documents import read_documents
    from secateur.language.settings import TextSettings
    from secateur.language.text import TextData, open_text
    from secateur.language.tokenizer import holds_tokenizer, open_tokenizer

__all__ = [
    "TextBlocks",
    "TextData",
    "TextSettings",
    "holds_tokenizer",
    "open_text",
    "open_tokenizer",
    "read_documents",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "blocks": "TextBlocks",
        "documents": "read_documents",
        "settings": "TextSettings",
        "text": "TextData open_text",
        "tokenizer": "holds_tokenizer open_tokenizer",
    },
)
