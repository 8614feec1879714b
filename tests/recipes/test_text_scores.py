"""Scores of language models, one block of text after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.criteria import score
from secateur.graph import trace
from secateur.recipes.context import RecipeContext
from secateur.recipes.measuring import ScoringBatches
from secateur.training.losses import next_token_loss

BLOCKS, LENGTH, VOCABULARY = 4, 6, 11


class Small(nn.Module):
    """A language model without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(VOCABULARY, 5), nn.Linear(5, 7)
        self.head = nn.Linear(7, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(ids)).cumsum(1).tanh())


@pytest.fixture
def texts() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    return [(ids, ids) for ids in torch.randint(VOCABULARY, (3, BLOCKS, LENGTH))]


@pytest.mark.parametrize("criterion", ["taylor", "taylor-squared"])
def test_each_block_alone_gives_the_scores_of_batches(
    criterion: str, texts: list[tuple[Tensor, Tensor]]
) -> None:
    net = Small().double()
    graph = trace(net, texts[0][0])
    alone = ScoringBatches(texts, 2, RecipeContext.of(net), alone=True)
    found = score(net, graph, criterion, alone, next_token_loss)
    expected = score(net, graph, criterion, texts[:2], next_token_loss)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            torch.as_tensor(found[name]), torch.as_tensor(values), rtol=1e-5, atol=1e-9
        )


def test_passes_have_one_block_each(texts: list[tuple[Tensor, Tensor]]) -> None:
    def sizes(batches: Iterator[Any]) -> list[int]:
        return [len(ids) for ids, _ in batches]

    context = RecipeContext.of(Small())
    assert sizes(iter(ScoringBatches(texts, None, context, alone=True))) == [1] * 12
    assert sizes(iter(ScoringBatches(texts, None, context))) == [BLOCKS] * 3
