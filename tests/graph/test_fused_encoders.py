"""PyTorch's own transformer layers, whose fused kernels and nested tensors no check in float64 runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur as sec
from secateur.plan import PruningPlan

X = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0))
PADDED = torch.zeros(2, 7, dtype=torch.bool).index_put(
    (torch.tensor(0), torch.tensor([5, 6])), torch.tensor(True)
)


class Encoding(nn.Module):
    """An encoder of two layers without dropout, and one position of what it returns."""

    def __init__(self, norm_first: bool = False, nested: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, batch_first=True, dropout=0.0, norm_first=norm_first, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested and not norm_first)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        out: Tensor = self.head(self.encoder(self.embed(x), src_key_padding_mask=padded).mean(1))
        return out


class Translating(nn.Module):
    """A decoder, batch in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(32, 4, 64, dropout=0.0), 2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.head(self.decoder(x, y))
        return out


def without(model: nn.Module, modules: Sequence[str]) -> nn.Module:
    """A copy in which some modules return zeros."""
    lesser = copy.deepcopy(model)
    for path in modules:
        lesser.get_submodule(path).register_forward_hook(
            lambda _, __, out: (
                (torch.zeros_like(out[0]), None) if isinstance(out, tuple) else torch.zeros_like(out)
            )
        )
    return lesser


def compare(small: nn.Module, lesser: nn.Module, *calls: tuple[Tensor, ...]) -> None:
    """Compare in both modes, with and without gradients: without, fused kernels run."""
    for training in (False, True):
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                for call in calls:
                    found, expected = small.train(training)(*call), lesser.train(training)(*call)
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "removed",
    [
        {"encoder.layers.0.self_attn": "encoder.layers.0.self_attn"},
        {"encoder.layers.1.linear1": "encoder.layers.1.linear2"},
        {
            "encoder.layers.0.self_attn": "encoder.layers.0.self_attn",
            "encoder.layers.0.linear1": "encoder.layers.0.linear2",
        },
    ],
    ids=["attention", "MLP", "both"],
)
@pytest.mark.parametrize("norm_first", [False, True])
def test_branches_of_an_encoder_can_be_removed(
    removed: dict[str, str], norm_first: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Encoding(norm_first).eval()
    graph = sec.trace(model, X)
    assert [branch.reason for branch in graph.branches] == [None] * 4
    plan = PruningPlan(graph, {}, list(removed))
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, X)
    compare(small, without(model, list(removed.values())), (X,))
    small.eval()(X, PADDED)  # was given no mask when it was traced
    sec.save(tmp_path / "small.secateur", small)
    loaded = sec.load(tmp_path / "small.secateur", Encoding(norm_first)).eval()
    assert torch.equal(loaded(X), small.eval()(X))


def test_branches_of_a_decoder_can_be_removed() -> None:
    torch.manual_seed(0)
    model = Translating().eval()
    inputs = (torch.randn(7, 2, 32), torch.randn(6, 2, 32))
    graph = sec.trace(model, inputs)
    removed = {
        "decoder.layers.0.self_attn": "decoder.layers.0.self_attn",
        "decoder.layers.1.multihead_attn": "decoder.layers.1.multihead_attn",
        "decoder.layers.1.linear1": "decoder.layers.1.linear2",
    }
    plan = PruningPlan(graph, {}, list(removed))
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, inputs)
    compare(small, without(model, list(removed.values())), inputs)


def test_heads_go_in_twos_where_padding_is_left_out() -> None:
    torch.manual_seed(0)
    model = Encoding().eval()
    assert sec.trace(model, X)["embed"].channels == 4
    graph = sec.trace(model, (X, PADDED))
    assert graph["embed"].channels == 2
    assert all("enable_nested_tensor=False" in str(branch.reason) for branch in graph.branches)
    keep = {"embed": [1], "encoder.layers.0.linear1": range(30)}
    plan = PruningPlan(graph, keep)
    small = sec.apply_plan(model, plan)
    assert small.encoder.layers[0].self_attn.num_heads == 2
    assert sec.verify(model, small, plan, (X, PADDED))
    # The fused kernel, which takes no odd number of heads from nested tensors, gives the same numbers.
    with torch.no_grad():
        fused = small(X, PADDED)
    small.encoder.use_nested_tensor = False
    with torch.no_grad():
        plain = small.encoder(small.embed(X), src_key_padding_mask=PADDED)
        plain = small.head(plain.masked_fill(PADDED[..., None], 0).mean(1))
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_heads_go_one_by_one_where_nothing_is_nested() -> None:
    torch.manual_seed(0)
    model = Encoding(nested=False).eval()
    graph = sec.trace(model, (X, PADDED))
    assert graph["embed"].channels == 4
    assert [branch.reason for branch in graph.branches] == [None] * 4
    small = sec.apply_plan(model, PruningPlan(graph, {"embed": [0, 1, 3]}))
    with torch.no_grad():
        assert small(X, PADDED).shape == (2, 5)
