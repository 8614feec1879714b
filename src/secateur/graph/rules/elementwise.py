"""Propagate labels through element-wise operators, whose results have the positions of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.capture.operators import FILLED
from secateur.graph.labels import Labels, Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule

UNARY = """
    abs absolute acos acosh alias alpha_dropout angle arccos arccosh arcsin arcsinh arctan arctanh asin
    asinh atan atanh bernoulli bitwise_not bitwise_left_shift bitwise_right_shift cauchy ceil celu clone
    conj _conj conj_physical contiguous cos cosh deg2rad detach detach_ digamma dropout elu erf erfc
    erfinv exp exp2 expm1 exponential feature_alpha_dropout feature_dropout fix floor frac gelu geometric
    hardshrink hardsigmoid hardswish hardtanh i0 imag isfinite isinf isnan isneginf isposinf isreal
    leaky_relu lgamma lift_fresh_copy log log10 log1p log2 log_normal log_sigmoid logical_not logit mish
    mvlgamma nan_to_num neg negative polygamma positive rad2deg real reciprocal relu relu6 resolve_conj
    resolve_neg round rrelu rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink
    softsign special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1
    special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr
    special_logit special_ndtr special_ndtri special_psi special_round special_sinc sqrt square tan tanh
    threshold to trunc type_as uniform _to_copy zeros_like ones_like empty_like full_like rand_like
    randn_like special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1
    special_entr special_erfcx special_modified_bessel_i0 special_modified_bessel_i1
    special_modified_bessel_k0 special_modified_bessel_k1 special_scaled_modified_bessel_k0
    special_scaled_modified_bessel_k1 special_spherical_bessel_j0
"""

NARY = """
    add sub mul div rsub pow maximum minimum where addcmul addcdiv lerp eq ne lt le gt ge logical_and
    logical_or logical_xor bitwise_and bitwise_or bitwise_xor masked_fill atan2 arctan2 fmod remainder
    true_divide floor_divide copy clamp clamp_max clamp_min clip complex copysign divide float_power fmax fmin
    greater greater_equal heaviside hypot isclose ldexp less less_equal logaddexp logaddexp2 multiply
    nextafter normal not_equal polar special_xlog1py special_xlogy subtract xlogy gcd igamma igammac lcm
    special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v
    special_chebyshev_polynomial_w special_hermite_polynomial_h special_hermite_polynomial_he
    special_laguerre_polynomial_l special_legendre_polynomial_p special_shifted_chebyshev_polynomial_t
    special_shifted_chebyshev_polynomial_u special_shifted_chebyshev_polynomial_v
    special_shifted_chebyshev_polynomial_w special_zeta __iand__ __ilshift__ __ior__ __irshift__
    __ixor__ __and__ __lshift__ __or__ __rshift__ __xor__
"""


@rule(*(f"aten.{name}" for name in UNARY.split()))
def unary(op: RuleContext) -> Value:
    """Keep the labels as they are."""
    value = op.first()
    return Value(op.shape, value.labels)


@rule(*(f"aten.{name}" for name in NARY.split()))
def broadcast(op: RuleContext) -> Value:
    """Join operands index by index; a dimension of size one meets all indices."""
    if op.operator in ("mul", "div"):
        op.scale(divides=op.operator == "div")
    operands = op.tensors()
    if op.operator == "mul" and len(operands) == 2:
        op.record_gate(*operands)
    return combine(op, op.tensors(), op.shape)


def combine(op: RuleContext, operands: list[Value], shape: tuple[int, ...]) -> Value:
    """Join operands as broadcasting lines them up.

    Args:
        op: the operator.
        operands: the values that meet.
        shape: the shape of the result.

    Returns:
        The result with the labels of the operands.
    """
    labels: list[Labels] = []
    for dim, size in enumerate(shape):
        full: list[Labels] = []
        for operand in operands:
            own = dim - len(shape) + len(operand.shape)
            if own < 0:
                continue
            if operand.shape[own] == size:
                full.append(operand.labels[own])
            else:
                op.freeze(operand.labels[own], f"one channel meets all others ({op.place})")
        labels.append(joined(op, full) if size > 1 else _single(op, full))
    return Value(shape, tuple(labels))


def joined(op: RuleContext, vectors: list[Labels]) -> Labels:
    """Join the labels of one dimension of several values, and return those of the result.

    Args:
        op: the operator.
        vectors: of each value, its labels.
    """
    result = vectors[0] if vectors else None
    for vector in vectors[1:]:
        result = op.join(result, vector)
    return result


def _single(op: RuleContext, vectors: list[Labels]) -> Labels:
    """Combine a dimension of size one: a single channel is joined only to other single channels."""
    labelled = [vector for vector in vectors if vector is not None]
    for vector in labelled[1:]:
        op.join(labelled[0], vector)
    if labelled and len(labelled) < len(vectors):
        op.freeze(labelled[0], op.unlabelled_reason)
        return None
    return labelled[0] if labelled else None


@rule("aten.linalg_cross")
def cross(op: RuleContext) -> Value:
    """Join vectors of three numbers as broadcasting lines them up; each number meets the two others."""
    together = combine(op, op.tensors(), op.shape)
    dim = op.option("dim") % len(op.shape)
    op.freeze(together.labels[dim], f"meets its neighbours in a cross product ({op.place})")
    return together.replaced(dim, None)


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(op: RuleContext) -> Value:
    """Tie one slope to each channel, unless one slope serves all."""
    value = op.first()
    slopes = op.value("weight")
    if slopes.shape != (1,) and len(value.shape) > 1:
        op.tie_parameter("weight", value.labels[1])
        op.attribute("num_parameters", value.labels[1])
    return value


@rule("aten.sym_size", "aten._assert_tensor_metadata", "aten._assert_async", "aten._assert_scalar")
def nothing(_op: RuleContext) -> Value:
    """Return no tensor."""
    return Value.plain(())


@rule("aten.arange", "aten.linspace", "aten.scalar_tensor", "aten.eye")
def counted(op: RuleContext) -> Value:
    """Return a value without channels: the result is numbers in order."""
    return Value.plain(op.shape)


@rule(*(f"aten.{name}" for name in FILLED), "aten.rand", "aten.randn")
def constant(op: RuleContext) -> Value:
    """Label a new tensor: each size that it was given may follow channels."""
    labels = [op.labels_of_size(place, size) for place, size in enumerate(op.shape)]
    op.constrain_sizes(labels, op.shape)
    return Value(op.shape, tuple(labels))


@rule("aten.fill", "aten.zero")
def overwrite(op: RuleContext) -> Value:
    """Keep the shape, and with it the labels."""
    return op.first()


@rule("aten.glu")
def glu(op: RuleContext) -> Value:
    """Join the halves of a dimension index by index."""
    value = op.first()
    dim = op.option("dim") % len(value.shape)
    labels = value.labels[dim]
    if labels is not None:
        half = len(labels) // 2
        op.join(labels[:half], labels[half:])
        return Value(op.shape, value.replaced(dim, labels[:half]).labels)
    return Value(op.shape, value.labels)


@rule("aten.frexp")
def mantissa(op: RuleContext) -> Sequence[Value]:
    """Keep the labels in both results, the mantissa and the exponent."""
    return [op.first()] * 2


@rule("aten.view_as_real")
def view_as_real(op: RuleContext) -> Value:
    """Append a dimension without labels for real and imaginary part."""
    return Value(op.shape, (*op.first().labels, None))


@rule("aten.view_as_complex")
def view_as_complex(op: RuleContext) -> Value:
    """Drop the last dimension, which holds real and imaginary part.

    Rows must begin at even places in memory. Where they are a range of wider rows, the rest goes in pairs.
    """
    value = op.first()
    op.freeze(value.labels[-1], f"used as real and imaginary part ({op.place})")
    for rest in op.left_out("self"):
        if len(rest) % 2 == 0:
            op.join(rest[::2], rest[1::2])
    return Value(op.shape, value.labels[:-1])


@rule("aten.broadcast_tensors", "aten.meshgrid")
def broadcast_all(op: RuleContext) -> list[Value]:
    """Broadcast all tensors to one shape; a mesh takes one dimension from each vector."""
    values = op.values("tensors")
    if op.operator == "broadcast_tensors":
        return [combine(op, values, op.shape)] * len(values)
    labels = [value.labels[0] if value.shape else None for value in values]
    if op.option_or("indexing", "ij") == "xy":
        labels[:2] = reversed(labels[:2])
    return [Value(op.shape, tuple(labels))] * len(values)


@rule("aten.bucketize", "aten.searchsorted")
def bucketize(op: RuleContext) -> Value:
    """Keep the labels of the values and freeze the sorted boundaries."""
    name = "boundaries" if op.operator == "bucketize" else "sorted_sequence"
    borders, value = op.value(name), op.value("self")
    for labels in borders.labels:
        op.freeze(labels, f"used as sorted boundaries ({op.place})")
    if len(borders.shape) > 1:
        for labels in value.labels:
            op.freeze(labels, f"searched in boundaries of their own ({op.place})")
        return Value.plain(op.shape)
    return Value(op.shape, value.labels)


@rule("aten.isin")
def isin(op: RuleContext) -> Value:
    """Keep the labels of the elements and freeze what they are looked for in."""
    names = [name for name in ("elements", "test_elements") if op.has(name)]
    if "test_elements" in names:
        for labels in op.value("test_elements").labels:
            op.freeze(labels, f"each is looked for in all of these ({op.place})")
    return Value(op.shape, op.value("elements").labels) if "elements" in names else Value.plain(op.shape)


@rule("aten.linalg_vander")
def powers(op: RuleContext) -> Value:
    """Append a dimension for the powers of each number."""
    return Value(op.shape, (*op.first().labels, None))


@rule("aten.one_hot")
def one_hot(op: RuleContext) -> Value:
    """Append a dimension for the classes, which are channels if the numbers are indices of channels."""
    value = op.first()
    if value.indices_of is not None and len(value.indices_of) != op.shape[-1]:
        op.freeze(value.indices_of, f"numbered beyond their number ({op.place})")
        return Value(op.shape, (*value.labels, None))
    op.constrain_sizes([value.indices_of], op.shape[-1:])
    return Value(op.shape, (*value.labels, value.indices_of))


@rule("aten.tril", "aten.triu")
def triangle(op: RuleContext) -> Value:
    """Freeze the last two dimensions, whose positions decide what is zeroed."""
    value = op.first()
    for labels in value.labels[-2:]:
        op.freeze(labels, f"zeroed by position ({op.place})")
    return Value(op.shape, (*value.labels[:-2], None, None))
