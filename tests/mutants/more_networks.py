"""Networks for the rules that no other network of the tests meets."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.trap_networks import LINES, PICTURE, TOKENS, Between, TiedDecoder


class Standardised(nn.Module):
    """Convolutions whose weights are standardised before they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    @staticmethod
    def _standard(conv: nn.Conv2d) -> Tensor:
        weight = conv.weight
        return (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(x, self._standard(self.one), self.one.bias))
        return self.head(torch.tanh(F.conv2d(x, self._standard(self.two), self.two.bias)))


class SoftWeights(nn.Module):
    """A weight that is a soft-max of a parameter, over its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(x, self.one.weight.softmax(0), self.one.bias)))


class SumsOfProducts(nn.Module):
    """Attention written with letters, and a weight that is read with letters."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(3, 6) for _ in range(3))
        self.mix = nn.Parameter(torch.randn(6, 5))
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("bic,bjc->bij", self.q(x), self.k(x))
        mixed = torch.einsum("bij,bjc->bic", scores.sigmoid(), self.v(x))
        return self.head(torch.tanh(torch.einsum("bic,cd->bid", mixed, self.mix)))


class Letters(nn.Module):
    """A sum of products in a form that is not followed, and products with a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 4)
        self.vector = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return torch.einsum("...c,c->...", one, self.vector) + self.head(two)[..., 0] + two @ self.vector


class Heads(nn.Module):
    """Attention with a scale of its own and a mask, where single places of all heads may go."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.q, self.k, self.v, self.out = (nn.Linear(3 if i < 3 else 8, 8 if i < 3 else 4) for i in range(4))
        self.register_buffer("mask", torch.randn(6, 6))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split(item(x)) for item in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, scale=0.4)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Quotients(nn.Module):
    """Sizes that the code divides: the width of a head, and a part of a width."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads, self.groups = 12, 3, 2
        self.one, self.two = nn.Linear(3, 12), nn.Linear(12, 12)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        x = torch.tanh(self.one(x))
        y = x.view(batch, count, self.heads, self.width // self.heads).transpose(1, 2)
        y = torch.tanh(self.two(y.transpose(1, 2).reshape(batch, count, self.width)))
        y = y.view(batch, count, self.groups, y.shape[-1] // self.groups)
        return self.head(y.amax(2))


class NumberedHeads(nn.Module):
    """The number of heads is made of a width, which must come out even."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.wide = 4, 12
        self.qkv, self.out = nn.Linear(3, 36), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, _ = x.shape
        query, key, value = self.qkv(x).split(self.wide, -1)
        shape = (batch, count, self.wide // self.width, self.width)
        query, key, value = (item.reshape(shape).transpose(1, 2) for item in (query, key, value))
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).flatten(2))


class Pieces(nn.Module):
    """Unequal pieces between borders that attributes give, by split, by slices and by narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = 3, 5
        self.conv, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)
        self.other, self.low = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.conv(x), [self.first, self.second], 1)
        other = torch.tanh(self.other(x))
        return (
            self.left(left)
            + self.right(right) * self.low(other[:, : self.first])
            + self.right(other[:, self.first :])
        )


class Padded(nn.Module):
    """A shortcut padded by as many channels as attributes say."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.back = 2, 3
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 9, 3, padding=1)
        self.head = nn.Conv2d(9, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        short = F.pad(x, (0, 0, 0, 0, self.front, self.back))
        return self.head(F.relu(self.conv(x)) + short)


class Queries(nn.Module):
    """Learned tokens, expanded to the batch, laid before what was embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(3, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.place = nn.LayerNorm(8), nn.Parameter(torch.randn(1, 7, 8))
        self.gate, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        first = self.gate(self.norm(x)[:, 0])
        return self.head(x.mean(1) * first.unsqueeze(1).expand_as(x[:, :1]).squeeze(1))


class Words(nn.Module):
    """An embedding whose columns are channels, read by a recurrent layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        options = {"num_layers": 2, "bidirectional": True} if kind == "lstm" else {"bias": kind == "gru"}
        self.words, self.inner = nn.Embedding(20, 6), nn.Linear(6, 5)
        self.recurrent = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind](
            5, 4, batch_first=True, **options
        )
        self.head = nn.Linear(8 if kind == "lstm" else 4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.recurrent(self.inner(self.words(words)).tanh())[0])


class Bag(nn.Module):
    """A bag of words, and words as vectors of one."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.EmbeddingBag(20, 6, mode="sum"), nn.Linear(20, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, words: Tensor) -> Tensor:
        single = F.one_hot(words, 20).to(self.inner.weight.dtype).mean(1)
        return self.head(torch.tanh(self.words(words) + self.inner(single)))


class LastState(nn.Module):
    """The last states of a recurrent layer go on."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.head = nn.GRU(3, 6, num_layers=2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[1])


class Cross(nn.Module):
    """Multi-head attention with keys and values of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.memory = nn.Linear(3, 8), nn.Linear(3, 6)
        self.attention = nn.MultiheadAttention(8, 4, kdim=6, vdim=6, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.tanh(self.memory(x))
        return self.head(self.attention(self.query(x), memory, memory, need_weights=False)[0])


class Norms(nn.Module):
    """Group norms in both ways, an instance norm and slopes for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 1)
        self.few, self.many, self.slopes = nn.GroupNorm(2, 12), nn.GroupNorm(4, 8), nn.PReLU(8)
        self.instance = nn.InstanceNorm2d(12, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.slopes(self.many(self.two(self.instance(self.few(self.one(x)))))))


