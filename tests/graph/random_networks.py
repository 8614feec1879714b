"""Random networks out of the operators that the graph engine knows, for hypothesis to draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.graph import random_blocks as blocks
from tests.graph import random_operators as operators
from tests.graph import sized_blocks as sized

SIZE = {1: 6, 2: 4, 3: 3}
"""Positions along each spatial dimension, by the number of these dimensions."""


@dataclass(frozen=True)
class Step:
    """One block: its kind, and three numbers that its details are taken from."""

    kind: str
    size: int = 0
    way: int = 0
    back: int = 0


@dataclass(frozen=True)
class Recipe:
    """All that a random network is made of."""

    dims: int
    steps: tuple[Step, ...]
    flat: bool = False
    seed: int = 0


@dataclass(frozen=True)
class At:
    """Where a block is put: what comes in, and the numbers to take details from."""

    dims: int
    channels: int
    size: int
    way: int

    def conv(self, out: int | None = None, *, into: int | None = None, kernel: int = 3) -> nn.Module:
        """A convolution that keeps the size of pictures."""
        into = self.channels if into is None else into
        out = into if out is None else out
        bias = self.way % 3 != 1
        return blocks.CONV[self.dims](into, out, kernel, padding=kernel // 2, bias=bias)

    @property
    def width(self) -> int:
        """A number of channels to make."""
        return 2 + self.size % 6

    @property
    def divisor(self) -> int:
        """A number above one that divides the channels; they are at least two."""
        found = blocks.widths(self.channels)
        return found[self.size % len(found)]

    @property
    def odd(self) -> bool:
        """A coin."""
        return self.way % 2 == 1


def _grouped(at: At) -> nn.Module:
    conv, groups = blocks.CONV[at.dims], at.divisor
    return conv(at.channels, groups * (1 + at.way % 3), 3, padding=1, groups=groups)


def _depthwise(at: At) -> nn.Module:
    conv = blocks.CONV[at.dims]
    return conv(at.channels, at.channels * (1 + at.way % 2), 3, padding=1, groups=at.channels)


def _transposed(at: At) -> nn.Module:
    return blocks.TRANSPOSED[at.dims](at.channels, at.width, 3, padding=1, bias=at.odd)


def _norm(at: At) -> nn.Module:
    kinds: tuple[Callable[[], nn.Module], ...] = (
        lambda: blocks.BATCH_NORM[at.dims](at.channels),
        lambda: nn.GroupNorm(at.divisor, at.channels),
        lambda: nn.GroupNorm(1, at.channels),
        lambda: blocks.ChannelsLast(nn.LayerNorm(at.channels)),
        lambda: blocks.INSTANCE_NORM[at.dims](at.channels, affine=True),
    )
    return kinds[at.way % len(kinds)]()


def _activation(at: At) -> nn.Module:
    kinds: tuple[Callable[[], nn.Module], ...] = (
        nn.ReLU,
        nn.GELU,
        nn.Hardswish,
        lambda: nn.PReLU(at.channels),
        nn.PReLU,
        lambda: blocks.Swish(at.dims, at.channels),
        nn.Softplus,
        nn.Dropout,
    )
    return kinds[at.way % len(kinds)]()


def _pooling(at: At) -> nn.Module:
    kind = blocks.MAX_POOL if at.odd else blocks.AVG_POOL
    return kind[at.dims](3, stride=1, padding=1)


def _residual(at: At) -> nn.Module:
    norm = _norm(replace(at, channels=at.width))
    inner = nn.Sequential(at.conv(at.width), norm, nn.ReLU(), at.conv(into=at.width, out=at.channels))
    return blocks.Residual(inner, nn.Identity())


def _projected(at: At) -> nn.Module:
    return blocks.Residual(at.conv(at.width), at.conv(at.width, kernel=1))


def _padded(at: At) -> nn.Module:
    padding = 1 + at.size % 3
    both = at.odd
    out = at.channels + padding * (2 if both else 1)
    return blocks.PaddedShortcut(at.conv(out), at.channels, padding, both=both)


def _dense(at: At) -> nn.Module:
    return blocks.Dense(at.conv(at.width), twice=at.odd)


def _chunked(at: At) -> nn.Module | None:
    half = at.channels // 2
    return None if at.channels % 2 else blocks.Chunked(at.conv(into=half), at.way)


def _unequal(at: At) -> nn.Module:
    one = 1 + at.size % (at.channels - 1)
    return blocks.Unequal(at.conv(at.width, into=one), one, at.channels - one, fixed=at.odd)


def _gradual(at: At) -> nn.Module:
    width = at.channels // at.divisor
    return blocks.Gradual([at.conv(into=width) for _ in range(at.divisor - 1)], width)


def _rounds(at: At) -> nn.Module | None:
    half = at.channels // 2
    if at.channels % 2:
        return None
    count = 1 + at.way % 2
    return blocks.Rounds(
        [at.conv(into=half) for _ in range(count)], at.conv(at.width, into=(2 + count) * half, kernel=1)
    )


def _selective(at: At) -> nn.Module:
    return blocks.Selective(at.conv(at.width), at.conv(at.width, kernel=1), nn.Linear(at.width, 2 * at.width))


def _reordered(at: At) -> nn.Module:
    return blocks.Reordered(at.way, at.channels)


def _attention(at: At) -> nn.Module:
    return blocks.Attention(at.channels, 1 + at.size % 3, 1 + at.size // 3, at.way)


def _multihead(at: At) -> nn.Module:
    return blocks.MultiHead(at.channels, at.divisor if at.odd else 1)


def _perceptron(at: At) -> nn.Module:
    two = nn.Sequential(nn.Linear(at.channels, at.width), nn.GELU(), nn.Linear(at.width, at.channels))
    return blocks.Residual(blocks.ChannelsLast(two), nn.Identity())


def _pixels(at: At) -> nn.Module | None:
    """Positions become channels and, after a convolution, positions again."""
    if at.dims != 2:
        return None
    return nn.Sequential(
        nn.PixelUnshuffle(2), at.conv(4 * at.width, into=4 * at.channels), nn.PixelShuffle(2)
    )


def _zeros(at: At) -> nn.Module:
    planes = at.channels + 1 + at.size % 3
    return sized.ZeroChannels(at.conv(planes), planes, at.way)


def _state(at: At) -> nn.Module:
    gates = at.conv(2 * at.width, into=at.channels + at.width)
    return sized.ConvolutionalState(gates, at.width)


def _queries(at: At) -> nn.Module:
    shared = 1 + at.size % 3
    heads = (shared * (1 + at.size // 3), shared)
    way = sized.WAYS[at.way % len(sized.WAYS)]
    return sized.GroupedQueries(at.channels, heads, 2 * (1 + at.way % 2), way, turn=(at.way + at.size) % 3)


KINDS: dict[str, Callable[[At], nn.Module | None]] = {
    "conv": lambda at: at.conv(at.width, kernel=1 if at.odd else 3),
    "activation": _activation,
    "norm": _norm,
    "grouped": _grouped,
    "depthwise": _depthwise,
    "transposed": _transposed,
    "pooling": _pooling,
    "residual": _residual,
    "projected": _projected,
    "padded": _padded,
    "dense": _dense,
    "doubled": lambda at: blocks.Doubled(),
    "chunked": _chunked,
    "unequal": _unequal,
    "gradual": _gradual,
    "rounds": _rounds,
    "selective": _selective,
    "excite": lambda at: blocks.Excite(at.channels, at.width, by_view=at.odd),
    "shuffle": lambda at: blocks.Shuffle(at.divisor, by_view=at.odd),
    "reordered": _reordered,
    "maxout": lambda at: None if at.channels % 2 else blocks.Maxout(at.way),
    "over-channels": lambda at: blocks.OverChannels(at.way),
    "scale": lambda at: blocks.Scale(at.dims, at.channels, at.way),
    "twice": lambda at: blocks.Twice(at.conv()),
    "attention": _attention,
    "multihead": _multihead,
    "perceptron": _perceptron,
    "pixels": _pixels,
    "backwards": lambda at: operators.Backwards(at.channels, at.width, at.way),
    "scores": lambda at: operators.Scores(at.channels, at.way),
    "pair": lambda at: operators.Pair(at.channels, at.width),
    "cell": lambda at: operators.Cell(at.channels, at.width, at.way + at.size),
    "spectrum": lambda at: operators.Spectrum(at.channels, at.way),
    "messages": lambda at: operators.Messages(SIZE[at.dims] ** at.dims, at.way + at.size),
    "in order": lambda at: operators.InOrder(at.way),
    "sampled": lambda at: operators.Sampled(at.dims, at.way),
    "pointwise": lambda at: operators.Pointwise(at.channels, at.way),
    "of all": lambda at: operators.OfAll(at.channels, at.way + at.size),
    "along channels": lambda at: operators.AlongChannels(at.way),
    "mixture": lambda at: operators.Mixture(at.channels, at.way),
    "words": lambda at: operators.Words(at.channels, at.way),
    "rounded": lambda at: operators.Rounded(at.channels, at.way),
    "written": lambda at: operators.Written(at.channels, at.way + at.size),
    "composed": lambda at: operators.Composed(at.channels, at.way),
    "table": lambda at: operators.Table(at.channels, at.width, at.way),
    "sides": lambda at: operators.Sides(at.channels, at.width, at.way),
    "scan": lambda at: operators.Scan(at.channels, at.width, at.way),
    "blur": lambda at: sized.Blur(at.dims, at.channels, at.way),
    "zeros": _zeros,
    "state": _state,
    "alternating": lambda at: None if at.channels % 2 else sized.Alternating(at.way),
    "queries": _queries,
    "decoder": lambda at: sized.Decoder(at.channels, at.divisor, at.width, normed=at.odd),
    "covariance": lambda at: operators.Covariance(at.way),
}

STATISTICS = {
    "along channels",
    "attention",
    "covariance",
    "decoder",
    "mixture",
    "multihead",
    "norm",
    "of all",
    "over-channels",
    "residual",
}
"""Kinds in which channels may meet outside the weights that read them."""

LARGEST = 16
"""Channels at which a network stops growing."""


class Meeting(nn.Module):
    """An addition to, or a concatenation with, an earlier value."""

    def __init__(self, back: int, *, add: bool) -> None:
        super().__init__()
        self.back, self.add = back, add

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        other = earlier[-1 - self.back]
        return x + other if self.add else torch.cat([other, x], 1)


class Network(nn.Module):
    """A stem, the blocks of a recipe, and a head; what a recipe cannot build is left out."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        dims = recipe.dims
        channels = 2 + recipe.seed % 5
        self.stem = blocks.CONV[dims](2, channels, 3, padding=1)
        self.blocks = nn.ModuleList()
        widths = [channels]
        for step in recipe.steps:
            block = self._block(step, dims, widths)
            if block is None:
                continue
            self.blocks.append(block)
            widths.append(self._width(dims))
            if widths[-1] > LARGEST:
                self.blocks.append(At(dims, widths[-1], 0, 0).conv(4 + step.way % 3))
                widths.append(4 + step.way % 3)
        features = widths[-1] * SIZE[dims] ** dims
        self.head = blocks.Flat(features, 5) if recipe.flat else blocks.Pooled(widths[-1])

    @staticmethod
    def _block(step: Step, dims: int, widths: list[int]) -> nn.Module | None:
        if step.kind in ("add", "concat"):
            back = 1 + step.back
            fits = back < len(widths) and (step.kind == "concat" or widths[-1 - back] == widths[-1])
            return Meeting(back, add=step.kind == "add") if fits else None
        return KINDS[step.kind](At(dims, widths[-1], step.size, step.way)) if widths[-1] > 1 else None

    def _width(self, dims: int) -> int:
        """How many channels the blocks so far give."""
        return int(self._blocks(torch.zeros(2, 2, *(SIZE[dims],) * dims)).shape[1])

    def _blocks(self, x: Tensor) -> Tensor:
        earlier = [self.stem(x)]
        for block in self.blocks:
            last = earlier[-1]
            earlier.append(block(last, earlier) if isinstance(block, Meeting) else block(last))
        return earlier[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._blocks(x))


def build(recipe: Recipe) -> tuple[nn.Module, Tensor]:
    """A network and example inputs, with constants that are all different, so that a wrong cut shows."""
    torch.manual_seed(recipe.seed)
    model = Network(recipe).double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and (tensor.dim() < 2 or (tensor == tensor.flatten()[0]).all()):
                shift = 0.6 if name.endswith(("weight", "running_var", "scale")) else -0.3
                tensor.copy_(torch.rand_like(tensor) + shift)
    return model, torch.randn(2, 2, *(SIZE[recipe.dims],) * recipe.dims, dtype=torch.float64)


def _steps() -> st.SearchStrategy[Step]:
    kinds = st.sampled_from([*KINDS, "add", "concat"])
    return st.builds(Step, kinds, st.integers(0, 7), st.integers(0, 7), st.integers(0, 3))


def recipes(dims: int) -> st.SearchStrategy[Recipe]:
    """Recipes of networks with one to three spatial dimensions."""
    steps = st.lists(_steps(), min_size=1, max_size=7).map(tuple)
    return st.builds(Recipe, st.just(dims), steps, st.booleans(), st.integers(0, 99))
