"""Write ONNX files with PyTorch's exporter, without any names from this machine."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from secateur.errors import ExportError
from secateur.export.program import Exportable
from secateur.integrations.libraries import library, quiet_logs
from secateur.runtimes.metadata import KEY, ExportMetadata

_SMALL = 64
"""Smallest number of elements of a tensor that is rounded: smaller ones are mostly constants of formulas."""

_LARGEST = 2**31 - 1


def write_onnx(
    path: Path, exportable: Exportable, metadata: ExportMetadata, calibration: Sequence[Tensor] | None
) -> None:
    """Write a network as ONNX.

    Args:
        path: the file.
        exportable: the network.
        metadata: written into the file; says how weights are stored.
        calibration: batches of images, for eight bits.

    Raises:
        UsageError: onnx or onnxscript is not installed.
        ExportError: the network has an operator that ONNX lacks, or is too large for one file.
    """
    onnx = library("onnx")
    model = _converted(exportable)
    if calibration is not None:
        model = _in_eight_bits(model, exportable, calibration, path)
    _forget_where(model)
    if metadata.weights in ("float16", "bfloat16"):
        _round_weights(onnx, model, metadata.weights)
    onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
    if model.ByteSize() > _LARGEST:
        raise ExportError("the network has over 2 GB of weights, which one ONNX file cannot hold")
    onnx.checker.check_model(model)
    onnx.save_model(model, str(path))


def _converted(exportable: Exportable) -> Any:
    """Convert the network to an ONNX model in float32."""
    library("onnxscript")
    program = exportable.program()
    try:
        with _quietly():
            program = _with_plain_attention(program)
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                input_names=list(exportable.arguments),
                output_names=list(exportable.output_names),
            )
        assert converted is not None  # with dynamo, there is always a program
        return converted.model_proto
    except Exception as error:  # operators fail in many ways
        reason = " ".join(re.sub(r"\x1b\[\d+m", "", str(error.__cause__ or error)).split())
        raise ExportError(f"PyTorch cannot convert the network to ONNX: {reason[:300]}") from error


def _with_plain_attention(program: ExportedProgram) -> ExportedProgram:
    """Replace attention over other than four dimensions by products, since the exporter converts no other."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    ranks = {node.args[0].meta["val"].dim() for node in program.graph.nodes if node.target is attention}
    return program if ranks <= {4} else program.run_decompositions({attention: _attention})


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001  exported networks do not drop
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute scaled dot-product attention from products, as PyTorch documents it."""
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (item.repeat_interleave(repeats, -3) for item in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


def _forget_where(model: Any) -> None:
    """Remove debugging entries: they name folders, files and classes of this machine.

    The free dimension, which the exporter numbers, is called ``batch``.
    """
    del model.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        for item in (function, *function.node, *function.value_info):
            del item.metadata_props[:]
            item.doc_string = ""
    for graph in _graphs(model.graph):
        for item in (graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
            del item.metadata_props[:]
            item.doc_string = ""
        for value in (*graph.value_info, *graph.input, *graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = re.sub(r"\bs\d+\b", "batch", dim.dim_param)


def _graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and those within its operators (branches, loops)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _round_weights(onnx: Any, model: Any, weights_as: str) -> None:
    """Store weights in half the bytes; the runtime widens them once, when it opens the file."""
    kind = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}[weights_as]
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        if values.numel() < _SMALL:
            continue
        name, rounded = tensor.name, values.to(getattr(torch, weights_as))
        raw = rounded.reshape(-1).view(torch.uint8).numpy().tobytes()
        tensor.CopyFrom(
            onnx.helper.make_tensor(f"{name}.{weights_as}", kind, list(values.shape), raw, raw=True)
        )
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _in_eight_bits(model: Any, exportable: Exportable, calibration: Sequence[Tensor], path: Path) -> Any:
    """Quantise statically with ONNX Runtime: weights by channel, activations by calibration."""
    onnx = library("onnx")
    library("onnxruntime").disable_telemetry_events()
    from onnxruntime import quantization

    class CalibrationReader(quantization.CalibrationDataReader):  # type: ignore[misc]  # the base is not typed
        """Return the calibration batches one by one."""

        def __init__(self) -> None:
            self._batches = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            """Return the next batch by input name."""
            batch = next(self._batches, None)
            return None if batch is None else {exportable.arguments[0]: batch.numpy()}

    whole, small = path.with_name("float32.onnx"), path.with_name("int8.onnx")
    onnx.save_model(model, str(whole))
    with _quietly():
        quantization.quantize_static(
            str(whole),
            str(small),
            CalibrationReader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    return onnx.load_model(str(small))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress output, warnings and logs of these libraries."""
    with (
        quiet_logs(logging.ERROR),
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield
