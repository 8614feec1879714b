"""Blocks of random networks, each with one family of operators in several forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.random_blocks import spatial


def tokens(x: Tensor) -> Tensor:
    """Positions in a row, channels last."""
    return x.flatten(2).transpose(1, 2)


def beside(x: Tensor, other: Tensor) -> Tensor:
    """Numbers for each example and channel, with a dimension of size one for each of space."""
    return other.reshape(*other.shape, *(1,) * (x.dim() - 2))


class Backwards(nn.Module):
    """Linear layer over channels with a weight of shape (in, out)."""

    def __init__(self, channels: int, width: int, way: int) -> None:
        super().__init__()
        ways = ("addmm", "matmul", "front", "baddbmm", "mm", "tensordot", "blocks", "steps")
        self.nf, self.way = width, ways[way % 8]
        if self.way == "blocks":
            self.first = nn.Parameter(torch.randn(1, 1) * 0.3)
            self.others = nn.Parameter(torch.randn(channels - 1, width - 1) * 0.3)
        else:
            self.weight = nn.Parameter(torch.randn(channels, width) * 0.3)
        self.bias = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        rows = tokens(x)
        if self.way == "addmm":
            flat = torch.addmm(self.bias, rows.reshape(-1, x.shape[1]), self.weight)
            made = flat.view(*rows.size()[:-1], self.nf)
        elif self.way == "baddbmm":
            made = torch.baddbmm(self.bias, rows, self.weight.expand(len(x), -1, -1))
        elif self.way == "mm":
            made = torch.mm(rows.flatten(0, 1), self.weight).unflatten(0, (len(x), -1)) + self.bias
        elif self.way == "tensordot":
            made = torch.tensordot(rows, self.weight, dims=([-1], [0])) + self.bias
        elif self.way == "blocks":
            made = rows @ torch.block_diag(self.first, self.others) + self.bias
        elif self.way == "steps":
            steps = torch.conv_tbc(rows.transpose(0, 1).contiguous(), self.weight[None], self.bias, 0)
            made = torch.stack(steps.unbind(0), dim=1)  # its backward pass takes contiguous gradients alone
        elif self.way == "front":
            made = (self.weight.t() @ x.flatten(2)).transpose(1, 2)
        else:
            made = rows @ self.weight + self.bias
        return made.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


class Scores(nn.Module):
    """Positions weighed by one number for each, which is contracted over channels."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.way = ("matmul", "inner", "left", "mv", "dot", "einsum", "addbmm")[way % 7]
        self.weight = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = tokens(x)
        if self.way == "inner":
            score = torch.inner(rows, self.weight)
        elif self.way == "left":
            score = self.weight @ x.flatten(2)
        elif self.way == "mv":
            score = torch.mv(rows.flatten(0, 1), self.weight).view(len(x), -1)
        elif self.way == "dot":
            return x * torch.sigmoid(torch.dot(x.mean((0, *spatial(x))), self.weight))
        elif self.way == "addbmm":  # channels in the place of the examples of a batch
            stack = x.flatten(2).transpose(0, 1).reshape(x.shape[1], -1, 1)
            score = torch.addbmm(x.new_ones(1), stack, self.weight.view(-1, 1, 1)).view(len(x), -1)
        elif self.way == "einsum":
            score = torch.einsum("nlc,c->nl", rows, self.weight)
        else:
            score = rows @ self.weight
        return x * score.tanh().reshape(len(x), 1, *x.shape[2:])


class Pair(nn.Module):
    """Two inputs of one layer, of which each is a projection of its own."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(channels, width), nn.Linear(channels, 3)
        self.both = nn.Bilinear(width, 3, channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = tokens(x)
        made = self.both(self.one(rows).tanh(), self.two(rows).tanh())
        return x + made.transpose(1, 2).reshape(x.shape)


class Cell(nn.Module):
    """A recurrent cell over some positions; its state goes on as channels."""

    def __init__(self, channels: int, width: int, way: int) -> None:
        super().__init__()
        kinds: tuple[Callable[[], nn.Module], ...] = (
            lambda: nn.GRUCell(channels, width),
            lambda: nn.LSTMCell(channels, width),
            lambda: nn.RNNCell(channels, width, nonlinearity="relu"),
            lambda: nn.GRUCell(channels, width, bias=False),
            lambda: nn.RNNCell(channels, width),
        )
        self.cell, self.given = kinds[way % 5](), way < 5
        self.back = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        rows, state = tokens(x).tanh(), None
        if self.given:
            zeros = x.new_zeros(len(x), self.cell.hidden_size)
            state = (zeros, zeros) if isinstance(self.cell, nn.LSTMCell) else zeros
        for step in range(3):
            state = self.cell(rows[:, step], state)
        return x + beside(x, self.back(state[0] + state[1] if isinstance(state, tuple) else state))


class Spectrum(nn.Module):
    """Positions in frequencies, filtered with a complex number for each channel."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.way = way % 5
        self.filter = nn.Parameter(torch.randn(channels, 2))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.view_as_complex(self.filter.contiguous())
        response = response.reshape(-1, *(1,) * (x.dim() - 2))
        space = spatial(x)
        if self.way == 0:
            return torch.fft.irfft(torch.fft.rfft(x) * response, n=x.shape[-1])
        if self.way == 1:
            return torch.fft.irfftn(torch.fft.rfftn(x, dim=space) * response, s=x.shape[2:], dim=space)
        if self.way == 2:
            return torch.view_as_real(torch.fft.ifft(torch.fft.fft(x, dim=2) * response, dim=2)).sum(-1)
        if self.way == 3:
            found = torch.fft.fft(x, dim=0) * response.conj()
            return torch.fft.ifft(found, dim=0).real + found.abs()
        turned = torch.complex(x, x.cos()) * torch.polar(torch.ones_like(x), x)
        return turned.imag + turned.real * response.angle()


class Messages(nn.Module):
    """Positions that read from and write to others, by index tensors."""

    def __init__(self, count: int, way: int) -> None:
        super().__init__()
        ways = (
            "index_add",
            "scatter_add",
            "reduce",
            "put",
            "put_front",
            "gather",
            "along",
            "copy",
            "fill",
            "mask",
        )
        self.way = ways[way % len(ways)]
        self.register_buffer("start", torch.randint(0, count, (count + 2,)))
        self.register_buffer("end", torch.randint(0, count, (count + 2,)))

    def forward(self, x: Tensor) -> Tensor:
        rows, last = tokens(x), x.flatten(2)
        shape = (len(x), rows.size(1), rows.size(2))
        sent = rows[:, self.start]
        if self.way == "index_add":
            made = rows.new_zeros(shape).index_add_(1, self.end, sent)
        elif self.way == "scatter_add":
            made = torch.zeros(shape, dtype=x.dtype).scatter_add(1, self.end[:, None].expand_as(sent), sent)
        elif self.way == "reduce":
            index = self.end[None, :, None].expand_as(sent)
            made = rows.scatter_reduce(1, index, sent, "amax") + rows.scatter(-2, index[:, :2], 0.5)
        elif self.way == "put":
            made = last.clone()
            made[..., self.end[:1]] = last[..., self.start[:1]].exp()
            made = made.transpose(1, 2)
        elif self.way == "put_front":
            made = (
                rows.transpose(0, 1)
                .index_put((self.end,), sent.transpose(0, 1), accumulate=True)
                .transpose(0, 1)
            )
        elif self.way == "gather":
            made = rows.gather(1, rows.argsort(1))
        elif self.way == "along":
            made = torch.take_along_dim(rows, rows.argsort(-2), 1) + rows
        elif self.way == "copy":
            made = rows.index_copy(1, torch.arange(2), rows.exp()[:, :2])
        elif self.way == "fill":
            made = rows.index_fill(-2, self.end[:2], 0.3)
        else:
            made = rows.index_put((rows < 0,), rows.new_full((), 0.2))
        return made.transpose(1, 2).reshape(x.shape)


