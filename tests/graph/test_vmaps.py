"""Networks that call ``torch.vmap`` are cut like those that compute on whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level

import secateur as sec
from tests.graph.operator_networks import TOKENS, Net, lines, parameter
from tests.graph.test_operators import double
from tests.graph.test_traps import in_rounds


def layers(s: nn.Module, x: Tensor) -> Tensor:
    return torch.vmap(lambda t: s.b(torch.tanh(s.a(t))))(x)


def near(y: Tensor) -> Tensor:
    """Sum neighbours, by a mask that is made for single pairs of places, as those of Hugging Face are."""
    places = torch.arange(y.shape[-2])
    mask = torch.vmap(lambda i: torch.vmap(lambda j: ((i - j) < 2) & (j - i < 2))(places))(places)
    return mask.to(y.dtype) @ y


MADE: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "functions": (lines(torch.vmap(lambda t: t.sin().cumsum(0).relu_())), {"a": 8}),
    "layers": (
        lambda: Net(layers, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        {"a": 8},
    ),
    "a stack of weights": (
        lambda: Net(
            lambda s, x: s.b(torch.vmap(lambda w: torch.tanh(x @ w))(s.one).sum(0)),
            one=parameter(2, 6, 8),
            b=nn.Linear(8, 3),
        ),
        {"one": 8},
    ),
    "pieces": (lines(torch.vmap(lambda t: torch.cat(t.chunk(2, 0)[::-1], 0).exp())), {"a": 8}),
    "one call in another": (lines(near), {"a": 8}),
    "one result for all": (lines(lambda y: y + torch.vmap(lambda _: y[0].sin())(y)), {"a": 8}),
    "one tensor for all": (
        lines(lambda y: torch.vmap(lambda t, u: t * u, in_dims=(0, None))(y, y[0].exp())),
        {"a": 8},
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_channels_go_on_through(name: str) -> None:
    make, groups = MADE[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = in_rounds(double(make()), torch.randn(TOKENS, dtype=torch.float64), groups)
    if name == "layers":
        assert small.a.out_features == small.b.in_features == len(small.a.weight) < 8


MEETING: dict[str, Callable[[Tensor], Tensor]] = {
    "a soft-max": torch.vmap(partial(torch.softmax, dim=-1)),
    "products": lambda y: torch.vmap(lambda p, q: (p @ q.mT) @ p)(y, y.sin()),
}


@pytest.mark.parametrize("name", MEETING)
def test_what_channels_give_together_is_of_the_kept_ones(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = double(lines(MEETING[name])()), torch.randn(TOKENS, dtype=torch.float64)
    kept = [0, 1, 3, 6, 7]
    small = sec.apply_plan(model, sec.PruningPlan(sec.trace(model, x), {"a": kept}))
    y = MEETING[name](torch.tanh(F.linear(x, model.a.weight[kept], model.a.bias[kept])))
    torch.testing.assert_close(small(x), F.linear(y, model.b.weight[:, kept], model.b.bias))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda t: t + 0.1 * torch.randn_like(t),
    "a number": lambda t: t * torch.rand(()),
    "a draw of two": lambda t: t * torch.bernoulli(torch.full((), 0.3)),
    "a number for the channels": lambda t: t + torch.randn(1),
    "dropout": lambda t: F.dropout(t, 0.3),
    "dropout in place": lambda t: F.dropout(2 * t, 0.3, inplace=True),
    "alpha dropout": lambda t: F.alpha_dropout(t, 0.3, training=True),
}


@pytest.mark.parametrize(
    ("name", "randomness"),
    [(name, kind) for kind in ("different", "same") for name in DRAWS if (name, kind) != ("noise", "same")],
)
def test_each_example_may_draw_numbers(name: str, randomness: str) -> None:
    model, x = lines(torch.vmap(DRAWS[name], randomness=randomness))(), torch.randn(TOKENS)
    graph = sec.trace(model, x)
    assert graph["a"].prunable, graph["a"].reason
    plan = sec.plan_from(graph, {"a": [1, 6]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, x).ok
    with torch.no_grad():
        small.b.weight[0, 1] += 1
    assert not sec.verify(model, small, plan, x).ok


def test_pytorch_is_not_left_inside_a_call() -> None:
    model = Net(layers, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    sec.trace(model.eval(), torch.randn(TOKENS))
    assert maybe_current_level() is None
    torch.randn(3)  # refused inside of torch.vmap


class Running(nn.Module):
    """Running sums, with a call of ``torch.vmap`` over the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.vmap(partial(torch.cumsum, dim=0), in_dims=1, out_dims=1)(self.a(x))
        return self.b(y)


class Remedied(Running):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.vmap(partial(torch.cumsum, dim=0))(self.a(x).movedim(1, 0))
        return self.b(y.movedim(0, 1))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # read by torch.export itself
def test_a_form_that_export_does_not_capture_is_refused_with_a_remedy() -> None:
    x = torch.randn(TOKENS)
    with pytest.raises(sec.TraceError, match=r"torch\.vmap\. .* to the front \(x\.movedim\(1, 0\)\)"):
        sec.trace(Running().eval(), x)
    assert maybe_current_level() is None
    assert [group.name for group in sec.trace(Remedied().eval(), x).prunable] == ["a"]
