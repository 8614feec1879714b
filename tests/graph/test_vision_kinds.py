"""Kinds of code that detectors, segmentation and diffusion networks have, each in a small class.

Every network is cut twice and compared with the original with zeroed columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sec
from tests.graph.test_traps import in_rounds

IMAGE = (2, 3, 8, 8)


class Ends(nn.Module):
    """A convolution ``a`` to some width, something between, and a convolution ``o`` of what it gives."""

    def __init__(self, made: int, read: int, **parts: Any) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, made, 3, padding=1), nn.Conv2d(read, 3, 1)
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.between(torch.tanh(self.a(x))))

    def between(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def blur_kernel() -> Tensor:
    row = torch.tensor([1.0, 2.0, 1.0])
    return (row[:, None] * row / 16)[None, None]


def haar_kernels() -> Tensor:
    low, high = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    return torch.stack([one[:, None] * other / 2 for one in (low, high) for other in (low, high)])[:, None]


class InterpolatedPositions(Ends):
    """A table of positions is laid out as an image and resized; one reshape splits it and keeps its width."""

    def __init__(self) -> None:
        super().__init__(8, 8, positions=nn.Parameter(torch.randn(1, 16, 8)))

    def between(self, x: Tensor) -> Tensor:
        image = self.positions.transpose(1, 2).view(1, -1, 4, 4)
        return x + F.interpolate(image, size=x.shape[-2:], mode="bicubic")


class BlurFromShape(Ends):
    """A fixed kernel for each channel, kept as a buffer; the number of groups is a size."""

    def __init__(self) -> None:
        super().__init__(8, 8, kernel=blur_kernel().repeat(8, 1, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class BlurExpanded(Ends):
    """One kernel that is repeated for all channels."""

    def __init__(self) -> None:
        super().__init__(8, 8, kernel=blur_kernel())

    def between(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), groups=x.shape[1])


class Wavelets(Ends):
    """Haar wavelets there and back: grouped convolutions with kernels in a buffer."""

    def __init__(self) -> None:
        super().__init__(6, 6, mix=nn.Conv2d(24, 24, 1), kernel=haar_kernels().repeat(6, 1, 1, 1))

    def between(self, x: Tensor) -> Tensor:
        bands = F.conv2d(x, self.kernel, stride=2, groups=x.shape[1])
        return F.conv_transpose2d(self.mix(bands), self.kernel, stride=2, groups=x.shape[1])


class Upsampled(Ends):
    """A transposed convolution of each channel by itself."""

    def __init__(self) -> None:
        super().__init__(8, 8, up=nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8))

    def between(self, x: Tensor) -> Tensor:
        return self.up(x)


class SlicedByNumbers(Ends):
    """A border that is a number in the code: what lies behind it may go."""

    def __init__(self) -> None:
        super().__init__(8, 5, one=nn.Conv2d(3, 5, 1), two=nn.Conv2d(5, 5, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.one(x[:, :3]) + self.two(x[:, 3:])


class SlicedFromTheEnd(Ends):
    """A border that is counted from the end."""

    def __init__(self) -> None:
        super().__init__(8, 5, one=nn.Conv2d(5, 5, 1), two=nn.Conv2d(3, 5, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.one(x[:, :-3]) + self.two(x[:, -3:])


class SplitByAttributes(Ends):
    """A gated residual block, split at attributes."""

    def __init__(self) -> None:
        super().__init__(6, 6, gates=nn.Conv2d(6, 12, 1), back=nn.Conv2d(6, 6, 1), sizes=(6, 6))

    def between(self, x: Tensor) -> Tensor:
        value, gate = torch.split(self.gates(x), self.sizes, 1)
        return x + self.back(value.tanh() * gate.sigmoid())


class UnequalChunks(Ends):
    """Chunks of which the last is shorter, each convolved and added to the next."""

    def __init__(self) -> None:
        super().__init__(8, 8, layers=nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1, groups=3) for _ in "ab"))

    def between(self, x: Tensor) -> Tensor:
        one, two, rest = x.chunk(3, 1)
        return torch.cat([self.layers[0](one), self.layers[1](two), rest], 1)


class Shuffled(Ends):
    """The channel shuffle of ShuffleNet, by hand."""

    def __init__(self) -> None:
        super().__init__(8, 8, point=nn.Conv2d(4, 4, 1))

    def between(self, x: Tensor) -> Tensor:
        kept, left = x.chunk(2, 1)
        x = torch.cat([kept, self.point(left)], 1)
        count, channels, height, width = x.shape
        x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(count, -1, height, width)


class CheckedWidth(Ends):
    """An assertion compares the number of channels with an attribute that is used for nothing else."""

    def __init__(self) -> None:
        super().__init__(8, 8, channels=8)

    def between(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels, "a wrong number of channels"
        return x.relu()


class WidthOfTheClass(Ends):
    """A width that is an attribute of the class."""

    width = 8

    def __init__(self) -> None:
        super().__init__(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.width, 4, 16).sin().reshape(x.shape)


class Expanded(Ends):
    """A multiple of an attribute, with a factor that belongs to the class."""

    expansion = 4

    def __init__(self) -> None:
        super().__init__(8, 8, planes=2)

    def between(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.planes * self.expansion, -1).sin().view(x.shape)


class SumOfWidths(Ends):
    """The sum of two attributes is the width of what was put together."""

    def __init__(self) -> None:
        super().__init__(4, 10, b=nn.Conv2d(4, 6, 1), widths=[4, 6])

    def between(self, x: Tensor) -> Tensor:
        together = torch.cat([x, self.b(x)], 1)
        return together.view(-1, sum(self.widths), 64).cos().view(len(x), -1, 8, 8)


class Configured(Ends):
    """Heads and widths in an object that the network keeps."""

    def __init__(self) -> None:
        super().__init__(8, 8, qkv=nn.Linear(8, 24), cfg=SimpleNamespace(width=8, heads=4))

    def between(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        heads, size = self.cfg.heads, self.cfg.width // self.cfg.heads
        parts = self.qkv(x.flatten(2).transpose(1, 2)).split(self.cfg.width, -1)
        query, key, value = (part.view(count, -1, heads, size).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return mixed.reshape(count, -1, self.cfg.width).transpose(1, 2).view(count, -1, height, width)


class PiecesOfContainers(Ends):
    """Layers that are reached through pieces of containers, and by a second name."""

    def __init__(self) -> None:
        blocks = [Grouped(8) for _ in range(3)]
        super().__init__(8, 8, row=nn.Sequential(*blocks), many=nn.ModuleList([Grouped(8), Grouped(8)]))
        self.again = self.row[0]

    def between(self, x: Tensor) -> Tensor:
        x = self.row[1:](self.again(x))
        for block in self.many[-1:]:
            x = block(x)
        return x


class Grouped(nn.Module):
    """A depthwise convolution by hand, with the number of groups in an attribute."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.channels = nn.Parameter(torch.randn(channels, 1, 3, 3)), channels

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=self.channels)