class InOrder(nn.Module):
    """Operators in which the order of positions counts."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = way % 8

    def forward(self, x: Tensor) -> Tensor:
        y = x.tanh()
        if self.way == 6:  # pairs of neighbours, in windows that overlap in memory
            rows = y.flatten(2).contiguous()
            pairs = rows.as_strided((*rows.shape[:2], rows.size(2) - 1, 2), (*rows.stride(), 1))
            return F.pad(pairs.amax(-1), (1, 0)).reshape(x.shape)
        if self.way == 7:  # turned half way in two steps, channels with the last positions
            turned = y.rot90(1, (1, -1)).sin().rot90(-3, (1, -1))
            return torch.select_scatter(turned, y[..., 0].flip(1), -1, 1)
        if self.way == 0:
            return y.cumsum(2) + y.cumsum(-1)
        if self.way == 1:
            return y.logcumsumexp(-1)
        if self.way == 2:
            return y.cummax(2)[0] + y.cummin(-1).values
        if self.way == 3:
            return torch.diff(y, dim=2, prepend=y[:, :, :1])
        if self.way == 4:
            return y.unsqueeze(-1).expand(*y.shape, y.shape[-1]).tril().sum(-1)
        return y.cumprod(-1) + y.renorm(2, 1, 0.5)


class Sampled(nn.Module):
    """Pictures made smaller and larger, or read at computed places."""

    def __init__(self, dims: int, way: int) -> None:
        super().__init__()
        self.dims, self.way = dims, way % 4

    def forward(self, x: Tensor) -> Tensor:
        sizes = x.shape[2:]
        if self.way == 0 and self.dims > 1:
            turn = torch.eye(self.dims, self.dims + 1, dtype=x.dtype).expand(len(x), -1, -1) * 0.8
            return F.grid_sample(x, F.affine_grid(turn, x.size(), align_corners=False), align_corners=False)
        if self.way == 1 and self.dims == 2:
            found, places = F.max_pool2d(x, 2, return_indices=True)
            return F.max_unpool2d(found, places, 2) + F.interpolate(found, sizes, mode="bicubic")
        if self.way == 2:
            smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[self.dims]
            pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[self.dims - 1]
            return F.interpolate(pool(x, 2), sizes, mode=smooth)
        return F.interpolate(F.interpolate(x, scale_factor=2, mode="nearest-exact"), sizes)


class Pointwise(nn.Module):
    """Functions of one and of two numbers at the same place."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.way = way % 8
        self.bound = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        bound = self.bound.view(-1, *(1,) * (x.dim() - 2))
        y, z = x.tanh(), x.flip(2).tanh()
        if self.way == 0:
            return torch.clamp(x, min=-bound, max=bound) + torch.clamp_max(x, bound)
        if self.way == 1:
            return torch.hypot(y, 1 + z) + torch.logaddexp(y, bound) + torch.xlogy(bound, 1.5 + z)
        if self.way == 2:
            return (
                y.sinh()
                + (0.5 * y).asin()
                + z.atan()
                + (0.3 + 0.2 * y).logit()
                + (0.5 * y).erfinv()
                + y.sinc()
            )
        if self.way == 3:
            return F.celu_(x * bound) + F.hardtanh_(x * 0.9) + torch.where(x > 0, 1.0, z)
        if self.way == 6:
            mantissa, exponent = torch.frexp(x)
            return (
                torch.special.entr(y.abs())
                + torch.igamma(bound.detach().abs(), z.square())
                + mantissa
                + exponent
            )
        if self.way == 7:
            marks = torch.arange(-1.0, 2.0, dtype=x.dtype)
            return y * torch.isin((2 * y).round(), marks) + torch.linalg.vander(0.5 * z, N=3).sum(-1)
        if self.way == 4:
            return (
                torch.nan_to_num(x).clip(-1, 1)
                + x.isfinite()
                + torch.bucketize(x, torch.arange(3.0, dtype=x.dtype))
            )
        return (
            torch.fmax(y, z)
            + torch.float_power(1.1 + z, bound).to(x.dtype)
            + torch.subtract(*torch.broadcast_tensors(y, bound))
        )


