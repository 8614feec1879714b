"""Width curves and reconstruction of networks that score every token of a text."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.criteria import score
from secateur.graph import ChannelGraph, trace
from secateur.plan import PruningPlan
from secateur.recovery import CurveOptions, reconstruct, width_curves
from secateur.recovery.captured_forward import capture_forward
from secateur.recovery.curves import ENOUGH_TOKENS, masked_damage
from secateur.surgery import apply_plan

VOCABULARY, WIDTH, HIDDEN, LAYERS = 29, 8, 12, 3


class Layer(nn.Module):
    """Mix earlier tokens, then a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.out = nn.Linear(WIDTH, 6, bias=False), nn.Linear(6, WIDTH, bias=False)
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.one, self.two = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value = self.value(self.one(x))
        x = x + self.out(value.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])
        y = self.two(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Language(nn.Module):
    """A small language model with tied embeddings."""

    def __init__(self, heads: int = VOCABULARY) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, heads, bias=False)
        if heads == VOCABULARY:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(ids)))


@pytest.fixture(scope="module")
def case() -> tuple[nn.Module, Tensor, ChannelGraph]:
    torch.manual_seed(0)
    net = Language().double().eval()
    ids = torch.randint(VOCABULARY, (24, 16))
    return net, ids, trace(net, ids[:2])


def test_damage_is_the_divergence_over_the_vocabulary_of_a_network_really_cut(
    case: tuple[nn.Module, Tensor, ChannelGraph],
) -> None:
    net, ids, graph = case
    scores = score(net, graph, "wanda", [ids])
    curves = width_curves(net, graph, scores, [ids], CurveOptions(shares=(0.5, 0.25), held_back=0.25))
    assert curves.divergence == "kl"
    fitting, held = ids[:18], ids[18:]
    for name in (f"layers.{layer}.gate" for layer in range(LAYERS)):
        curve = curves[name]
        for width, damage in zip(curve.widths[:-1], curve.damages[:-1], strict=True):
            plan = PruningPlan(graph, {name: curve.kept(width)})
            small = apply_plan(net, plan)
            reconstruct(net, small, plan, [fitting], refit_downstream=False, correct_shortcut_error=False)
            with torch.no_grad():
                p, q = (F.log_softmax(each(held), -1) for each in (net, small))
            assert damage == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_a_group_has_the_same_curve_alone_and_among_others(
    case: tuple[nn.Module, Tensor, ChannelGraph],
) -> None:
    net, ids, graph = case
    scores = score(net, graph, "wanda", [ids])
    options = CurveOptions(shares=(0.5,))
    together = width_curves(net, graph, scores, [ids], options)
    assert "embed" in scores  # the stream, which every layer reads, is measured too
    for name in scores:
        alone = width_curves(net, graph, {name: scores[name]}, [ids], options)
        assert alone[name].damages == pytest.approx(together[name].damages, rel=1e-9)


def test_as_many_texts_as_hold_enough_tokens_are_measured(
    case: tuple[nn.Module, Tensor, ChannelGraph],
) -> None:
    net, _, graph = case
    ids = torch.randint(VOCABULARY, (160, 16), generator=torch.Generator().manual_seed(0))
    scores = {"layers.0.gate": torch.arange(HIDDEN)}
    enough = ENOUGH_TOKENS // 16
    found = width_curves(net, graph, scores, [ids])
    for held, same in ((enough, True), (enough + 16, False)):
        options = CurveOptions(held_back=held / len(ids))
        assert (found == width_curves(net, graph, scores, [ids], options)) is same


def test_features_of_tokens_are_not_scores() -> None:
    torch.manual_seed(0)
    net, ids = Language(heads=5).eval(), torch.randint(VOCABULARY, (8, 16))
    graph = trace(net, ids[:2])
    assert capture_forward(net, graph, [ids]).scored_tokens == 0
    assert width_curves(net, graph, {"layers.0.gate": [1.0] * HIDDEN}, [ids]).divergence == "mse"


def test_weights_in_half_precision_are_fitted_like_those_in_single() -> None:
    torch.manual_seed(0)
    net, ids = Language().eval(), torch.randint(VOCABULARY, (64, 16))
    half = copy.deepcopy(net).bfloat16()
    errors, damages = {}, {}
    for name, model in (("single", net), ("half", half)):
        graph = trace(model, ids[:2])
        order = list(range(HIDDEN))
        options = CurveOptions(shares=(0.5,))
        damages[name] = width_curves(model, graph, {"layers.1.gate": order}, [ids], options)["layers.1.gate"]
        plan = PruningPlan(graph, {"layers.1.gate": damages[name].kept(HIDDEN // 2)})
        small = apply_plan(model, plan)
        errors[name] = reconstruct(model, small, plan, [ids])[0].error
        assert {item.dtype for item in small.parameters()} == {next(model.parameters()).dtype}
    assert errors["half"] == pytest.approx(errors["single"], rel=0.05)
    assert damages["half"].damages[0] == pytest.approx(damages["single"].damages[0], rel=0.1)


class Positioned(Language):
    """Positions are repeated for every text of a batch, which a capture of a single text leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(64.0)[None, :, None] / 64)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.places[:, : ids.shape[1]].expand(len(ids), -1, WIDTH)
        return self.head(self.layers(self.embed(ids) + places))


def test_the_number_of_traced_texts_does_not_matter() -> None:
    torch.manual_seed(0)
    net, ids = Positioned().double().eval(), torch.randint(VOCABULARY, (24, 16))
    fitted = []
    for traced in (ids[:1, :8], ids[:2]):
        graph = trace(net, traced)
        plan = PruningPlan(graph, {f"layers.{layer}.gate": range(7) for layer in range(LAYERS)})
        small = apply_plan(net, plan)
        reconstruct(net, small, plan, [ids])
        curves = width_curves(net, graph, score(net, graph, "magnitude", None), [ids])
        fitted.append((small.state_dict(), curves["layers.1.gate"].damages))
    assert torch.tensor(fitted[0][1]).allclose(torch.tensor(fitted[1][1]))
    assert all(torch.allclose(value, fitted[1][0][name]) for name, value in fitted[0][0].items())


def test_damage_of_a_plan_is_measured_on_as_many_tokens_as_that_of_a_width(
    case: tuple[nn.Module, Tensor, ChannelGraph],
) -> None:
    net, ids, graph = case
    plan = PruningPlan(graph, {group.name: range(group.channels // 2) for group in graph.prunable})
    length = ids.shape[1]
    text = torch.randint(VOCABULARY, (2 * ENOUGH_TOKENS // length, length))
    first = text[: ENOUGH_TOKENS // length]
    small = apply_plan(net, plan)
    with torch.no_grad():
        whole, found = (F.log_softmax(model(first), -1) for model in (net, small))
    expected = float((whole.exp() * (whole - found)).sum(-1).mean())
    assert masked_damage(net, graph, plan, [text]) == pytest.approx(expected, rel=1e-9)