class Arithmetic(nn.Module):
    """Operands of different ranks, a choice between them, and a single channel that meets all others."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.single = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(3, 1, 1)
        self.scale, self.head = nn.Parameter(torch.randn(6, 1, 1)), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two, single = self.one(x), self.two(x), torch.sigmoid(self.single(x))
        return self.head(torch.where(one > two, one * self.scale, torch.lerp(one, two, 0.3)) * single)


class Moved(nn.Module):
    """Dimensions that change places in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.line = nn.Conv2d(3, 6, 1), nn.Linear(6, 5)
        self.matrix, self.head = nn.Parameter(torch.randn(5, 7)), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x)).movedim(1, -1)
        x = torch.tanh(self.line(x)).permute(0, 3, 1, 2).flatten(2).transpose(1, 2)
        return self.head(torch.tanh(torch.matmul(x, self.matrix)) + F.linear(x, self.matrix.t()))


def patches(x: Tensor) -> Tensor:
    """Patches laid out as channels, and added up again."""
    return F.fold(F.unfold(x, 2), (4, 4), 2)


def over_channels(x: Tensor) -> Tensor:
    """Statistics over channels of every kind, laid beside a soft-max over channels."""
    whole = x - x.mean(1, keepdim=True)
    return whole / (x.std(1, keepdim=True) + 1) + F.normalize(x, dim=1) * x.log_softmax(1) * x.amax(
        (1, 2), True
    )


def ranked(x: Tensor) -> Tensor:
    """The largest over positions, by value and by place, and a running sum over positions."""
    values, _ = x.max(2, keepdim=True)
    return x + values + x.cumsum(3) + x.topk(4, 3).values


def resampled(x: Tensor) -> Tensor:
    """Pooled and resampled."""
    x = F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0, mode="bilinear") + F.adaptive_avg_pool2d(x, 4)
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


def in_batches(x: Tensor) -> Tensor:
    """Products of matrices of many examples, with channels as what is contracted."""
    flat = x.flatten(2)
    return (flat.transpose(1, 2) @ flat).view(x.shape[0], 16, 4, 4)


def windows(x: Tensor) -> Tensor:
    """Windows along positions."""
    return x.unfold(2, 2, 2).mean(-1)


def taken_apart(x: Tensor) -> Tensor:
    """Positions taken apart and stacked in another order; one position picked."""
    return torch.stack(x.unbind(2)[::-1], 2) + x.select(3, 1).unsqueeze(3)


def selected(x: Tensor) -> Tensor:
    """Positions picked by an index tensor, beside zeros written over a copy."""
    return x.index_select(2, torch.tensor([3, 1, 0, 2])) + torch.zeros_like(x).fill_(0.5).add_(
        x.clone().zero_()
    )


MORE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "standardised": (Standardised, PICTURE),
    "soft weights": (SoftWeights, LINES),
    "sums of products": (SumsOfProducts, TOKENS),
    "letters": (Letters, LINES),
    "heads": (Heads, TOKENS),
    "quotients": (Quotients, TOKENS),
    "numbered heads": (NumberedHeads, TOKENS),
    "pieces": (Pieces, PICTURE),
    "padded": (Padded, PICTURE),
    "queries": (Queries, TOKENS),
    "words lstm": (lambda: Words("lstm"), (3, 7)),
    "words gru": (lambda: Words("gru"), (3, 7)),
    "words rnn": (lambda: Words("rnn"), (3, 7)),
    "words in a bag": (Bag, (3, 7)),
    "words of limited norm": (
        lambda: nn.Sequential(nn.Embedding(20, 8, max_norm=1.0), nn.Tanh(), nn.Linear(8, 3)),
        (3, 7),
    ),
    "observed while they are rounded": (
        lambda: Between(torch.ao.quantization.FusedMovingAvgObsFakeQuantize(), 8),
        PICTURE,
    ),
    "last state": (LastState, TOKENS),
    "cross": (Cross, TOKENS),
    "norms": (Norms, PICTURE),
    "arithmetic": (Arithmetic, PICTURE),
    "moved": (Moved, PICTURE),
    "tied decoder": (TiedDecoder, LINES),
    "patches": (lambda: Between(patches, 8), PICTURE),
    "over channels": (lambda: Between(over_channels, 8), PICTURE),
    "ranked": (lambda: Between(ranked, 8), PICTURE),
    "resampled": (lambda: Between(resampled, 8), PICTURE),
    "in batches": (lambda: Between(in_batches, 16), PICTURE),
    "selected": (lambda: Between(selected, 8), PICTURE),
    "channels selected": (lambda: Between(lambda x: x.index_select(1, torch.tensor([2, 0, 5])), 3), PICTURE),
    "windows": (lambda: Between(windows, 8), PICTURE),
    "taken apart": (lambda: Between(taken_apart, 8), PICTURE),
    "shuffled twice": (lambda: Between(lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2), 8), PICTURE),
    "split by numbers": (lambda: Between(lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1), 8), PICTURE),
    "a slice of equal pieces": (lambda: Between(lambda x: x[:, 4:] * x[:, :4], 4), PICTURE),
    "without a rule": (lambda: Between(lambda x: torch.cross(x[:, :3], x[:, 3:6], 1), 3), PICTURE),
    "without a rule, through": (lambda: Between(torch.trunc, 8), PICTURE),
    "grouped transposed": (
        lambda: Between(nn.ConvTranspose2d(8, 6, 3, padding=1, groups=2), 6),
        PICTURE,
    ),
    "fixed groups": (lambda: Between(lambda x: F.group_norm(x, 4), 8), PICTURE),
}
"""By name: how it is made, and the shape of its input; of words, where the name begins with it."""
