"""Freeze all arguments of operators that no cut can follow, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.graph.labels import Value
from secateur.graph.propagation.rule_context import RuleContext
from secateur.graph.rules import rule

REASONS = {
    "elements are selected across channels, not within them": "masked_select take put nonzero",
    "values are counted across channels": (
        "bincount _unique2 unique_consecutive unique_dim histogram histogramdd"
    ),
    "channels are drawn at random": "multinomial",
    "a target names channels by their index": (
        "cross_entropy_loss nll_loss nll_loss_nd nll_loss2d multi_margin_loss multilabel_margin_loss ctc_loss"
    ),
    "a decomposition or inverse of a whole matrix": (
        "inverse linalg_inv linalg_inv_ex linalg_solve linalg_cholesky linalg_cholesky_ex linalg_eig "
        "linalg_eigvals linalg_eigh linalg_eigvalsh linalg_svd linalg_svdvals linalg_qr linalg_pinv "
        "linalg_det linalg_slogdet det logdet slogdet matrix_exp linalg_matrix_exp linalg_lu "
        "linalg_lu_factor linalg_lu_solve linalg_lstsq linalg_solve_triangular linalg_cond "
        "linalg_matrix_rank linalg_tensorinv linalg_tensorsolve linalg_householder_product cholesky "
        "cholesky_inverse cholesky_solve pinverse qr svd triangular_solve lu_solve lu_unpack"
    ),
}


@rule(*(f"aten.{name}" for names in REASONS.values() for name in names.split()))
def refuse(op: RuleContext) -> Value | Sequence[Value]:
    """Freeze all arguments with the reason of the operator."""
    name = op.operator.removesuffix("_")
    return op.refuse(next(reason for reason, names in REASONS.items() if name in names.split()))
