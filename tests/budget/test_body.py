"""Shares of the parameters of a language model without its embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.budget import params_of_body
from secateur.errors import UsageError
from secateur.graph import trace


class Language(nn.Module):
    """Tables for tokens and places, a hidden layer, and scores of the vocabulary, tied or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 8), nn.Embedding(6, 8)
        self.up, self.down = nn.Linear(8, 20), nn.Linear(20, 8)
        self.head = nn.Linear(8, 50, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(x + self.down(self.up(x).relu()))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("share", [0.5, 0.29, 0.999])
def test_embeddings_stay_whole_and_are_counted_once(tied: bool, share: float) -> None:
    graph = trace(Language(tied), torch.zeros(1, 6, dtype=torch.int64))
    embeddings = 50 * 8 + 6 * 8 + (0 if tied else 50 * 8)
    body = 8 * 20 + 20 + 20 * 8 + 8
    assert graph.cost().params == embeddings + body
    assert params_of_body(graph, share) == embeddings + int(share * body + 1e-9)


def test_what_is_no_share_is_refused() -> None:
    graph = trace(Language(tied=True), torch.zeros(1, 6, dtype=torch.int64))
    for wrong in (1000, 1.0, 0.0):
        with pytest.raises(UsageError, match="share"):
            params_of_body(graph, wrong)
    with pytest.raises(UsageError, match="looks up no embeddings"):
        params_of_body(trace(nn.Linear(3, 4), torch.zeros(1, 3)), 0.5)
