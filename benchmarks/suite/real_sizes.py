"""Time and memory of tracing networks of the sizes that people use.

Each network is made from its configuration, with random weights, and traced once in a process started for
it. Memory is the peak of that process, with the network and the libraries; beside it is the peak before the
trace.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

import secateur as sec
from benchmarks import benchmark
from benchmarks.results import ROOT
from benchmarks.tables import Table
from benchmarks.timing import timed


class Options(benchmark.Options):
    """Options.

    Attributes:
        networks: keys of ``NETWORKS``.
    """

    networks: tuple[str, ...] = ("smollm2-135m", "yolo11x", "vit-l-16", "sd-1.5-unet")


class Row(benchmark.Row):
    """One network.

    Attributes:
        network: key of ``NETWORKS``.
        params: number of parameters.
        groups: prunable groups.
        seconds: of the trace.
        before_bytes: peak memory of the process before the trace.
        peak_bytes: peak memory of the process.
    """

    network: str
    params: int
    groups: int
    seconds: float
    before_bytes: int
    peak_bytes: int


CASES: Mapping[str, Mapping[str, Any]] = {}
QUICK: Mapping[str, Any] = {"networks": ("smollm2-135m",)}


def _smollm2() -> tuple[nn.Module, Any]:
    """SmolLM2-135M, 128 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config), {"input_ids": torch.randint(0, 49152, (1, 128))}


def _yolo11x() -> tuple[nn.Module, Any]:
    """YOLO11x, an image of 320 x 320."""
    return sec.build("ultralytics:yolo11x"), torch.rand(1, 3, 320, 320)


def _vit_l_16() -> tuple[nn.Module, Any]:
    """ViT-L/16 of timm, an image of 224 x 224."""
    return sec.build("timm:vit_large_patch16_224", classes=1000), torch.randn(1, 3, 224, 224)


def _sd_unet() -> tuple[nn.Module, Any]:
    """The UNet of Stable Diffusion 1.5, 64 x 64 latents and 77 tokens."""
    import diffusers

    make: Any = diffusers.UNet2DConditionModel
    across = "CrossAttnDownBlock2D"
    model: nn.Module = make(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=(across, across, across, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    inputs = {
        "sample": torch.randn(1, 4, 64, 64),
        "timestep": torch.tensor([10]),
        "encoder_hidden_states": torch.randn(1, 77, 768),
    }
    return model, inputs


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Any]]] = {
    "smollm2-135m": _smollm2,
    "yolo11x": _yolo11x,
    "vit-l-16": _vit_l_16,
    "sd-1.5-unet": _sd_unet,
}
"""What makes each network and its inputs."""


def run(options: Options) -> Iterator[Row]:
    """Trace each network in a process started for it."""
    for name in options.networks:
        if not options.measured(network=name):
            yield Row(**_in_process(name, options))


def _in_process(name: str, options: Options) -> dict[str, Any]:
    """Start the process of a network, and return what it prints."""
    task = json.dumps({"name": name, "threads": options.threads, "seed": options.seeds[0]})
    threads = str(options.threads)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.suite.real_sizes", task],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, threads: int, seed: int) -> dict[str, Any]:
    """Trace a network in this process.

    Args:
        name: key of ``NETWORKS``.
        threads: CPU threads of PyTorch.
        seed: of weights and inputs.

    Returns:
        The values of a row.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    model, inputs = NETWORKS[name]()
    model = model.eval().requires_grad_(requires_grad=True)
    before = _peak()
    graph, seconds = timed(lambda: sec.trace(model, inputs))
    return {
        "network": name,
        "params": graph.cost().params,
        "groups": len(graph.prunable),
        "seconds": seconds,
        "before_bytes": before,
        "peak_bytes": _peak(),
    }


def _peak() -> int:
    """Return the peak memory of this process in bytes; Linux counts in kilobytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(rows: Sequence[Row]) -> Table:
    """Show seconds and memory, a row for each network."""
    columns = ("network", "parameters", "prunable groups", "trace", "peak before", "peak")
    lines = [
        (
            row.network,
            f"{row.params / 1e6:.0f} M",
            str(row.groups),
            f"{row.seconds:.0f} s",
            f"{row.before_bytes / 1e9:.1f} GB",
            f"{row.peak_bytes / 1e9:.1f} GB",
        )
        for row in rows
    ]
    return Table(columns, lines)


if __name__ == "__main__":  # the process of one network
    print(json.dumps(measure(**json.loads(sys.argv[1]))), flush=True)