class OfAll(nn.Module):
    """Statistics of all channels of a place, of an example, or of everything."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.way = way % 12
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x.tanh()
        if self.way == 0:
            spread, mean = torch.var_mean(y, 1, correction=0, keepdim=True)
            return (y - mean) * torch.rsqrt(spread + 1)
        if self.way == 1:
            return y * torch.std_mean(y, (1, -1), keepdim=True)[1] + y.var(
                (-1, 1), correction=0, keepdim=True
            )
        if self.way == 2:
            picked = y.gather(1, y.argmin(1, keepdim=True)) + y.topk(1, 1).values
            return y * y.max(1, keepdim=True)[0] + y.min(1).values.unsqueeze(1) + picked
        if self.way == 3:
            low, high = y.aminmax(dim=1, keepdim=True)
            return (y - low) / (high - low + 1)
        if self.way == 4:
            return y * y.median(1, keepdim=True)[0] + y.median(-1, keepdim=True)[0] + y.median()
        if self.way == 5:
            summed = y.cumsum(1).cos() + y.logcumsumexp(1) + y.cumprod(1)
            return summed - y.logsumexp((1, 2), keepdim=True)
        if self.way == 6:
            return y * y.prod(1, keepdim=True) + (y > 0.5).any(1, keepdim=True) + (y < 0.9).all()
        if self.way == 7:
            return F.rms_norm(y.movedim(1, -1), self.weight.shape, self.weight, 1e-3).movedim(-1, 1)
        if self.way == 8:
            return y / (1 + torch.linalg.vector_norm(y, 3, (1, 2), keepdim=True)) + F.softmin(y, 1)
        if self.way == 9:
            return y * F.cosine_similarity(y, y.flip(2) + 1, dim=1).unsqueeze(1) + y.renorm(2, 0, 0.5)
        if self.way == 10:
            rows = tokens(y)
            mixed = torch.cdist(rows, rows.exp()) @ rows
            return mixed.transpose(1, 2).reshape(x.shape)
        return y * F.pairwise_distance(y.movedim(1, -1), y.flip(2).movedim(1, -1)).unsqueeze(1) + y.nansum()


class Covariance(nn.Module):
    """Correlations of positions over channels, or covariances of channels over positions or their trace."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = way % 3

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 2:
            rows = x.flatten(2).sum(2)
            return x * (1 + torch.trace(rows.t() @ rows).sqrt())
        y = x.tanh()
        if self.way == 0:
            rows = tokens(y)[0]
            return y + (torch.corrcoef(rows) @ rows).t().reshape(x.shape[1:])
        pairs = torch.cov(y.transpose(0, 1).flatten(1), correction=0).reshape(x.shape[1], x.shape[1])
        return y + (pairs @ y.flatten(2)).reshape(x.shape)


class AlongChannels(nn.Module):
    """Channels added up in order, or picked by value."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = way % 3

    def forward(self, x: Tensor) -> Tensor:
        y = x.tanh()
        if self.way == 0:
            return y.cumsum(1).cos() + y.logcumsumexp(1) + y.cumprod(1)
        if self.way == 1:
            return y * y.gather(1, y.argmin(1, keepdim=True)) + y.topk(1, 1).values
        best, places = y.max(1, keepdim=True)
        return y.scatter(1, places, 0.5 * best) + best


class Mixture(nn.Module):
    """A mixture of factors for the channels: each example chooses some by their scores."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.count, self.way = 4, ("index", "scatter", "one_hot", "best", "counts")[way % 5]
        self.router = nn.Linear(channels, self.count)
        self.factors = nn.Parameter(torch.randn(self.count, channels))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x.flatten(2).mean(2))
        weights, chosen = scores.softmax(-1).topk(2)
        if self.way == "index":
            made = (self.factors[chosen] * weights[..., None]).sum(1)
        elif self.way == "scatter":
            made = torch.zeros_like(scores).scatter(1, chosen, weights) @ self.factors
        elif self.way == "one_hot":
            made = (F.one_hot(chosen, self.count).sum(1) * scores) @ self.factors
        elif self.way == "best":
            best, place = scores.max(-1)
            made = best[:, None] * F.embedding(place, self.factors)
        else:
            count = torch.histc(chosen.flatten().to(x), self.count, 0, self.count - 1)
            made = torch.index_select(self.factors, 0, chosen[:, 0]) * (count.cumsum(0) * count).sum()
        return x * beside(x, made)


class Words(nn.Module):
    """Bags of words that scale channels."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, channels, mode=("sum", "mean", "max")[way % 3])
        self.register_buffer("words", torch.randint(0, 7, (2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return x * beside(x, self.bag(self.words))


class Rounded(nn.Module):
    """Numbers rounded to a grid, one for all or one for each channel."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.rand(channels) * 0.1 + 0.05)
        self.register_buffer("zeros", torch.randint(-3, 4, (channels,), dtype=torch.int32))
        self.single = way % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        if self.single:
            return torch.fake_quantize_per_tensor_affine(y, 0.07, 3, -128, 127).to(x.dtype)
        return torch.fake_quantize_per_channel_affine(y, self.steps.float(), self.zeros, 1, -128, 127).to(
            x.dtype
        )


