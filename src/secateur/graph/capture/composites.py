"""Replace operators that PyTorch writes in terms of others, such as ``hstack``, by these."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from secateur._compat import make_fx, tree_map_only
from secateur.graph.capture.nodes import operator_name

# fmt: off
COMPOSITES = frozenset({
    "atleast_1d", "atleast_2d", "atleast_3d", "cartesian_prod", "chain_matmul", "column_stack",
    "cosine_embedding_loss", "cross", "cumulative_trapezoid", "diag", "diagflat", "dsplit", "dstack",
    "fliplr", "flipud", "frobenius_norm", "gradient", "hinge_embedding_loss", "hsplit", "hstack", "kron",
    "linalg_diagonal", "linalg_matrix_power", "linalg_multi_dot", "linalg_vecdot", "margin_ranking_loss",
    "matrix_power", "moveaxis", "nuclear_norm", "pad_sequence", "poisson_nll_loss",
    "ravel", "row_stack", "special_multigammaln", "sum_to_size", "trapezoid", "trapz", "triplet_margin_loss",
    "vsplit", "vstack",
})
# fmt: on
"""Operators without a rule: they are replaced by operators that have one. So are copies of views."""


def expand_composites(module: GraphModule) -> None:
    """Replace composite operators by the operators that they consist of, in place.

    Args:
        module: a captured program; the result of every operator is noted as ``val``.
    """
    found = [(node, run) for node in module.graph.nodes if (run := _written_out(node)) is not None]
    for node, run in found:
        _expand(module.graph, node, run)
    if found:
        module.recompile()


def _written_out(node: Node) -> Callable[..., Any] | None:
    """Return a function that runs the operators that an operator consists of; ``None`` for others."""
    name = operator_name(node)
    if name in COMPOSITES:
        return node.target.decompose  # type: ignore[union-attr, no-any-return]
    if name == "trace":
        return lambda matrix: matrix.diagonal().sum()
    view = _view_of(node.target)
    return None if view is None else lambda *args, **kwargs: _copied(view(*args, **kwargs))


def _view_of(target: object) -> Callable[..., Any] | None:
    """Return the view that an operator such as ``unfold_copy`` copies; ``None`` for others."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return None
    kind, _, name = schema.name.partition("::")
    packet = getattr(getattr(torch.ops, kind), name.removesuffix("_copy"), None)
    if not name.endswith("_copy") or name == "lift_fresh_copy" or packet is None:
        return None
    view = getattr(packet, schema.overload_name or "default", None)
    is_view = view is not None and any(
        result.alias_info is not None and not result.alias_info.is_write for result in view._schema.returns
    )
    return view if is_view else None


def _copied(result: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    return result.clone() if isinstance(result, Tensor) else [piece.clone() for piece in result]


def _expand(graph: Graph, call: Node, written_out: Callable[..., Any]) -> None:
    operands = call.all_input_nodes

    def run(*tensors: Tensor) -> Any:
        given = dict(zip(operands, tensors, strict=True))
        args, kwargs = tree_map_only(Node, given.__getitem__, (call.args, call.kwargs))
        return written_out(*args, **kwargs)

    substitute(graph, call, run)


def substitute(graph: Graph, call: Node, run: Callable[..., Any]) -> list[Node]:
    """Replace a node by the operators that a function of its arguments runs.

    Args:
        graph: the program; the result of every operator is noted as ``val``.
        call: the node; if it has several results, they are taken one by one.
        run: gets the tensors among the arguments, each once, in the order of ``call.all_input_nodes``.

    Returns:
        The node of each result.
    """
    operands = call.all_input_nodes
    inside = make_fx(run)(*(node.meta["val"] for node in operands))
    inner = [node for node in inside.graph.nodes if node.op == "placeholder"]
    values: dict[Node, Node] = dict(zip(inner, operands, strict=True))
    before = set(graph.nodes)
    with graph.inserting_before(call):
        result = graph.graph_copy(inside.graph, values)
    for node in set(graph.nodes) - before:
        node.meta = {**call.meta, "val": node.meta.get("val")}
    found = list(result) if isinstance(result, Sequence) else [result]
    pieces = [piece for piece in found if isinstance(piece, Node)]
    assert len(pieces) == len(found), "results are tensors"
    if isinstance(result, Sequence):
        for user in list(call.users):
            assert user.target is operator.getitem, "pieces are taken one by one"
            user.replace_all_uses_with(pieces[int(str(user.args[1]))])
            graph.erase_node(user)
    else:
        call.replace_all_uses_with(pieces[0])
    graph.erase_node(call)
    return pieces
