"""Name the operators of a kind that several parts of Secateur treat alike, as ``operator_name`` names them.

A rule says what an operator does to labels. What else is known of an operator is said here, once.
"""

from __future__ import annotations

from torch.fx import Node

from secateur.graph.capture.nodes import operator_name

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
"""Convolutions, by the number of dimensions of their images."""

TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
"""Transposed convolutions."""

GROUPS = 6
"""Position of the number of groups among the arguments of convolutions, transposed or not."""

PATCH_LAYERS = frozenset({"linear", *CONVOLUTIONS})
"""Layers that multiply their weight with patches of what they read, so that least squares can refit them."""

LAYERS = PATCH_LAYERS | {*TRANSPOSED}
"""Layers of input, weight and bias, in this order."""

PRODUCTS = {
    "matmul": ("self", "other"),
    "linalg_matmul": ("self", "other"),
    "bmm": ("self", "mat2"),
    "mm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
    "_sparse_mm": ("sparse", "dense"),
}
"""Products of matrices and vectors, with the names of their two factors."""

CHANNEL_STATISTICS = frozenset({"layer_norm", "group_norm", "rms_norm"})
"""Normalisations by a statistic over channels."""

NORMALISATIONS = CHANNEL_STATISTICS | {"batch_norm", "instance_norm"}
"""Normalisation layers."""

DROPOUTS = frozenset({"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"})
"""Operators that return their argument in evaluation mode, though their signature does not say so."""

FILLED = {
    **dict.fromkeys(("zeros", "ones", "empty", "full"), 0),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full"), 1),
}
"""Operators that fill a tensor with one number, and where its size begins among their arguments."""

REPEATED = ("expand", "repeat", "broadcast_to", "tile")
"""Operators that repeat what is in a dimension of size one; sizes begin behind the tensor."""

COPIES = frozenset({"to", "_to_copy", "clone", "contiguous"})
"""Operators that return the numbers that they read, in the same places."""

LIKE = frozenset({"zeros_like", "ones_like", "empty_like", "full_like"})
"""Operators that fill a tensor of the shape of another one with one number."""

SHAPE_ONLY = LIKE | {"new_zeros", "new_ones", "new_empty", "new_full"}
"""Operators that read nothing of a tensor but its shape, dtype and device."""


def channels_of_layer(node: Node, dims: int) -> int | None:
    """Return the dimension of the channels that a layer writes; ``None`` for other operators.

    There may be as many of them as it reads, but they are others, and a cut keeps another number.

    Args:
        node: the operator.
        dims: number of dimensions of what it reads and writes.
    """
    if operator_name(node) not in LAYERS:
        return None
    weight = node.args[1].meta["val"]  # type: ignore[union-attr]
    return dims - 1 if operator_name(node) == "linear" else dims + 1 - int(weight.dim())
