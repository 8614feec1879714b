"""Tie the heads of ``nn.MultiheadAttention``, which its code needs to be together as wide as its input."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from secateur.graph.groups import IntArray
from secateur.graph.labels import SlotTable
from secateur.graph.propagation.findings import Attribute, Findings


def tie_multihead(modules: Mapping[str, nn.Module], slots: SlotTable, findings: Findings) -> None:
    """Tie the heads of every multi-head attention to its input channels.

    A head goes together with as many input channels as it is wide: the operator checks that the
    input is ``embed_dim`` wide, and makes the width of a head from ``embed_dim // num_heads``.

    Args:
        modules: the modules of the network by path.
        slots: the table that collects equalities.
        findings: what propagation found; attributes that follow label vectors are added.
    """
    ran = {item.module for item in findings.work}
    for path, module in modules.items():
        if isinstance(module, nn.MultiheadAttention) and path in ran:
            _tie(path, module, slots, findings)


def _tie(path: str, module: nn.MultiheadAttention, slots: SlotTable, findings: Findings) -> None:
    prefix = f"{path}." if path else ""

    def span(name: str, dim: int) -> IntArray | None:
        key = (prefix + name, dim)
        return slots.span(*key) if key in slots.spans else None

    inner = span("out_proj.weight", 1)
    packed = span("in_proj_weight", 1)
    inputs = {"embed_dim": span("q_proj_weight", 1), "kdim": span("k_proj_weight", 1)}
    inputs["vdim"] = span("v_proj_weight", 1)
    if packed is not None:
        inputs = dict.fromkeys(inputs, packed)
    query = inputs["embed_dim"]
    if inner is None or query is None:
        return
    slots.join(query, inner)
    heads = inner.reshape(module.num_heads, -1)
    for place in range(1, heads.shape[1]):
        slots.join(heads[:, place], heads[:, 0])
    findings.attributes.append(Attribute(path, "num_heads", None, heads[:, 0]))
    findings.attributes.append(Attribute(f"{prefix}out_proj", "in_features", None, inner))
    for name, labels in inputs.items():
        if labels is not None:
            findings.attributes.append(Attribute(path, name, None, labels))
