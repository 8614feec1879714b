"""Small networks, each with one family of operators between layers, beside those in ``trap_networks.py``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function = Callable[..., Tensor]


class Net(nn.Module):
    """A function of the network and its input; parameters, buffers, modules and numbers by name."""

    def __init__(self, function: Function, **parts: object) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(self, *x)


class Conv1D(nn.Module):
    """Linear layer with a weight of shape (in, out), as in GPT-2."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = parameter(nx, nf), parameter(nf)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(shape)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def lines(between: Callable[[Tensor], Tensor], made: int = 8, read: int = 8) -> Callable[[], Net]:
    """Two linear layers ``a`` and ``b``, with something between them."""
    return lambda: Net(
        lambda s, x: s.b(between(torch.tanh(s.a(x)))), a=nn.Linear(6, made), b=nn.Linear(read, 3)
    )


def pictures(between: Callable[[Tensor], Tensor]) -> Callable[[], Net]:
    """Two convolutions ``a`` and ``b``, with something between them."""
    return lambda: Net(
        lambda s, x: s.b(between(torch.tanh(s.a(x)))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 3, 1)
    )


def over_steps(s: nn.Module, x: Tensor) -> Tensor:
    """A cell whose state goes on from step to step."""
    state = x.new_zeros(len(x), s.g.hidden_size)
    for step in range(x.shape[1]):
        state = s.g(s.a(x[:, step]).relu(), state)
    return s.b(state)


def long_memory(s: nn.Module, x: Tensor) -> Tensor:
    """A cell with two states, which are zeros at first."""
    state = None
    for step in range(x.shape[1]):
        state = s.g(s.a(x[:, step]).relu(), state)
    assert state is not None
    return s.b(torch.cat(state, 1))


def rotated(y: Tensor) -> Tensor:
    """Complex numbers made of a part of the positions, turned, and taken apart again."""
    turned = torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(
        torch.ones(4, dtype=y.dtype), torch.arange(4, dtype=y.dtype)
    )
    return torch.view_as_real(turned).flatten(-2)


def routed(s: nn.Module, x: Tensor) -> Tensor:
    """Rows picked by a mask, and by places that depend on values."""
    y = torch.tanh(s.a(x))
    mine, (rows,) = x[:, 0] > 0, torch.where(x[:, 1] > -0.5)
    result = torch.zeros_like(y)
    result[mine] = y[mine].sin()
    return s.b(result.index_add(0, rows, y[rows].exp()))


def rows_of_pairs(s: nn.Module, x: Tensor) -> Tensor:
    """Complex numbers in the memory of wider rows, which must be of an even width."""
    rest, pairs = torch.split(s.a(x), [s.rest, 2], dim=-1)
    turned = torch.view_as_real(torch.view_as_complex(pairs.unflatten(-1, (-1, 2))) * (0.6 + 0.8j))
    return s.b(rest.sin()) + turned.sum((1, 2))[:, None]


def many_unary(y: Tensor) -> Tensor:
    """Functions of one number."""
    small = y.sigmoid()  # between zero and one, where all of these are defined
    results = [
        small.logit(),
        small.erfinv(),
        small.asin() + small.acos() + small.atan() + small.atanh() + (1 + small).acosh() + small.asinh(),
        small.sinh()
        + small.cosh()
        + small.tan()
        + small.sinc()
        + small.i0()
        + small.lgamma()
        + small.digamma(),
        (5 * y).frac() + (5 * y).trunc() + (5 * y).fix() + y.sgn() + y.signbit(),
        small.log2() + small.log10() + small.exp2() + small.rad2deg() + small.deg2rad() + small.positive(),
        torch.special.expit(y) + torch.special.erf(y) + torch.special.log_ndtr(y),
        y.nan_to_num() + y.isinf() + y.isfinite() + y.isposinf() + y.isneginf(),
        F.celu(y)
        + F.celu_(y.clone())
        + F.hardtanh_(y.clone())
        + F.logsigmoid(y)
        + F.rrelu(y)
        + F.threshold(y, 0.1, 2),
        y.absolute().negative().clip(-0.5, 0.5).clamp_(max=0.4),
        torch.bucketize(y, torch.tensor([-0.5, 0.0, 0.5], dtype=y.dtype)) + torch.where(y > 0, 1.0, y),
        y.float().to(y.dtype) + y.float_power(2).to(y.dtype),
    ]
    results.append(special_functions(y))
    return torch.stack(results).sum(0)


def special_functions(y: Tensor) -> Tensor:
    """Functions of one number that have names of their own."""
    s, positive = torch.special, y.abs() + 0.5
    results = [
        s.airy_ai(y) + s.bessel_j0(y) + s.bessel_j1(y) + s.bessel_y0(positive) + s.bessel_y1(positive),
        s.modified_bessel_i0(y) + s.modified_bessel_i1(y) + s.spherical_bessel_j0(y),
        s.modified_bessel_k0(positive) + s.modified_bessel_k1(positive),
        s.scaled_modified_bessel_k0(positive) + s.scaled_modified_bessel_k1(positive),
        s.entr(positive) + s.erfcx(y) + s.multigammaln(positive + 1, 2),
        torch.frexp(y).mantissa + torch.frexp(y).exponent,
    ]
    return torch.stack(results).sum(0)


def polynomials(y: Tensor, z: Tensor) -> Tensor:
    """Polynomials and other functions of two numbers that have names of their own."""
    s, degree, positive = torch.special, (3 * z.abs()).floor(), y.abs() + 0.5
    results = [
        s.chebyshev_polynomial_t(y, degree) + s.chebyshev_polynomial_u(y, degree),
        s.chebyshev_polynomial_v(y, degree) + s.chebyshev_polynomial_w(y, degree),
        s.shifted_chebyshev_polynomial_t(positive, degree)
        + s.shifted_chebyshev_polynomial_u(positive, degree),
        s.shifted_chebyshev_polynomial_v(positive, degree)
        + s.shifted_chebyshev_polynomial_w(positive, degree),
        s.hermite_polynomial_h(y, degree) + s.hermite_polynomial_he(y, degree),
        s.laguerre_polynomial_l(y, degree) + s.legendre_polynomial_p(y, degree),
        torch.igamma(positive, z.abs()) + torch.igammac(z.abs() + 0.1, positive),
        s.zeta(positive + 1, z.abs() + 1),
        torch.gcd(*whole(y, z)) + torch.lcm(*whole(y, z)) + (whole(y, z)[0] ^ whole(y, z)[1]),
    ]
    return torch.stack([result.to(y.dtype) for result in results]).sum(0)


