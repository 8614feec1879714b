"""Prune a tiny language model that was trained on a text, and train it further with itself as the teacher."""

from __future__ import annotations

import argparse
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import secateur as sec
from secateur.language import TextSettings, open_text
from secateur.recipes import Training
from secateur.training.evaluate import perplexity
from secateur.training.loop import FitOptions, fit
from secateur.training.losses import next_token_loss
from secateur.training.settings import FitSettings, OptimizerSettings

WORDS = ("the", "old", "dog", "sees", "a", "small", "bird", "and", "likes", "it", "then", "one", "cat")


def sentences(count: int) -> list[str]:
    """Write sentences in which each word is followed by one of three."""
    draw, at, found = random.Random(0), 0, []
    for _ in range(count):
        steps = [draw.choice((1, 2, 5)) for _ in range(12)]
        found.append(" ".join(WORDS[(at := (at + step) % len(WORDS))] for step in steps))
    return found


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token for each word."""
    words = models.WordLevel({word: at for at, word in enumerate(["<end>", *WORDS])}, unk_token="<end>")
    made = Tokenizer(words)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def main() -> None:
    """Train, cut to 60% of the parameters, show the perplexity before and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    text = open_text(sentences(300), tokenizer_of_words(), TextSettings(block=24), batch_size=16)
    training = Training(text.training_batches(), validation=text.validation_batches())
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1 + len(WORDS),
            hidden_size=32,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            use_cache=False,
        )
    )
    settings = FitSettings(epochs=epochs, optimizer=OptimizerSettings(name="adamw", learning_rate=5e-3))
    fit(model, text.training_batches(), settings, FitOptions(loss_fn=next_token_loss))
    finetune = {"epochs": epochs, "optimizer": {"learning_rate": 2e-3}}
    recipe = sec.Recipe.preset("language", finetune=finetune)
    inputs, _ = next(iter(text.test_batches()))
    result = sec.prune(model, inputs, sec.Budget(params=0.6), None, training, next_token_loss, recipe)
    rows = {"before": (model, result.cost_before), "after": (result.model, result.cost_after)}
    print(f"{'':10}{'perplexity':>12}{'parameters':>14}{'MACs':>14}")
    for name, (network, need) in rows.items():
        found = perplexity(network, text.test_batches())
        print(f"{name:10}{found.metric:>12.3f}{need.params:>14,}{need.macs:>14,}")


if __name__ == "__main__":
    main()
