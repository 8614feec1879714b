"""Perplexity of a language model after a cut and a short training.

The network is cut in some of the ways of `benchmarks/suite/language.py`, on the same draw of the calibration
text, and then trained on blocks of that text: with half of the loss for the next token and half for the
scores of the unpruned network, by AdamW. Tokens, learning rate and order of the blocks are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import benchmark
from benchmarks.suite import language
from benchmarks.tables import Table
from secateur.training.context import RunContext
from secateur.training.distillation import Teacher
from secateur.training.loop import FitOptions, fit
from secateur.training.losses import next_token_loss
from secateur.training.settings import DeviceSettings, FitSettings, OptimizerSettings


class Options(language.Options):
    """Options.

    Attributes:
        cuts: names of ways, each with the share of the body that is left.
        tokens: of the training.
        train_length: tokens in a block of the training.
        train_batch: blocks in a batch.
        rate: peak learning rate.
    """

    seeds: tuple[int, ...] = (0,)
    cuts: tuple[tuple[str, float], ...] = (
        ("free", 0.8),
        ("free", 0.7),
        ("uniform", 0.7),
        ("same share + least squares", 0.7),
        ("llm-pruner", 0.7),
    )
    tokens: int = 100_000
    train_length: int = 256
    train_batch: int = 4
    rate: float = 3e-4


class Row(benchmark.Row):
    """One way, share and draw.

    Attributes:
        way: how the network was cut.
        share: of the body that may remain; 1 for the network before.
        seed: of the calibration text, and of the order of the blocks.
        left: share of the body that remains.
        cut: perplexity on the test text after the cut.
        trained: perplexity on the test text after the training.
        tokens: of the training.
    """

    way: str
    share: float
    seed: int
    left: float
    cut: float
    trained: float
    tokens: int


CASES: Mapping[str, Mapping[str, Any]] = {"smollm2": {}}
QUICK: Mapping[str, Any] = {
    "blocks": 8,
    "test_blocks": 1,
    "cuts": (("same share + least squares", 0.8),),
    "tokens": 256,
    "train_length": 64,
    "train_batch": 2,
}


def run(options: Options) -> Iterator[Row]:
    """Cut and train, for each way and draw."""
    model, tokenizer = language.opened(options)
    valid = language.blocks_of(tokenizer, options.calibration, options.length)
    lines = language.blocks_of(tokenizer, options.calibration, options.train_length)
    test = language.blocks_of(tokenizer, options.test, options.test_length)[: options.test_blocks]
    if not options.measured(way=language.BEFORE):
        before = language.perplexity(model, test)
        yield Row(way=language.BEFORE, share=1, seed=0, left=1, cut=before, trained=before, tokens=0)
    for seed, subject in language.subjects(options, model, valid):
        for way, share in options.cuts:
            if options.measured(way=way, share=share, seed=seed):
                continue
            small = language.WAYS[way](subject, share)
            assert small is not None
            cut = language.perplexity(small, test)
            left = subject.left(small, share)
            tokens = train(model, small, lines, options, seed)
            trained = language.perplexity(small, test)
            yield Row(way=way, share=share, seed=seed, left=left, cut=cut, trained=trained, tokens=tokens)


def train(model: nn.Module, small: nn.Module, lines: Tensor, options: Options, seed: int) -> int:
    """Train a smaller network with the unpruned one as a teacher; return on how many tokens."""
    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(seed))
    updates = options.tokens // (options.train_length * options.train_batch)
    batches = [(part, part) for part in lines[order].split(options.train_batch)][:updates]
    settings = FitSettings(
        updates=len(batches),
        keep_best=False,
        clip_norm=1.0,
        optimizer=OptimizerSettings(name="adamw", learning_rate=options.rate),
    )
    teacher = Teacher(model, weight=0.5, temperature=1, dim=-1)
    context = RunContext(DeviceSettings())
    fit(small, batches, settings, FitOptions(loss_fn=next_token_loss, teacher=teacher, context=context))
    small.eval()
    return len(batches) * options.train_length * options.train_batch


def table(rows: Sequence[Row]) -> Table:
    """Show perplexity after the cut and after the training."""
    lines = [
        (
            row.way,
            "" if row.way == language.BEFORE else f"{row.share:.0%}",
            f"{row.cut:.1f}",
            "" if row.way == language.BEFORE else f"{row.trained:.1f}",
            f"{row.tokens:,}" if row.tokens else "",
        )
        for row in rows
    ]
    columns = ("way", "share of the body", "perplexity after the cut", "after training", "tokens")
    return Table(columns, lines)
