"""Perplexity, the next-token loss, and distillation of sequences, against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import DataError, UsageError
from secateur.language import TextBlocks
from secateur.training.distillation import Teacher
from secateur.training.evaluate import Evaluation, evaluate, perplexity
from secateur.training.loop import FitOptions, fit
from secateur.training.losses import NOT_COUNTED, next_token_loss
from secateur.training.selection import is_preferred
from secateur.training.settings import FitSettings, OptimizerSettings


class Bigrams(nn.Module):
    """Predicts the next token from the last one alone."""

    def __init__(self, tokens: int = 6, seed: int = 0) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(tokens, tokens, generator=draw))

    def forward(self, input_ids: Tensor) -> dict[str, Any]:
        return {"logits": self.table[input_ids]}


def blocks(count: int = 7, length: int = 5, tokens: int = 6) -> Tensor:
    return torch.randint(tokens, (count, length), generator=torch.Generator().manual_seed(1))


def probabilities(model: Bigrams) -> Tensor:
    return model.table.detach().double().softmax(1)


def by_hand(model: Bigrams, ids: Tensor, targets: Tensor) -> list[list[float]]:
    """The loss of each predicted token, block by block."""
    table = probabilities(model)
    return [
        [-math.log(table[row[at - 1], row[at]]) for at in range(1, len(row)) if wanted[at] != NOT_COUNTED]
        for row, wanted in zip(ids, targets, strict=True)
    ]


@given(st.integers(1, 8), st.lists(st.integers(0, 34), max_size=20))
def test_perplexity_is_the_exponential_of_the_mean_loss_of_a_token(batch: int, left_out: list[int]) -> None:
    model, ids = Bigrams(), blocks()
    targets = ids.clone()
    targets.view(-1)[left_out] = NOT_COUNTED
    expected = by_hand(model, ids, targets)
    losses = [loss for row in expected for loss in row]
    found = evaluate(model, TextBlocks(ids, batch, targets), loss_fn=next_token_loss)
    assert found.examples == len(losses)
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.metric == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert (found.name, found.quality) == ("perplexity", -found.metric)


def test_the_standard_error_is_that_over_blocks() -> None:
    model, ids = Bigrams(), blocks(count=9)
    means = np.array([np.mean(row) for row in by_hand(model, ids, ids)])
    found = perplexity(model, TextBlocks(ids, 4))
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert found.loss_error == pytest.approx(error, rel=1e-4)
    assert found.error == pytest.approx(found.metric * error, rel=1e-4)
    assert perplexity(model, TextBlocks(ids[:1], 4)).error == 0


def test_the_loss_ignores_tokens_that_do_not_count_and_refuses_other_shapes() -> None:
    model, ids = Bigrams(), blocks(count=2)
    targets = ids.clone()
    targets[:, :3] = NOT_COUNTED
    expected = np.mean([loss for row in by_hand(model, ids, targets) for loss in row])
    assert next_token_loss(model(ids), targets).item() == pytest.approx(expected, rel=1e-5)
    assert next_token_loss(model(ids), {"labels": targets}).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UsageError, match=r"not \(2, 5, 6\) and \(2,\)"):
        next_token_loss(model(ids), ids[:, 0])
    with pytest.raises(DataError, match="no tokens to predict"):
        perplexity(model, TextBlocks(ids, 2, torch.full_like(ids, NOT_COUNTED)))
    with pytest.raises(DataError, match="no tokens to predict"):
        perplexity(model, [])


def test_an_infinite_loss_is_an_infinite_perplexity() -> None:
    model, ids = Bigrams(), blocks()
    model.table.data *= 1e4
    assert perplexity(model, TextBlocks(ids, 2)).metric == math.inf


def test_the_lowest_perplexity_is_kept() -> None:
    def of(loss: float) -> Evaluation:
        return Evaluation(math.exp(loss), loss, 100, "perplexity", 0.5)

    start, better, worse = of(3.0), of(2.99), of(3.01)
    assert is_preferred(better, start, start, better)
    assert not is_preferred(worse, start, start, start)
    assert not is_preferred(of(2.995), better, start, better)
    assert str(better) == "perplexity 19.89 ± 9.9 over 100 tokens"
    assert better.to_dict() == {
        "perplexity": better.metric,
        "loss": 2.99,
        "examples": 100,
        "error": better.error,
    }


def test_training_learns_the_text_and_keeps_the_epoch_of_lowest_perplexity() -> None:
    ids = (torch.arange(8)[None] + torch.arange(12)[:, None]) % 6  # each token is followed by the next number
    batches, model = TextBlocks(ids, 4, shuffle=True), Bigrams()
    settings = FitSettings(epochs=20, optimizer=OptimizerSettings(name="adamw", learning_rate=0.3))
    state = fit(
        model, batches, settings, FitOptions(validation=TextBlocks(ids[:3], 4), loss_fn=next_token_loss)
    )
    assert state.start is not None
    assert state.kept is not None
    assert state.start.metric > 3
    assert state.kept.metric < 1.05
    shown = [done.metric for done in state.history]
    assert state.kept.metric == min(shown)
    assert {done.metric_name for done in state.history} == {"perplexity"}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_tokens_are_distilled_by_the_divergence_of_their_probabilities(
    reverse: bool, temperature: float
) -> None:
    teacher, student, ids = Bigrams(), Bigrams(seed=1), blocks()
    taught = Teacher(teacher, 0.25, temperature, reverse=reverse, dim=-1)
    own = torch.tensor(3.0)
    found = float(taught.join(own, student(ids), {"input_ids": ids}).detach())
    p, q = (
        (model.table.detach().double() / temperature).softmax(1)[ids]
        for model in ((student, teacher) if reverse else (teacher, student))
    )
    divergence = float((p * (p / q).log()).sum(-1).mean())
    assert found == pytest.approx(0.75 * 3 + 0.25 * temperature**2 * divergence, rel=1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_student_becomes_like_its_teacher(reverse: bool) -> None:
    teacher, student, ids = Bigrams(), Bigrams(seed=1), blocks(count=40)
    settings = FitSettings(epochs=60, optimizer=OptimizerSettings(name="adamw", learning_rate=0.1))
    taught = Teacher(teacher, 1.0, 1.0, reverse=reverse, dim=-1)
    fit(
        student,
        TextBlocks(ids, 8, shuffle=True),
        settings,
        FitOptions(loss_fn=next_token_loss, teacher=taught),
    )
    assert float((probabilities(student) - probabilities(teacher)).abs().max()) < 0.02


def test_pixels_are_distilled_like_examples() -> None:
    teacher, images, scores = nn.Conv2d(2, 3, 1), torch.randn(4, 2, 5, 5), torch.randn(4, 3, 5, 5)
    taught = Teacher(teacher, 1.0, 2.0)
    rows = torch.nn.functional.kl_div(
        (scores.movedim(1, -1).reshape(-1, 3) / 2).log_softmax(1),
        (teacher(images).movedim(1, -1).reshape(-1, 3) / 2).softmax(1),
        reduction="batchmean",
    )
    torch.testing.assert_close(taught.join(torch.tensor(9.0), scores, images), 4 * rows)