class Table(nn.Module):
    """Rows of a table that a layer reads without any layer before it."""

    def __init__(self, channels: int, width: int, way: int) -> None:
        super().__init__()
        self.table, self.way = nn.Embedding(5, width), way % 3
        self.layer = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table.weight
        made = self.layer(rows if self.way == 0 else rows[1:4] if self.way == 1 else rows.tanh()).tanh()
        return x * beside(x, made.mean(0, keepdim=True))


class Sides(nn.Module):
    """Two parts with heads, laid side by side to a width that the code multiplies out."""

    def __init__(self, channels: int, width: int, way: int) -> None:
        super().__init__()
        self.heads, self.width, self.way = 1 + width % 4, 2, way
        made = self.heads * self.width
        self.one, self.two = nn.Linear(channels, made), nn.Linear(channels, made)
        self.back = nn.Linear(2 * made, channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = tokens(x)
        one = self.one(rows).view(*rows.shape[:2], -1, self.width)
        two = self.two(rows).view(*rows.shape[:2], self.heads, self.width).tanh()
        both = self.heads * self.width * 2 if self.way % 2 else 2 * (self.heads * self.width)
        made = self.back(torch.cat([one, two], 2).view(*rows.shape[:2], both))
        return x + made.transpose(1, 2).reshape(x.shape)


class Scan(nn.Module):
    """A state that starts from zeros as large as one position, and decays."""

    def __init__(self, channels: int, width: int, way: int) -> None:
        super().__init__()
        self.into, self.back, self.way = nn.Linear(channels, width), nn.Linear(width, channels), way % 3

    def forward(self, x: Tensor) -> Tensor:
        rows = self.into(tokens(x))
        like = rows[:, 0] if self.way == 0 else rows[..., 0, :] if self.way == 1 else rows[1:, -1, :]
        state = torch.zeros((len(x), *like.shape[1:]), dtype=x.dtype)
        states = torch.zeros_like(rows)
        for step in range(rows.shape[1]):
            state = 0.5 * state + rows[:, step]
            states[:, step] = state
        return x + self.back(states).transpose(1, 2).reshape(x.shape)


class Composed(nn.Module):
    """Operators that PyTorch writes in terms of others."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.parts = 2 - channels % 2
        self.way = way % 9

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 7:
            turned = torch.transpose_copy(x, 1, 2).mul_(2)
            return turned.transpose(1, 2) + torch.unfold_copy(x, 2, 1, 1)[..., 0]
        if self.way == 5:
            return torch.kron(x.contiguous(), x.new_tensor([1, 0.5]).view(1, 2, *(1,) * (x.dim() - 2)))
        if self.way == 6:
            rows = tokens(x)
            return x + beside(x, torch.cross(rows[:, :3], rows[:, 1:4].sin() + 1, dim=1).sum(1))
        if self.way == 4:
            return torch.gradient(x, dim=-1)[0] + x
        if self.way == 0:
            return x.moveaxis(1, -1).sin().moveaxis(-1, 1)
        if self.way == 1:
            return torch.hstack([x, x.tanh()])
        if self.way == 2:
            return torch.cat(torch.hsplit(x, self.parts)[::-1], 1)
        if self.way == 3:
            return torch.atleast_3d(x).ravel().view(x.shape) + torch.vstack(torch.vsplit(x, 2))
        return x * beside(x, torch.column_stack([x.flatten(1)[:, :1], x.flatten(2).sum(2)])[:, 1:])


class Written(nn.Module):
    """A part of the channels that is replaced in place, or portions that change places."""

    def __init__(self, channels: int, way: int) -> None:
        super().__init__()
        self.part, self.portions, self.way = 1 + way % (channels - 1), 2 if channels % 2 == 0 else 1, way % 4

    def forward(self, x: Tensor) -> Tensor:
        if self.way == 3:
            rows = tokens(x)
            chosen = torch.arange(rows.shape[1])[None, :, None] % 2 == 0
            filled = rows.masked_scatter(chosen.expand_as(rows), rows.sin())
            return filled.transpose(1, 2).reshape(x.shape)
        if self.way == 2:
            size = x.shape[1] // self.portions
            return torch.cat([x[:, i * size : (i + 1) * size] * (i + 2) for i in range(self.portions)], 1)
        y = x.clone()
        if self.way == 1:
            y[:, self.part :] += 1
        y[:, : self.part] = y[:, : self.part].tanh()
        return y