def whole(*numbers: Tensor) -> list[Tensor]:
    """Whole numbers from numbers between minus one and one."""
    return [(6 * item).round().long() for item in numbers]


def many_nary(y: Tensor, z: Tensor) -> Tensor:
    """Functions of two numbers at the same place."""
    small, other = y.sigmoid(), z.sigmoid()
    results = [
        torch.xlogy(small, other) + torch.hypot(y, z) + torch.heaviside(y, z) + torch.copysign(y, z),
        torch.logaddexp(y, z) + torch.logaddexp2(y, z) + torch.fmax(y, z) + torch.fmin(y, z),
        torch.float_power(small, other) + torch.atan2(y, z) + torch.ldexp(y, z.sign()) + torch.isclose(y, z),
        torch.clamp(y, min=-other, max=other) + torch.clamp_min(y, z) + torch.lerp(y, z, 0.3),
        torch.complex(y, z).abs()
        + torch.polar(small, z).real
        + torch.view_as_real(torch.complex(y, z)).sum(-1),
        torch.complex(y, z).conj().imag + torch.complex(y, z).angle(),
        torch.multiply(y, z) + torch.subtract(y, z) + torch.divide(y, other) + torch.greater(y, z),
        torch.add(*torch.broadcast_tensors(y, z[:1])),
    ]
    results.append(polynomials(y, z))
    return torch.stack([result.to(y.dtype) for result in results]).sum(0)


def scattered(s: nn.Module, x: Tensor) -> Tensor:
    """Messages along edges, added up at their ends in five ways."""
    message = s.a(x)[s.start].tanh()
    ends = s.end[:, None].expand_as(message)
    found = message.new_zeros(len(x), message.size(1)).scatter_add_(0, ends, message)
    found = found + message.new_zeros(len(x), message.size(1)).index_add_(0, s.end, message)
    found = found + torch.zeros(len(x), message.size(1), dtype=x.dtype).scatter_reduce(
        0, ends, message, "amax"
    )
    found = found + message.new_ones(len(x), message.size(1)).index_put((s.end,), message, accumulate=True)
    found = found + message.new_zeros(len(x), message.size(1)).scatter(0, ends[:3], 2.0)
    return s.b(found.relu())


def written_in_place(s: nn.Module, x: Tensor) -> Tensor:
    """Zeros that are written to and then used by their own name; indices repeated for each channel."""
    message = s.a(x)[s.start].tanh()
    found = message.new_zeros(len(x), message.size(1))
    found.index_add_(0, s.end, message)
    ends = s.end.unsqueeze(1).repeat(1, message.size(1))
    found = found + torch.zeros(len(x), message.size(1)).to(x).scatter_reduce(
        0, ends, message, "mean", include_self=False
    )
    return s.b(found.scatter_(0, s.end.unsqueeze(1).expand(-1, message.size(1))[:1], message))


def two_cells(s: nn.Module, x: Tensor) -> Tensor:
    """Cells of two widths, one behind the other; both states of one go on."""
    state = (x.new_zeros(len(x), s.g.hidden_size), x.new_zeros(len(x), s.g.hidden_size))
    last = None
    for step in range(x.shape[1]):
        state = s.g(x[:, step], state)
        last = s.h(state[0] + state[1], last)
    assert last is not None
    return s.b(last)


def adapted(s: nn.Module, x: Tensor) -> Tensor:
    """A weight to which a product of two small ones is added, then bounds for each channel."""
    y = F.linear(x, s.w + s.two @ s.one)
    return s.b(torch.where(s.seen, y.clamp(s.low, s.high), 0.0).topk(3, 0)[0])


def of_fixed_indices(s: nn.Module, x: Tensor) -> Tensor:
    message = s.a(x)[s.start]
    ends = s.end.unsqueeze(1).expand(-1, 8)
    return s.b(message.new_zeros(len(x), message.size(1)).scatter_add(0, ends, message))


def of_few(s: nn.Module, x: Tensor) -> Tensor:
    return s.b(s.a(x).gather(0, s.end[:4, None].expand(-1, 3)))


def edges() -> dict[str, Tensor]:
    return {"start": torch.tensor([0, 1, 2, 3, 4, 0, 2]), "end": torch.tensor([1, 2, 0, 4, 3, 3, 1])}


def gathered(s: nn.Module, x: Tensor) -> Tensor:
    """Rows picked for every channel apart, rows filled and rows overwritten."""
    y = s.a(x).tanh()
    places = y.argsort(0)
    y = y.gather(0, places) + torch.take_along_dim(y.exp(), s.end[:5, None], 0)
    y = y.index_fill(0, s.start[:2], 0.5).index_copy(0, s.end[:2], y[:2].exp())
    y = y.index_put((s.end[:2],), y.new_full((1,), 0.7))
    return s.b(y.index_put((y < 0,), y.new_full((), 0.1)))


def in_order(s: nn.Module, x: Tensor) -> Tensor:
    """Running sums, differences and triangles over positions."""
    y = s.a(x).tanh()
    y = y.cumsum(1) + y.logcumsumexp(-2) + y.cummax(1)[0] + torch.diff(y, dim=1, prepend=y[:, :1])
    upright = y.transpose(1, 2)[..., None].expand(-1, -1, -1, y.shape[1])
    return s.b(upright.tril().sum(-1).transpose(1, 2) + upright.triu().amax(-1).transpose(1, 2))