class Sampled(Ends):
    """Images sampled at places that are made in the forward pass and moved by what a layer says."""

    def __init__(self) -> None:
        super().__init__(8, 8, offset=nn.Conv2d(8, 2, 3, padding=1))

    def between(self, x: Tensor) -> Tensor:
        rows, columns = (torch.linspace(-1, 1, size, dtype=x.dtype) for size in x.shape[2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
        moved = grid + 0.1 * self.offset(x).permute(0, 2, 3, 1).tanh()
        return F.grid_sample(x, moved, align_corners=True)


class Masks(nn.Module):
    """Prototypes times coefficients, beside boxes around anchors that are made in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.prototypes = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.coefficients, self.boxes = nn.Conv2d(8, 6, 3, 2, 1), nn.Conv2d(8, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.tanh(self.a(x))
        weights = self.coefficients(x).flatten(2).transpose(1, 2)
        masks = torch.einsum("...nk,...khw->...nhw", weights, self.prototypes(x))
        boxes = self.boxes(x).flatten(2)
        places = torch.arange(boxes.shape[-1], dtype=x.dtype) + 0.5
        return masks.sigmoid(), torch.cat([places - boxes[:, :2], places + boxes[:, 2:]], 1)


class AcrossTokens(Ends):
    """A convolution of one position over another dimension than the channels hands them on."""

    def __init__(self) -> None:
        super().__init__(8, 8, tokens=nn.Conv1d(64, 16, 1))

    def between(self, x: Tensor) -> Tensor:
        return self.tokens(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(len(x), -1, 4, 4)


class Modulated(Ends):
    """A group normalisation, scaled and shifted by halves of an embedding of the time."""

    def __init__(self) -> None:
        super().__init__(
            8, 8, norm=nn.GroupNorm(4, 8), time=nn.Linear(4, 16), conv=nn.Conv2d(8, 8, 3, padding=1)
        )

    def between(self, x: Tensor) -> Tensor:
        steps = torch.arange(len(x), dtype=x.dtype)[:, None] * torch.logspace(0, -1, 2, dtype=x.dtype)
        scale, shift = self.time(torch.cat([steps.sin(), steps.cos()], -1))[:, :, None, None].chunk(2, 1)
        return x + self.conv(F.silu(self.norm(x) * (1 + scale) + shift))


class Patches(nn.Module):
    """Patches made by a convolution, and put back by a product with letters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.out = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 12), nn.Linear(12, 12)
        self.patch, self.channels = 2, 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        height, width = x.shape[-2:]
        x = self.out(F.gelu(self.mlp(x.flatten(2).transpose(1, 2))))
        x = x.reshape(-1, height, width, self.patch, self.patch, self.channels)
        x = torch.einsum("nhwpqc->nchpwq", x)
        return x.reshape(-1, self.channels, height * self.patch, width * self.patch)


KINDS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "interpolated positions": (InterpolatedPositions, {"a": 8}),
    "fixed kernels with groups from a shape": (BlurFromShape, {"a": 8}),
    "one fixed kernel for all channels": (BlurExpanded, {"a": 8}),
    "wavelets there and back": (Wavelets, {"a": 6}),
    "depthwise upsampling": (Upsampled, {"a": 8}),
    "borders that are numbers": (SlicedByNumbers, {"a#2": 5, "one": 5}),
    "borders from the end": (SlicedFromTheEnd, {"a": 5, "one": 5}),
    "gates split at attributes": (SplitByAttributes, {"a": 6, "gates": 6}),
    "unequal chunks": (UnequalChunks, {"a": 2}),
    "channel shuffle": (Shuffled, {"a": 4}),
    "a checked width": (CheckedWidth, {"a": 8}),
    "a width of the class": (WidthOfTheClass, {"a": 8}),
    "a multiple of an attribute": (Expanded, {"a": 2}),
    "a sum of attributes": (SumOfWidths, {"a": 4, "b": 6}),
    "a configuration": (Configured, {"a": 8, "qkv": 4}),
    "pieces of containers": (PiecesOfContainers, {"a": 8}),
    "sampled at places made on the way": (Sampled, {"a": 8}),
    "a convolution across tokens": (AcrossTokens, {"a": 8}),
    "a normalisation modulated by the time": (Modulated, {"a": 4}),
    "patches and back": (Patches, {"embed": 8, "mlp": 12}),
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", KINDS)
def test_it_is_cut_right(name: str) -> None:
    make, groups = KINDS[name]
    in_rounds(make().double().eval(), torch.randn(IMAGE, dtype=torch.float64), groups)


def test_prototypes_and_coefficients_go_together() -> None:
    model, images = Masks().double().eval(), torch.randn(IMAGE, dtype=torch.float64)
    graph = sec.trace(model, images)
    assert {group.name: group.channels for group in graph.prunable} == {"a": 8, "coefficients": 6}
    plan = sec.plan_from(graph, {"coefficients": [1, 4]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, images).ok
    with torch.no_grad():  # a product with zeros adds nothing
        model.prototypes.weight[[1, 4]] = 0
        model.prototypes.bias[[1, 4]] = 0
    torch.testing.assert_close(small(images), model(images))


def test_a_buffer_of_fixed_kernels_is_cut_with_the_channels() -> None:
    model = BlurFromShape().eval()
    graph = sec.trace(model, torch.randn(IMAGE))
    small = sec.apply_plan(model, sec.plan_from(graph, {"a": [0, 3, 4]}))
    assert small.kernel.shape == (5, 1, 3, 3)


def test_a_class_keeps_its_width_when_an_object_is_cut() -> None:
    model, images = WidthOfTheClass().eval(), torch.randn(IMAGE)
    graph = sec.trace(model, images)
    assert "width" not in vars(model)
    small = sec.apply_plan(model, sec.plan_from(graph, {"a": [1, 2]}))
    assert (small.width, model.width, WidthOfTheClass.width) == (6, 8, 8)
    assert "width" not in vars(model)


def test_channels_before_a_border_that_is_a_number_stay() -> None:
    graph = sec.trace(SlicedByNumbers().eval(), torch.randn(IMAGE))
    reasons = {group.reason for group in graph.frozen if "a.weight" in {m.tensor for m in group.members}}
    assert reasons == {"cut at fixed places (slice)"}


def test_layers_in_a_plain_list_are_named_as_the_reason() -> None:
    class Hidden(Ends):
        def __init__(self) -> None:
            super().__init__(8, 8)
            self.layers = [nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)]

        def between(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    reason = sec.trace(Hidden().eval(), torch.randn(IMAGE))["a"].reason
    assert reason is not None
    assert "no parameter of the network" in reason
    assert "nn.ModuleList" in reason


def test_a_number_of_channels_in_the_code_keeps_them() -> None:
    class Literal(Ends):
        def between(self, x: Tensor) -> Tensor:
            return x.view(len(x), 8, 64).view(x.shape)

    assert sec.trace(Literal(8, 8).eval(), torch.randn(IMAGE))["a"].reason


class Stochastic(nn.Module):
    """Residual branches that are dropped at random, by hand."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.o, self.way = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1), way
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for branch in self.branches:
            if self.training and self.way == "examples":
                kept = (torch.rand(len(x), 1, 1, 1) > 0.2).to(x.dtype)
                x = x + branch(x) * kept / 0.8
            elif not self.training or torch.rand(()).item() > 0.2:
                x = x + branch(x)
        return self.o(x)


@pytest.mark.parametrize("way", ["examples", "branches"])
def test_branches_dropped_at_random_are_cut_right(way: str) -> None:
    groups = {"a": 8, "branches.0.0": 12, "branches.1.0": 12}
    in_rounds(Stochastic(way).double().eval(), torch.randn(IMAGE, dtype=torch.float64), groups)


def test_parameters_given_by_functional_call_are_followed() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Tanh(), nn.Conv2d(8, 6, 1))
            self.o = nn.Conv2d(6, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            given = {name: value * 0.5 for name, value in self.inner.named_parameters()}
            return self.o(torch.func.functional_call(self.inner, given, (x,)))

    images = torch.randn(IMAGE, dtype=torch.float64)
    in_rounds(Given().double().eval(), images, {"inner.0": 8, "inner.2": 6})


def test_a_network_held_by_a_closure_is_followed() -> None:
    class Closed(Ends):
        def __init__(self) -> None:
            super().__init__(8, 6, b=nn.Conv2d(8, 6, 1), slope=nn.PReLU(6))
            layer, act = self.b, self.slope
            self.apply_both = lambda x: act(layer(x))

        def between(self, x: Tensor) -> Tensor:
            return self.apply_both(x)

    model, images = Closed().eval(), torch.randn(IMAGE)
    graph = sec.trace(model, images)
    assert {group.name: group.channels for group in graph.prunable} == {"a": 8, "b": 6}
    plan = sec.plan_from(graph, {"a": [0, 3], "b": [1]})
    small = sec.apply_plan(model, plan)
    assert sec.verify(model, small, plan, images).ok
    hidden = torch.tanh(F.conv2d(images, small.a.weight, small.a.bias, padding=1))
    mixed = F.prelu(F.conv2d(hidden, small.b.weight, small.b.bias), small.slope.weight)
    torch.testing.assert_close(small(images), small.o(mixed))
