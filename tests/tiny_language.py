"""A tiny language model with a tokenizer, and a text that it can learn, made without any download."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

WORDS = ("the", "old", "dog", "cat", "sees", "likes", "a", "small", "bird", "and", "sings", "runs")
SIZE = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BLOCK = 16


def sentences(count: int, seed: int = 0) -> str:
    """Sentences in which each word is followed by one of three, so that the next one can be predicted."""
    draw = random.Random(seed)
    found, at = [], 0
    for _ in range(count):
        line = []
        for _ in range(8):
            line.append(WORDS[at])
            at = (at + draw.choice((1, 2, 5))) % len(WORDS)
        found.append(" ".join(line))
    return "\n".join(found) + "\n"


def write_text(file: Path, count: int = 120, seed: int = 0) -> Path:
    """Write sentences to a file."""
    file.write_text(sentences(count, seed), encoding="utf-8")
    return file


def tokenizer() -> Any:
    """A tokenizer of words, with an end-of-text token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(("<end>", "<unknown>", *WORDS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", unk_token="<unknown>")


def write_model(folder: Path, **changes: Any) -> Path:
    """Write a language model with random weights and its tokenizer, as ``from_pretrained`` loads them."""
    import transformers

    words = tokenizer()
    config = transformers.LlamaConfig(
        **{**SIZE, **changes}, vocab_size=len(words), bos_token_id=None, eos_token_id=words.eos_token_id
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