def sampled(s: nn.Module, x: Tensor) -> Tensor:
    """Pictures bent by an affine map."""
    y = s.a(x)
    turn = torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3) * 0.7
    bent = F.grid_sample(y, F.affine_grid(turn, y.size(), align_corners=False), align_corners=False)
    return s.b(
        bent
        + F.grid_sample(
            y, F.affine_grid(turn, [len(x), 8, 4, 4], align_corners=True), "nearest", align_corners=True
        )
    )


def unpooled(y: Tensor) -> Tensor:
    """The largest numbers of a picture, put back where they were, and made larger in other ways."""
    found, places = F.max_pool2d(y, 2, return_indices=True)
    again = F.max_unpool2d(found, places, 2)
    samples = torch.full((y.shape[0], y.shape[1], 2), 0.4, dtype=y.dtype)
    small = F.fractional_max_pool2d(y, 2, output_size=2, _random_samples=samples)
    sizes = {"size": y.shape[2:]}
    return (
        again
        + F.interpolate(small, **sizes)
        + F.interpolate(found, mode="bicubic", **sizes)
        + F.interpolate(found, mode="bilinear", antialias=True, **sizes)
        + F.interpolate(small, mode="nearest-exact", **sizes)
        + F.interpolate(F.adaptive_max_pool2d(y, 3), mode="bilinear", **sizes)
    )


def quantised(s: nn.Module, x: Tensor) -> Tensor:
    """Weights and activations rounded, with one step for all and with one for each channel."""
    weight = torch.fake_quantize_per_channel_affine(s.a.weight, s.steps, s.zeros, 0, -128, 127)
    y = F.linear(x, weight, s.a.bias)
    y = torch.fake_quantize_per_tensor_affine(y, 0.05, 3, -128, 127)
    return s.b(torch.fake_quantize_per_channel_affine(y.relu(), s.steps, s.zeros, 1, -128, 127))


def products(s: nn.Module, x: Tensor) -> Tensor:
    """Scores by a vector in all the ways that there are, and outer products."""
    y = s.a(x).tanh()
    score = y @ s.v + torch.mv(y, s.v) + s.v @ y.t() + torch.inner(y, s.v) + torch.tensordot(y, s.v, 1)
    score = score + torch.addmv(score, y, s.v) + torch.dot(y.mean(0), s.v) + torch.vdot(s.v, y.amax(0))
    return score[:, None] * s.b(torch.outer(score, s.w.square()))


def transformed(y: Tensor) -> Tensor:
    """Fourier transforms over positions and back."""
    one = torch.fft.irfft(
        torch.fft.rfft(y, dim=2) * torch.tensor(0.5 + 0.5j, dtype=torch.complex128), n=4, dim=2
    )
    two = torch.fft.ifft2(torch.fft.fft2(y) * torch.tensor(0.3 + 1j, dtype=torch.complex128)).real
    three = torch.fft.irfftn(torch.fft.rfftn(y, s=(4, 4)), s=(4, 4)) + torch.fft.fftshift(y, dim=(-1,))
    return one + two + three


def complex_layer() -> Net:
    return Net(
        lambda s, x: s.b(torch.view_as_real(s.a(x.to(torch.complex128))).sum(-1)),
        a=nn.Linear(6, 8, dtype=torch.complex128),
        b=nn.Linear(8, 3),
    )


def experts(s: nn.Module, x: Tensor) -> Tensor:
    """Two small networks side by side, as one stack of matrices."""
    y = torch.baddbmm(s.one_bias, x.expand(2, -1, -1), s.one).relu()
    return torch.baddbmm(s.two_bias, y, s.two).sum(0)


def cells(kind: type[nn.Module], function: Function = over_steps, read: int = 7, **options: object) -> Net:
    return Net(function, a=nn.Linear(6, 5), g=kind(5, 7, **options), b=nn.Linear(read, 3))


def overlapping(y: Tensor) -> Tensor:
    """Each position added to the next one, in a view of memory with windows that overlap."""
    rows, step, one = y.stride()
    return y.as_strided((len(y), y.size(1) - 1, 2, y.size(2)), (rows, step, step, one)).sum(2)


def overlapping_columns(y: Tensor) -> Tensor:
    """The same for positions that lie next to each other in memory."""
    y = y.mT.contiguous()
    return y.as_strided((*y.shape[:2], y.size(2) - 1, 2), (*y.stride(), 1)).sum(3).mT


def written_in_part(s: nn.Module, x: Tensor) -> Tensor:
    """The first and the last position replaced, where a mask of the size of this range says."""
    y = torch.tanh(s.a(x))
    first = y[:, :1]
    hidden = torch.ones(1, 1, 1, dtype=torch.bool).expand(first.size())
    y[:, :1] = torch.full_like(first, 0.5).where(hidden, first)
    last = y[:, -1:]
    y[:, -1:] = torch.full_like(last, -0.5).where(hidden, last)
    return s.b(y)


def replaced(y: Tensor) -> Tensor:
    """Positions and ranges of positions replaced by others, and differences of neighbours."""
    one = torch.select_scatter(y, y[:, 0].sin(), 1, 2)
    two = torch.slice_scatter(y.mT, y.mT[..., :2].exp(), 2, 1, 3).mT
    three = torch.select_scatter(torch.zeros_like(y), y[0], 0, 1)
    return one + two + three + torch.gradient(y, dim=1)[0]


def crossed(y: Tensor) -> Tensor:
    """Cross products over three positions, found by their number or by their place."""
    three, other = y[:, :3], y[:, 1:].sin()
    return torch.linalg.cross(three, other, dim=1) + torch.cross(three, other[:1], dim=-2)


def turned(y: Tensor) -> Tensor:
    """Planes of positions and channels turned to both sides, side by side."""
    return torch.cat([y.rot90(1, (1, 2)).mT, y.rot90(-1, (1, 2)).mT, y.rot90(2, (2, 1))], -1)


