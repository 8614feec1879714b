"""Element-wise operators: what goes in at one place comes out at the same place."""

from __future__ import annotations

from secateur.graph.labels import Labels, Value
from secateur.graph.rules import rule
from secateur.graph.site import Site

UNARY = """
    abs alias alpha_dropout bernoulli bitwise_not ceil celu clamp clamp_max clamp_min clone contiguous cos
    detach detach_ dropout elu erf exp expm1 feature_dropout floor gelu hardshrink hardsigmoid
    hardswish hardtanh isnan leaky_relu lift_fresh_copy log log1p log_sigmoid logical_not mish neg
    reciprocal relu relu6 round rrelu rsqrt selu sigmoid sign silu sin softplus softshrink softsign sqrt
    square tan tanh threshold to type_as _to_copy zeros_like ones_like empty_like full_like rand_like
    randn_like
"""

NARY = """
    add sub mul div rsub pow maximum minimum where addcmul addcdiv lerp eq ne lt le gt ge logical_and
    logical_or logical_xor bitwise_and bitwise_or masked_fill atan2 fmod remainder true_divide
    floor_divide copy
"""


@rule(*(f"aten.{name}" for name in UNARY.split()))
def unary(site: Site) -> Value:
    """The labels stay as they are."""
    value = site.first()
    return Value(site.shape, value.labels)


@rule(*(f"aten.{name}" for name in NARY.split()))
def broadcast(site: Site) -> Value:
    """Operands meet index by index; a dimension of size one meets all indices."""
    if site.operator in ("mul", "div"):
        site.scale(divides=site.operator == "div")
    return combine(site, site.tensors(), site.shape)


def combine(site: Site, operands: list[Value], shape: tuple[int, ...]) -> Value:
    """Joins operands as broadcasting lines them up.

    Args:
        site: the operator.
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
                site.freeze(operand.labels[own], f"one channel meets all others ({site.place})")
        labels.append(_meet(site, full) if size > 1 else _single(site, full))
    return Value(shape, tuple(labels))


def _meet(site: Site, vectors: list[Labels]) -> Labels:
    """Joins all vectors; a parameter that is joined to channels carries one number for each."""
    if not vectors:
        return None
    result = vectors[0]
    for vector in vectors[1:]:
        result = site.join(result, vector)
    return result


def _single(site: Site, vectors: list[Labels]) -> Labels:
    """A dimension of size one: a single channel is joined only to other single channels."""
    labelled = [vector for vector in vectors if vector is not None]
    for vector in labelled[1:]:
        site.join(labelled[0], vector)
    if labelled and len(labelled) < len(vectors):
        site.freeze(labelled[0], f"meets values without channels ({site.place})")
        return None
    return labelled[0] if labelled else None


@rule("aten.prelu", "aten._prelu_kernel")
def prelu(site: Site) -> Value:
    """One slope per channel, or one slope for all."""
    value = site.first()
    slopes = site.value("weight")
    if slopes.shape != (1,) and len(value.shape) > 1:
        site.carry("weight", value.labels[1])
        site.attribute("num_parameters", value.labels[1])
    return value


@rule("aten.sym_size", "aten._assert_tensor_metadata", "aten._assert_async", "aten._assert_scalar")
def nothing(_site: Site) -> Value:
    """No tensor comes out."""
    return Value.plain(())


@rule("aten.arange", "aten.linspace", "aten.scalar_tensor", "aten.eye")
def counted(site: Site) -> Value:
    """Numbers in order hold no channels."""
    return Value.plain(site.shape)


@rule(
    "aten.new_zeros",
    "aten.new_ones",
    "aten.new_empty",
    "aten.new_full",
    "aten.zeros",
    "aten.ones",
    "aten.empty",
    "aten.full",
    "aten.rand",
    "aten.randn",
)
def constant(site: Site) -> Value:
    """Values made from nothing: as many as a size says, which may follow channels."""
    labels = [site.follower(place, size) for place, size in enumerate(site.shape)]
    site.settle(labels, site.shape)
    return Value(site.shape, tuple(labels))


@rule("aten.fill", "aten.zero")
def overwrite(site: Site) -> Value:
    """The shape, and with it the labels, stay."""
    return site.first()


@rule("aten.glu")
def glu(site: Site) -> Value:
    """Halves of a dimension meet index by index."""
    value = site.first()
    dim = site.option("dim") % len(value.shape)
    labels = value.labels[dim]
    if labels is not None:
        half = len(labels) // 2
        site.join(labels[:half], labels[half:])
        return Value(site.shape, value.replaced(dim, labels[:half]).labels)
    return Value(site.shape, value.labels)
