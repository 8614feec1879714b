"""Scores of attention, compared with finite differences of gates on the weights that read a channel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from secateur.graph import Group, Role
from secateur.graph.cutting.tensors import named_tensors


class Separate(nn.Module):
    """Three projections, heads by view, one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.query, self.key, self.value = (nn.Linear(6, 8) for _ in range(3))
        self.out = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        shape = (*y.shape[:2], -1, 2)
        parts = (side(y).view(shape).transpose(1, 2) for side in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return x + self.out(y)


class Packed(nn.Module):
    """One projection, heads by reshape, products written out."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.heads, -1)
        query, key, value = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (query @ key.transpose(-2, -1) * 0.5).softmax(-1) @ value
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class OneHead(nn.Module):
    """A single head: the widths of queries and keys are channels that no weight reads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 7)
        self.out = nn.Linear(7, 6)

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.query(x) @ self.key(x).transpose(1, 2) * 0.5).softmax(-1)
        return x + self.out(weight @ self.value(x))


class Bare(nn.Module):
    """No modules inside: parameters read the input, what becomes of it, and each other's products."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(6, 5)) for _ in range(3))
        self.out = nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        weight = ((x @ self.query) @ (x @ self.key).transpose(1, 2) * 0.5).softmax(-1)
        return torch.tanh((weight @ (x @ self.value)) @ self.out)


class Beside(nn.Module):
    """A parameter that reads the input, which is also handed on beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x) + x @ self.inner


class Within(nn.Module):
    """A parameter that reads something made of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x) @ self.inner


class Around(nn.Module):
    """A network around an attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.first, self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.attention(torch.tanh(self.embed(self.first(x))))).mean(1))


def slopes(model: nn.Module, group: Group, x: Tensor, target: Tensor) -> Tensor:
    """Per example and channel, the change of the loss with a gate on every weight that reads the channel."""
    step, tensors = 1e-6, named_tensors(model)
    result = torch.zeros(len(x), group.channels, dtype=x.dtype)

    def losses(channel: int, factor: float) -> Tensor:
        with torch.no_grad():
            for member in group.roles(Role.CONSUMER):
                index = torch.as_tensor(member.slots[channel])
                weight = tensors[member.tensor]
                before[member.tensor] = weight.clone()
                weight.index_copy_(member.dim, index, weight.index_select(member.dim, index) * factor)
            found = F.cross_entropy(model(x), target, reduction="none")
            for name, value in before.items():
                tensors[name].copy_(value)
        return found

    before: dict[str, Tensor] = {}
    for channel in range(group.channels):
        result[:, channel] = (losses(channel, 1 + step) - losses(channel, 1 - step)) / (2 * step)
    return result


@pytest.mark.parametrize(
    ("kind", "scored", "unscored"),
    [
        (Separate, {"first", "embed", "attention.query"}, set()),
        (Packed, {"first", "embed", "attention.qkv"}, set()),
        (OneHead, {"first", "embed", "attention.value"}, {"attention.query"}),
        (Bare, {"first", "embed", "attention#3"}, {"attention", "attention#2"}),
        (Beside, {"first"}, {"embed"}),
        (Within, {"first", "attention"}, {"embed"}),
    ],
)
def test_taylor_is_the_slope_of_gates_on_what_is_read(
    kind: type[nn.Module], scored: set[str], unscored: set[str]
) -> None:
    model = Around(kind()).double().eval()
    x, target = torch.randn(3, 5, 3, dtype=torch.float64), torch.tensor([0, 3, 1])
    graph = sec.trace(model, x)
    scores = sec.score(model, graph, "taylor", [(x, target)], F.cross_entropy)
    assert set(scores) == scored
    assert set(scores.unscored) == unscored
    assert {group.name for group in graph.prunable} == scored | unscored
    for name in scored:
        wanted = slopes(model, graph[name], x, target).abs().mean(0)
        torch.testing.assert_close(scores[name].double(), wanted, rtol=1e-4, atol=1e-8)
    assert all("cannot be observed" in reason for reason in scores.unscored.values())


def test_a_module_that_is_given_several_tensors_is_not_watched() -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 4))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.tanh(x @ self.one) + torch.tanh(y @ self.two)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.cross = nn.Linear(3, 6), nn.Linear(3, 6), Cross()
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            left = self.left(x)
            return self.head(self.cross(left, left * self.right(x)))

    model, x, target = Both().double().eval(), torch.randn(3, 3, dtype=torch.float64), torch.tensor([0, 3, 1])
    graph = sec.trace(model, x)
    scores = sec.score(model, graph, "taylor", [(x, target)], F.cross_entropy)
    assert set(scores) == {"cross"}
    assert set(scores.unscored) == {"left"}
    wanted = slopes(model, graph["cross"], x, target).abs().mean(0)
    torch.testing.assert_close(scores["cross"].double(), wanted, rtol=1e-4, atol=1e-8)