def picked_and_reduced(y: Tensor, marks: Tensor) -> Tensor:
    """Numbers that are in a set, polynomials of numbers, and sums of runs of rows."""
    y = y * torch.isin((2 * y).round() / 2, marks) + torch.isin((2 * y).round(), 1) + torch.isin(0.0, marks)
    y = y + torch.linalg.vander(y, N=4).sum(-1)
    return torch.segment_reduce(y, "mean", lengths=torch.tensor([2, 3]))


def copied_views(y: Tensor) -> Tensor:
    """Parts and other orders of a value that are written to as values of their own."""
    windows = torch.unfold_copy(y, 1, 3, 1).mean(-1)
    turned = torch.permute_copy(y, (2, 0, 1)).mul_(2)
    first, *_ = torch.split_copy(y, 2, 1)
    row = torch.select_copy(y, 1, 1).exp_()
    return torch.cat([windows, turned.movedim(0, -1)[:, :2], first + row[:, None] + y[:, :2]], -1)


def blocks(s: nn.Module, x: Tensor) -> Tensor:
    """Weights, and then channels, as blocks on a diagonal."""
    y = torch.tanh(x @ torch.block_diag(s.one, s.two))
    return s.b(torch.block_diag(y, y[0].sin()))


LINES, TOKENS, PICTURE = (5, 6), (3, 4, 6), (2, 3, 4, 4)
WORDS = (4, 5)


def sides(s: nn.Module, x: Tensor) -> Tensor:
    """Two parts with heads, of which only one says how many."""
    one, two = s.a(x).view(len(x), -1, s.width), s.c(x).view(len(x), s.heads, s.width).tanh()
    return s.b(torch.cat([one, two], 1).view(len(x), s.heads * s.width * 2))


def scanned(s: nn.Module, x: Tensor) -> Tensor:
    """A state that starts from zeros as large as one position."""
    y = s.a(x)
    state = torch.zeros(y[:, 0].shape, dtype=x.dtype)
    for step in range(y.shape[1]):
        state = 0.5 * state + y[:, step]
    return s.b(state)


def written(s: nn.Module, x: Tensor) -> Tensor:
    """A part of the channels is replaced in place, and another one scaled."""
    y = s.a(x).tanh().clone()
    y[:, : s.part] = s.c(y[:, : s.part])
    y[..., s.part :].mul_(2)
    return s.b(y)


def portions(s: nn.Module, x: Tensor) -> Tensor:
    """Equal portions, each with borders that are multiples of a quotient."""
    y = s.a(x).tanh()
    size = y.shape[1] // s.portions
    return s.b(sum(torch.sin((i + 1) * y[:, i * size : (i + 1) * size]) for i in range(4)))


def windows(s: nn.Module, x: Tensor) -> Tensor:
    """Heads as windows that lie side by side."""
    heads = s.a(x).unfold(-1, s.width, s.width)
    return s.b((heads.sum(-1, keepdim=True) * heads).flatten(1))


CONTRACTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, int]]] = {
    "planes turned by right angles": (
        pictures(lambda y: y.rot90(1, (2, 3)) + y.rot90(2, (3, 2)).exp() + y.rot90(3, (-2, -1)).sin()),
        PICTURE,
        {"a": 8},
    ),
    "convolutions with steps in front": (
        lambda: Net(
            lambda s, x: s.b(torch.conv_tbc(torch.tanh(s.a(x)), s.w, s.c, 1).relu()),
            a=nn.Linear(6, 8),
            w=parameter(3, 8, 5),
            c=parameter(5),
            b=nn.Linear(5, 3),
        ),
        TOKENS,
        {"a": 8, "w": 5},
    ),
    "members of a set, powers and runs": (
        lambda: Net(
            lambda s, x: s.b(picked_and_reduced(torch.tanh(s.a(x)), s.marks)),
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
            marks=torch.tensor([-1.0, 0.0, 0.5]),
        ),
        LINES,
        {"a": 8},
    ),
    "copies of views": (lines(copied_views, 8, 24), TOKENS, {"a": 8}),
    "channels turned by right angles": (lines(turned, 8, 24), TOKENS, {"a": 8}),
    "cross products": (lines(crossed), TOKENS, {"a": 8}),
    "blocks on a diagonal": (
        lambda: Net(blocks, one=parameter(4, 5), two=parameter(2, 3), b=nn.Linear(16, 3)),
        LINES,
        {"one": 5, "two": 3},
    ),
    "kronecker products": (
        lines(
            lambda y: torch.cat([y.kron(y.new_tensor([[1, 2]])), y.new_tensor([[3, 4]]).kron(y)], 1), 8, 32
        ),
        LINES,
        {"a": 8},
    ),
    "sums of products of matrices": (
        lambda: Net(
            lambda s, x: torch.addbmm(s.c, torch.addbmm(s.a, x, s.one).tanh().expand(2, -1, -1), s.two),
            a=parameter(8),
            one=parameter(3, 6, 8),
            two=parameter(2, 8, 3),
            c=parameter(4, 3),
        ),
        TOKENS,
        {"one": 8},
    ),
    "outer products added up": (
        lambda: Net(
            lambda s, x: s.b(torch.addr(s.c, x.mean(1), s.w)),
            c=parameter(8),
            w=parameter(8),
            b=nn.Linear(8, 3),
        ),
        LINES,
        {"w": 8},
    ),
    "parts replaced": (lines(replaced), TOKENS, {"a": 8}),
    "sequences padded": (
        lines(lambda y: nn.utils.rnn.pad_sequence([y[0, :2], y[1].sin()], batch_first=True)),
        TOKENS,
        {"a": 8},
    ),
    "transposed matrices": (lines(lambda y: y.mT.adjoint().mT.mH), LINES, {"a": 8}),
    "views of memory that overlap": (lines(overlapping), TOKENS, {"a": 8}),
    "views of memory with positions last": (lines(overlapping_columns), TOKENS, {"a": 8}),
    "ranges that are written to": (
        lambda: Net(written_in_part, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        TOKENS,
        {"a": 8},
    ),
    "transposed weights": (
        lambda: nn.Sequential(Conv1D(8, 6), nn.GELU(), Conv1D(7, 8), nn.Tanh(), Conv1D(3, 7)),
        TOKENS,
        {"0": 8, "2": 7},
    ),
    "products of matrices": (
        lambda: Net(
            lambda s, x: torch.mm(torch.mm(x, s.one).relu(), s.two), one=parameter(6, 8), two=parameter(8, 3)
        ),
        LINES,
        {"one": 8},
    ),
    "stacks of weights": (
        lambda: Net(
            experts,
            one=parameter(2, 6, 8),
            two=parameter(2, 8, 3),
            one_bias=parameter(2, 1, 8),
            two_bias=parameter(2, 1, 3),
        ),
        LINES,
        {"one": 8},
    ),
    "a table that a layer reads": (
        lambda: Net(
            lambda s, x: s.b(s.a(x) * s.c(s.e.weight[1:3]).sum(0)),
            a=nn.Linear(6, 8),
            e=nn.Embedding(4, 5),
            c=nn.Linear(5, 8),
            b=nn.Linear(8, 3),
        ),
        LINES,
        {"a": 8, "e": 5},
    ),
    "a weight of low rank": (
        lambda: Net(lambda s, x: F.linear(x, s.u @ s.v), u=parameter(3, 8), v=parameter(8, 6)),
        LINES,
        {"u": 8},
    ),
    "operators of operators": (
        lambda: Net(
            lambda s, x: s.b(torch.hstack([s.a(x).fliplr().moveaxis(0, -1).mT, *torch.hsplit(s.c(x), 2)])),
            a=nn.Linear(6, 8),
            c=nn.Linear(6, 10),
            b=nn.Linear(18, 3),
        ),
        LINES,
        {"a": 8, "c": 5},
    ),
    "ranges of two dimensions": (
        lambda: Net(
            lambda s, x: s.b(
                torch.cat([(y := s.a(x).tanh())[:, 1:, : s.part].sin(), y[:, :-1, s.part :]], -1)
            ),
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
            part=3,
        ),
        TOKENS,
        {"a": 3, "a#2": 5},
    ),
    "slices written in place": (
        lambda: Net(written, a=nn.Linear(6, 8), c=nn.Linear(3, 3), b=nn.Linear(8, 3), part=3),
        LINES,
        {"a": 3, "a#2": 5},
    ),
    "portions of a quotient": (
        lambda: Net(portions, a=nn.Linear(6, 12), b=nn.Linear(3, 3), portions=4),
        LINES,
        {"a": 3},
    ),
    "windows side by side": (
        lambda: Net(windows, a=nn.Linear(6, 12), b=nn.Linear(12, 3), width=3),
        LINES,
        {"a": 4},
    ),
    "diagonal matrices": (
        lambda: Net(
            lambda s, x: s.b(
                s.a(x) @ torch.diag(s.d) + torch.diagonal(torch.diag_embed(s.a(x).sin()), dim1=1, dim2=2)
            ),
            a=nn.Linear(6, 8),
            d=parameter(8),
            b=nn.Linear(8, 3),
        ),
        LINES,
        {"a": 8},
    ),
    "quantiles of positions": (
        lambda: Net(
            lambda s, x: s.b(
                s.a(x).quantile(0.5, dim=1) + s.a(x).quantile(s.q, dim=1, keepdim=True).sum((0, 2))
            ),
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
            q=torch.tensor([0.25, 0.75]),
        ),
        TOKENS,
        {"a": 8},
    ),
    "sides of heads": (
        lambda: Net(sides, a=nn.Linear(6, 12), c=nn.Linear(6, 12), b=nn.Linear(24, 3), heads=4, width=3),
        LINES,
        {"a": 4},
    ),
    "zeros of an indexed size": (
        lambda: Net(scanned, a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        TOKENS,
        {"a": 8},
    ),
    "products with vectors": (
        lambda: Net(products, a=nn.Linear(6, 8), v=parameter(8), w=parameter(7), b=nn.Linear(7, 3)),
        LINES,
        {"a": 8, "w": 7},
    ),
    "two inputs of one layer": (
        lambda: Net(
            lambda s, x: s.c(s.g(s.a(x).tanh(), s.b(x).tanh()).relu()),
            a=nn.Linear(6, 8),
            b=nn.Linear(6, 7),
            g=nn.Bilinear(8, 7, 5),
            c=nn.Linear(5, 3),
        ),
        LINES,
        {"a": 8, "b": 7, "g": 5},
    ),
    "gru cell": (lambda: cells(nn.GRUCell), TOKENS, {"a": 5, "g": 7}),
    "gru cell without biases": (lambda: cells(nn.GRUCell, bias=False), TOKENS, {"a": 5, "g": 7}),
    "lstm cell": (lambda: cells(nn.LSTMCell, long_memory, 14), TOKENS, {"a": 5, "g": 7}),
    "plain cell": (lambda: cells(nn.RNNCell), TOKENS, {"a": 5, "g": 7}),
    "plain cell with rectifier": (lambda: cells(nn.RNNCell, nonlinearity="relu"), TOKENS, {"a": 5, "g": 7}),
    "fourier transforms": (pictures(transformed), PICTURE, {"a": 8}),
    "complex numbers": (complex_layer, LINES, {"a": 8}),
    "a channel picked for its shape": (
        lines(lambda y: y + y.new_zeros(y[:, -1].shape[0], 1)),
        LINES,
        {"a": 8},
    ),
    "windows one channel wide": (
        lines(lambda y: F.avg_pool2d(y[:, None], (2, 1), (2, 1)) - F.max_pool2d(y[:, None], (2, 1), (2, 1))),
        TOKENS,
        {"a": 8},
    ),
    "queries that are learned and repeated for each example": (
        lambda: Net(
            lambda s, x: s.b(s.m(s.q.repeat(len(x), 1, 1), *[torch.tanh(s.a(x))] * 2)[0]),
            a=nn.Linear(6, 8),
            m=nn.MultiheadAttention(8, 4, batch_first=True),
            q=parameter(1, 3, 8),
            b=nn.Linear(8, 3),
        ),
        TOKENS,
        {"a": 4, "m.out_proj": 8},
    ),
    "complex numbers of positions": (
        pictures(lambda y: rotated(y.flatten(2)[..., :8]).unflatten(2, (2, 4))),
        PICTURE,
        {"a": 8},
    ),
    "rows of pairs": (
        lambda: Net(rows_of_pairs, a=nn.Linear(6, 10), b=nn.Linear(8, 3), rest=8),
        LINES,
        {"a": 4},
    ),
    "routed": (lambda: Net(routed, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), LINES, {"a": 8}),
    "scattered": (
        lambda: Net(scattered, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **edges()),
        LINES,
        {"a": 8},
    ),
    "written in place": (
        lambda: Net(written_in_place, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **edges()),
        LINES,
        {"a": 8},
    ),
    "two cells": (
        lambda: Net(two_cells, g=nn.LSTMCell(6, 7), h=nn.GRUCell(7, 5), b=nn.Linear(5, 3)),
        TOKENS,
        {"g": 7, "h": 5},
    ),
    "a cell without a batch": (
        lambda: Net(
            lambda s, x: s.b(s.g(s.a(x[0]).tanh())), a=nn.Linear(6, 5), g=nn.GRUCell(5, 7), b=nn.Linear(7, 3)
        ),
        (1, 6),
        {"a": 5, "g": 7},
    ),
    "adapted weights and bounds": (
        lambda: Net(
            adapted,
            w=parameter(8, 6),
            one=parameter(4, 6),
            two=parameter(8, 4),
            b=nn.Linear(8, 3),
            low=-torch.rand(8),
            high=torch.rand(1),
            seen=torch.arange(8) % 3 > 0,
        ),
        LINES,
        {"two": 4, "two#2": 8},
    ),
    "gathered": (lambda: Net(gathered, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **edges()), LINES, {"a": 8}),
    "in order": (lambda: Net(in_order, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), TOKENS, {"a": 8}),
    "sampled": (lambda: Net(sampled, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 3, 1)), PICTURE, {"a": 8}),
    "unpooled": (pictures(unpooled), PICTURE, {"a": 8}),
    "functions of one number": (lines(many_unary), LINES, {"a": 8}),
    "functions of two numbers": (
        lambda: Net(
            lambda s, x: s.b(many_nary(s.a(x).tanh(), s.c(x).tanh())),
            a=nn.Linear(6, 8),
            c=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
        ),
        LINES,
        {"a": 8},
    ),
    "a mesh": (
        lambda: Net(
            lambda s, x: s.b(torch.mul(*torch.meshgrid(s.a(x).mean(0), x.sum(1), indexing="xy"))),
            a=nn.Linear(6, 8),
            b=nn.Linear(8, 3),
        ),
        LINES,
        {"a": 8},
    ),
    "slices scaled by their norm": (lines(lambda y: y.renorm(2, 1, 0.5)), LINES, {"a": 8}),
    "normed by channel": (pictures(lambda y: F.instance_norm(y) + F.normalize(y, dim=-1)), PICTURE, {"a": 8}),
    "statistics over positions": (
        lines(
            lambda y: (
                y
                - y.median(0)[0]
                + y.std(0)
                + torch.var_mean(y, 0)[1]
                + y.logsumexp(0)
                + y.prod(0)
                + y.aminmax(dim=0)[0]
            )
        ),
        LINES,
        {"a": 8},
    ),
    "letters under an ellipsis": (
        lambda: Net(
            lambda s, x: s.b(torch.einsum("...c,cd->...d", s.a(x).tanh(), s.w).relu()),
            a=nn.Linear(6, 8),
            w=parameter(8, 7),
            b=nn.Linear(7, 3),
        ),
        TOKENS,
        {"a": 8, "w": 7},
    ),
    "letters without a result": (
        lambda: Net(
            lambda s, x: s.b(torch.einsum("...d,cd", s.a(x).tanh(), s.w).relu()),
            a=nn.Linear(6, 8),
            w=parameter(7, 8),
            b=nn.Linear(7, 3),
        ),
        TOKENS,
        {"a": 8, "w": 7},
    ),
    "a transposed convolution of each channel": (
        lambda: Net(
            lambda s, x: s.b(s.t(s.a(x).tanh()).relu()),
            a=nn.Conv2d(3, 8, 1),
            t=nn.ConvTranspose2d(8, 8, 2, 2, groups=8),
            b=nn.Conv2d(8, 3, 1),
        ),
        PICTURE,
        {"a": 8},
    ),
    "a transposed convolution in few groups": (
        lambda: Net(
            lambda s, x: s.b(s.t(s.a(x).tanh()).relu()),
            a=nn.Conv2d(3, 8, 1),
            t=nn.ConvTranspose2d(8, 12, 2, 2, groups=2),
            b=nn.Conv2d(12, 3, 1),
        ),
        PICTURE,
        {"a": 4, "t": 6},
    ),
    "a transposed convolution in many groups": (
        lambda: Net(
            lambda s, x: s.b(s.t(s.a(x).tanh()).relu()),
            a=nn.Conv2d(3, 8, 1),
            t=nn.ConvTranspose2d(8, 12, 3, groups=4),
            b=nn.Conv2d(12, 3, 1),
        ),
        PICTURE,
        {"a": 4},
    ),
    "a convolution across positions": (
        lambda: Net(
            lambda s, x: s.b(s.c(s.a(x).tanh()).relu()),
            a=nn.Linear(6, 8),
            c=nn.Conv1d(4, 5, 1),
            b=nn.Linear(8, 3),
        ),
        TOKENS,
        {"a": 8},
    ),
    "chunks of which the last is shorter": (
        lambda: Net(
            lambda s, x: s.b(torch.cat([part.sin() for part in s.a(x).chunk(3, 1)], 1)),
            a=nn.Linear(6, 11),
            b=nn.Linear(11, 3),
        ),
        LINES,
        {"a": 3},
    ),
    "borders that are numbers": (
        lambda: Net(
            lambda s, x: s.b(s.a(x)[:, :3].sin().mean(1, keepdim=True) * s.a(x)[:, 3:].cos()),
            a=nn.Linear(6, 8),
            b=nn.Linear(5, 3),
        ),
        LINES,
        {"a#2": 5},
    ),
}
"""By name: how it is made, the shape of its input, and the channels that a person would find."""


def one_of(y: Tensor) -> Tensor:
    """Means and deviations in all their forms."""
    deviation, mean = torch.std_mean(y, 1, correction=0, keepdim=True)
    spread = (
        torch.var_mean(y, -1, keepdim=True)[0] + y.std(1, keepdim=True) + y.var(-1, correction=2)[:, None]
    )
    return (y - mean) / (deviation + spread + 1)


STATISTICS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "traces of products": (lambda y: y * torch.trace(y.t() @ y), LINES),
    "powers of products": (lambda y: y @ torch.linalg.matrix_power(y.mT @ y, 2), TOKENS),
    "running sums": (lambda y: y.cumsum(1) + y.logcumsumexp(-1) + y.cumprod(1), LINES),
    "picked for each row": (
        lambda y: y * y.gather(1, y.argmax(1, keepdim=True)) + y.topk(2, 1)[0].mean(1, keepdim=True),
        LINES,
    ),
    "losses of probabilities": (
        lambda y: (
            y
            * (
                F.binary_cross_entropy_with_logits(y, y.sigmoid())
                + F.binary_cross_entropy(y.sigmoid(), y.sigmoid().square())
                + F.kl_div(y, y.sigmoid(), reduction="sum")
                + F.soft_margin_loss(y, y.detach().sign())
            )
        ),
        LINES,
    ),
    "means and deviations": (one_of, LINES),
    "of all numbers": (
        lambda y: y * (y.var() + y.max() + y.median() + torch.std_mean(y)[0] + y.prod() + y.norm()),
        LINES,
    ),
    "extremes": (
        lambda y: (
            y * (y.max(1, keepdim=True)[0] + y.min(-1)[0][:, None] + sum(y.aminmax(dim=1, keepdim=True)))
        ),
        LINES,
    ),
    "medians": (lambda y: y * (y.median(1, keepdim=True)[0] + y.nanmedian(1)[0][:, None]), LINES),
    "extremes of two tensors": (lambda y: torch.max(y, y) + torch.min(y, y.exp()) + y.amin((0, 1)), LINES),
    "sums of exponentials": (lambda y: y - y.logsumexp(1, keepdim=True), LINES),
    "products": (lambda y: y * y.prod(1, keepdim=True) * y.exp().prod(-1)[:, None], LINES),
    "quantiles": (lambda y: y - y.quantile(0.3, dim=1, keepdim=True) + y.nanquantile(0.5), LINES),
    "truth values": (lambda y: y + (y > 0).any(1)[:, None] + (y < 0.9).all(1, keepdim=True), LINES),
    "counts": (lambda y: y * y.relu().count_nonzero(1)[:, None] + y.nanmean(1)[:, None] + y.nansum(), LINES),
    "norms": (
        lambda y: y / (y.norm(dim=1, keepdim=True) + torch.linalg.norm(y, 3, 1, True) + torch.linalg.norm(y)),
        LINES,
    ),
    "norms of matrices": (lambda y: y / torch.linalg.matrix_norm(y) + y / torch.linalg.norm(y, "nuc"), LINES),
    "normalised": (lambda y: F.normalize(y, p=3.0, dim=-1), LINES),
    "pooled as a whole": (
        lambda y: y * F.adaptive_avg_pool1d(y, 1) + F.adaptive_max_pool1d(y, 1),
        TOKENS,
    ),
    "soft minimum": (lambda y: F.softmin(y, 1) + F.log_softmax(y, -1), LINES),
    "root mean square": (lambda y: F.rms_norm(y, y.shape[-1:]), LINES),
    "slices": (lambda y: y.renorm(2, 0, 0.5), LINES),
    "cosines": (
        lambda y: y * (F.cosine_similarity(y, y.flip(0)) + F.cosine_similarity(y, y.exp(), -1))[:, None],
        LINES,
    ),
    "distances": (
        lambda y: y * F.pairwise_distance(y, y.flip(0), keepdim=True) + torch.dist(y, y.exp()),
        LINES,
    ),
    "distances of all rows": (lambda y: torch.cdist(y, y.exp()) @ y + torch.cdist(y, y, p=1.0) @ y, LINES),
    "covariances of channels": (
        lambda y: y @ torch.cov(y.t(), aweights=y.new_tensor([0.5, 1, 1, 2, 1])) + y @ y.t().cov(),
        LINES,
    ),
    "correlations": (lambda y: torch.corrcoef(y) @ y + y @ y.t().corrcoef(), LINES),
    "losses with a margin": (
        lambda y: (
            y
            * (
                F.triplet_margin_loss(y, y.sin(), y.exp())
                + F.margin_ranking_loss(y, y.exp(), y.detach().sign(), margin=2)
                + F.hinge_embedding_loss(y, y.detach().sign())
                + F.poisson_nll_loss(y, y.square())
            )
        ),
        LINES,
    ),
    "distances of pairs of rows": (lambda y: y * F.pdist(y).sum() + y * y.sum_to_size(5, 1), LINES),
    "losses": (lambda y: F.mse_loss(y, y.exp(), reduction="none") + F.l1_loss(y, y.exp()), LINES),
    "of tokens": (lambda y: y * y.var(-1, keepdim=True) * y.max(2)[0].softmax(1)[..., None], TOKENS),
}
"""By name: what is done with eight channels in the last dimension, and the shape of the network's input."""


