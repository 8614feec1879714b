"""Small networks, each with one way of wiring that has gone wrong somewhere before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two branches that meet in an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.norm(self.outer(F.relu(self.inner(x)))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenations that grow, and a tensor concatenated with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 6, 3, padding=1)
        self.c = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = self.b(a)
        return self.c(torch.cat([b, a, a], 1)).amax((2, 3))


class Flattened(nn.Module):
    """A convolution read by a linear layer, each channel at many positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, stride=2)
        self.one = nn.Linear(7 * 9, 11)
        self.two = nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(torch.flatten(F.relu(self.conv(x)), 1))))


class Depthwise(nn.Module):
    """A depthwise convolution with a multiplier of two."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 6, 1)
        self.depth = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.project = nn.Conv2d(12, 5, 1)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.project(F.hardswish(self.depth(F.relu6(self.expand(x))))))


class Grouped(nn.Module):
    """Grouped convolutions between ungrouped ones: whole groups go, or the same place in each."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, width, 1)
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.after = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.sigmoid(self.grouped(torch.sigmoid(self.before(x)))))


class ChannelShuffle(nn.Module):
    """A shuffle by view and transpose, then a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 1)
        self.left = nn.Conv2d(6, 4, 1)
        self.right = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        left, right = x.chunk(2, 1)
        return self.left(left) - self.right(right)


class SwappedHalves(nn.Module):
    """Halves change places in a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.conv(x).chunk(2, 1)
        return self.head(torch.cat([two, one], 1))


class Flipped(nn.Module):
    """Channels in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(x.flip(1)) + self.head(x)


class Rolled(nn.Module):
    """Channels moved along by a fixed number of places: must be left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).roll(3, 1))


class SqueezeExcite(nn.Module):
    """A channel gate computed by view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.down = nn.Linear(8, 4)
        self.up = nn.Linear(4, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return self.head(x * gate.view(*gate.shape, 1, 1))


class LayerScale(nn.Module):
    """A block with layer normalisation, channels last, and a parameter of shape (C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 16)
        self.narrow = nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))).permute(0, 3, 1, 2)
        return self.head(x + self.scale * y)


class SoftmaxOverChannels(nn.Module):
    """A soft-max over channels: a statistic of the kept ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).softmax(1))


class PixelShuffled(nn.Module):
    """Channels become positions: four of them go together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pixel_shuffle(self.conv(x), 2))


class PaddedShortcut(nn.Module):
    """A shortcut that strides and pads with a fixed number of channels (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(F.relu(self.conv(x) + short))


class SelectiveKernels(nn.Module):
    """Branches stacked, weighed by a soft-max over branches, and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 1)
        self.two = nn.Conv2d(3, 6, 3, padding=1)
        self.weigh = nn.Linear(6, 12)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([self.one(x), self.two(x)], 1)
        pooled = stacked.sum(1).mean((2, 3))
        weight = self.weigh(pooled).view(x.shape[0], 2, -1).softmax(1)
        return self.head((stacked * weight[..., None, None]).sum(1))


class Shared(nn.Module):
    """One module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.again(F.relu(self.again(self.stem(x))))))


class Transposed(nn.Module):
    """A transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, stride=2)
        self.up = nn.ConvTranspose2d(6, 5, 3, stride=2)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.down(x)))))


class Auxiliary(nn.Module):
    """A head that only runs in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


def build(name: str) -> nn.Module:
    """A network by name, with random weights that do not depend on the order of tests."""
    torch.manual_seed(sum(map(ord, name)))
    makers = {
        "grouped-groups": lambda: Grouped(4, 8),
        "grouped-places": lambda: Grouped(2, 12),
        **{
            kind.__name__.lower(): kind
            for kind in (
                Residual,
                Dense,
                Flattened,
                Depthwise,
                ChannelShuffle,
                SwappedHalves,
                Flipped,
                Rolled,
                SqueezeExcite,
                LayerScale,
                SoftmaxOverChannels,
                PixelShuffled,
                PaddedShortcut,
                SelectiveKernels,
                Shared,
                Transposed,
                Auxiliary,
            )
        },
    }
    model = makers[name]()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                    tensor.uniform_(0.5, 1.5)
    return model


NAMES = (
    "residual",
    "dense",
    "flattened",
    "depthwise",
    "grouped-groups",
    "grouped-places",
    "channelshuffle",
    "swappedhalves",
    "flipped",
    "rolled",
    "squeezeexcite",
    "layerscale",
    "softmaxoverchannels",
    "pixelshuffled",
    "paddedshortcut",
    "selectivekernels",
    "shared",
    "transposed",
    "auxiliary",
)
