"""Small networks whose channels are gated by hand, as an independent yardstick.

Each calls ``self.gate(name, x)`` wherever a consumer reads channels of the group of that name.
The gates are ones that really multiply, shared by all consumers of a channel; without
them (as the tool sees the network) the call does nothing.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 5


class Gated(nn.Module):
    """A network with hand-placed gates."""

    widths: ClassVar[dict[str, int]]

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, Tensor] | None = None

    def gate(self, name: str, x: Tensor, repeat: int = 1) -> Tensor:
        if self.gates is None:
            return x
        gate = self.gates[name].repeat_interleave(repeat, dim=1)
        return x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2))

    def ones(self, examples: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {
            name: torch.ones(examples, width, dtype=dtype, requires_grad=True)
            for name, width in self.widths.items()
        }


class Plain(Gated):
    """Convolutions in a row, an image flattened into a linear layer, another linear layer."""

    widths: ClassVar = {"a": 4, "b": 6, "c": 7}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 6, 3)
        self.c = nn.Linear(6 * 4, 7)
        self.d = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x)))
        x = F.max_pool2d(F.relu(self.b(self.gate("a", x))), 3)
        x = torch.tanh(self.c(self.gate("b", x.flatten(1), repeat=4)))
        return self.d(self.gate("c", x))


class Residual(Gated):
    """A stream that three layers read and two write."""

    widths: ClassVar = {"stem": 4, "one": 5, "two": 3}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 5, 3, padding=1)
        self.back = nn.Conv2d(5, 4, 1)
        self.two = nn.Conv2d(4, 3, 3, padding=1)
        self.three = nn.Conv2d(4, CLASSES, 1)
        self.last = nn.Conv2d(3, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        inner = F.relu(self.one(self.gate("stem", x)))
        x = x + self.back(self.gate("one", inner))
        side = F.relu(self.two(self.gate("stem", x)))
        y = self.three(self.gate("stem", F.avg_pool2d(x, 2)))
        return y.mean((2, 3)) + self.last(self.gate("two", side)).mean((2, 3))


class Concat(Gated):
    """Two branches side by side, one of them read on its own as well."""

    widths: ClassVar = {"left": 3, "right": 4}

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 3, 3, padding=1)
        self.right = nn.Conv2d(3, 4, 3, padding=1)
        self.both = nn.Conv2d(7, CLASSES, 1)
        self.alone = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.left(x)), F.relu(self.right(x))
        both = self.both(torch.cat([self.gate("left", left), self.gate("right", right)], 1))
        return (both + self.alone(self.gate("right", right))).mean((2, 3))


class Depthwise(Gated):
    """A depthwise filter hands channels on to the pointwise convolution that reads them."""

    widths: ClassVar = {"expand": 6}

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.project = nn.Conv2d(6, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.depthwise(F.relu(self.expand(x)))))
        return self.project(self.gate("expand", x)).mean((2, 3))


class Shared(Gated):
    """One layer is called three times on its own output."""

    widths: ClassVar = {"stem": 4}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = torch.tanh(self.again(self.gate("stem", x)))
        return self.head(self.gate("stem", x.mean((2, 3))))


NETS = (Plain, Residual, Concat, Depthwise, Shared)


def make(kind: type[Gated], dtype: torch.dtype = torch.float32) -> Gated:
    """A network with seeded weights and batch-norm statistics that do something."""
    torch.manual_seed(3)
    net = kind()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return net.eval().to(dtype)


def data(examples: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and class numbers."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, 3, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, CLASSES, (examples,), generator=generator)


def gate_gradients(net: Gated, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Per example and channel, the gradient of the example's loss by gates that really multiply."""
    net.gates = net.ones(len(inputs), inputs.dtype)
    try:
        loss = F.cross_entropy(net(inputs), targets, reduction="sum")
        grads = torch.autograd.grad(loss, list(net.gates.values()))
        return dict(zip(net.gates, grads, strict=True))
    finally:
        net.gates = None