def kept_places(y: Tensor) -> Tensor:
    return y + y.max(1, keepdim=True)[1]


def spectral() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return Net(lambda s, x: s.b(s.a(x).relu()), a=norm(nn.Linear(6, 8)), b=nn.Linear(8, 3))


def of_fixed_width(s: nn.Module, x: Tensor) -> Tensor:
    return s.b(torch.zeros(5, 8, dtype=x.dtype).index_add_(0, s.end, s.a(x)[s.start]))


ROW = torch.linspace(0.5, 1.5, 8)

FROZEN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "views of memory across channels": (
        lines(lambda y: y.as_strided((len(y), 4, 2), (y.stride(0), 2, 1)).flatten(1)),
        LINES,
        r"a view of memory reads some channels in another order \(as_strided\)",
    ),
    "views of memory that repeat channels": (
        lines(lambda y: y.as_strided((len(y), 7, 2), (y.stride(0), 1, 1)).sum(2), read=7),
        LINES,
        r"a view of memory reads some channels in another order \(as_strided\)",
    ),
    "views of memory from another channel on": (
        lines(lambda y: y.as_strided((len(y) - 1, y.size(1)), y.stride(), 3)),
        LINES,
        r"a view of memory reads some channels in another order \(as_strided\)",
    ),
    "views of memory with strides in the code": (
        lines(lambda y: y.as_strided((len(y), 3, 2, y.size(2)), (32, 8, 8, 1)).sum(2)),
        TOKENS,
        r"a view of memory reads some channels in another order \(as_strided\)",
    ),
    "covariances over channels": (
        lines(lambda y: torch.cov(y) @ y),
        LINES,
        r"a factor in the code changes with the width \(div\)",
    ),
    "zeros of a width in the code": (
        lambda: Net(of_fixed_width, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **edges()),
        LINES,
        r"meets values without channels \(index_add_\)",
    ),
    "a tensor in the code": (
        lines(lambda y: y * ROW),
        LINES,
        r"meets a tensor that is no parameter or buffer \(mul\); keep it by register_buffer",
    ),
    "a row computed from tensors in the code": (
        lines(lambda y: y + (ROW * 2).exp()[None]),
        LINES,
        r"meets a tensor that is no parameter or buffer \(add\); keep it by register_buffer",
    ),
    "indices of a width in the code": (
        lambda: Net(of_fixed_indices, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **edges()),
        LINES,
        r"meets values without channels \(scatter_add\)",
    ),
    "fewer indices than channels": (
        lambda: Net(of_few, a=nn.Linear(6, 8), b=nn.Linear(3, 3), **edges()),
        LINES,
        "only the first of them are used",
    ),
    "a state of a width in the code": (
        lambda: Net(lambda s, x: s.b(s.a(x, x.new_zeros(len(x), 7))), a=nn.GRUCell(6, 7), b=nn.Linear(7, 3)),
        LINES,
        "meets values without channels",
    ),
    "places of the smallest": (
        lines(lambda y: y + y.min(-1, True).indices),
        LINES,
        "the places found are used as numbers",
    ),
    "places of the largest": (lines(kept_places), LINES, "the places found are used as numbers"),
    "places of the median": (
        lines(lambda y: y + y.median(1, keepdim=True)[1]),
        LINES,
        "the index of a channel is used as a value",
    ),
    "sorted": (lines(lambda y: y.sort(1)[0]), LINES, r"ranked by value \(sort\)"),
    "fourier transform of channels": (
        lines(lambda y: torch.fft.fft(y).real),
        LINES,
        "along channels mixes all",
    ),
    "fourier transform of all": (lines(lambda y: torch.fft.fftn(y).real), LINES, "along channels mixes all"),
    "local response norm": (
        pictures(nn.LocalResponseNorm(3)),
        PICTURE,
        "neighbouring channels are pooled together",
    ),
    "running maximum": (lines(lambda y: y.cummax(1)[0]), LINES, "added up in order"),
    "difference": (lines(lambda y: y.diff(dim=1), 8, 7), LINES, "subtracted from its neighbour"),
    "triangle": (lines(torch.tril), LINES, "zeroed by position"),
    "spectral norm": (spectral, LINES, "a scalar computed from whole weights"),
    "looked for in channels": (
        lines(lambda y: y * torch.isin(y[:1].round(), y.round())),
        LINES,
        r"each is looked for in all of these \(isin\)",
    ),
    "singular values": (
        lines(torch.linalg.svdvals, 8, 5),
        LINES,
        r"a decomposition or inverse of a whole matrix \(linalg_svdvals\)",
    ),
    "drawn channels": (
        lines(lambda y: y.softmax(-1).multinomial(1).to(y), 8, 1),
        LINES,
        r"channels are drawn at random \(multinomial\)",
    ),
    "cross product of channels": (
        lines(lambda y: torch.linalg.cross(y, y.exp()), 3, 3),
        LINES,
        "meets its neighbours in a cross product",
    ),
    "a part of the channels replaced": (
        lines(lambda y: torch.slice_scatter(y, y[:, :2].sin(), 1, 1, 3)),
        LINES,
        "a part is replaced at fixed places",
    ),
    "classes of a loss": (
        lambda: Net(
            lambda s, x: F.cross_entropy(s.a(x), torch.arange(len(x)) % 3)[None] + s.b(x).sum(1),
            a=nn.Linear(6, 3),
            b=nn.Linear(6, 3),
        ),
        LINES,
        "a target names channels by their index",
    ),
    "inverse": (
        lambda: Net(lambda s, x: torch.linalg.inv(s.a(x)), a=nn.Linear(6, 6)),
        (6, 6),
        "a decomposition or inverse of a whole matrix",
    ),
}
"""By name: how it is made, the shape of its input, and the reason why channels ``a`` are left alone."""
