"""Networks of diffusers: denoising U-nets and transformers, autoencoders, control networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.libraries import QUIET
from tests.library_networks import Plain, check_cuts

pytestmark = QUIET

CONDITIONED = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
TWO_HEADS = {"num_attention_heads": 4, "attention_head_dim": 8, "in_channels": 4, "num_layers": 2}


def latent(**more: Tensor) -> dict[str, Tensor]:
    """A noisy image of four channels, and the steps."""
    return {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([5, 7]), **more}


def conditioned(**more: Tensor) -> dict[str, Tensor]:
    """A noisy image, the steps, and tokens of a text."""
    tokens = torch.randn(2, 6, 24)
    image, steps = torch.randn(2, 4, 8, 8), torch.tensor([5, 7])
    return {"sample": image, "timestep": steps, "encoder_hidden_states": tokens, **more}


NETWORKS: dict[str, tuple[str, dict[str, Any], Callable[[], dict[str, Tensor]], float]] = {
    "image": (
        "UNet2DModel",
        {
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "num_class_embeds": 10,
            "resnet_time_scale_shift": "scale_shift",
        },
        lambda: {
            "sample": torch.randn(2, 3, 8, 8),
            "timestep": torch.tensor([5, 7]),
            "class_labels": torch.tensor([1, 2]),
        },
        0.95,
    ),
    "text to image": (
        "UNet2DConditionModel",
        {**CONDITIONED, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")},
        conditioned,
        0.95,
    ),
    "control": (
        "ControlNetModel",
        {**CONDITIONED, "conditioning_embedding_out_channels": (8, 16)},
        lambda: conditioned(controlnet_cond=torch.randn(2, 3, 16, 16)),
        0.95,
    ),
    "autoencoder": (
        "AutoencoderKL",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 8,
        },
        lambda: {"sample": torch.randn(2, 3, 16, 16)},
        0.95,
    ),
    "codebook": (
        "VQModel",
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 8,
        },
        lambda: {"sample": torch.randn(2, 3, 16, 16)},
        0.95,
    ),
    "tiny autoencoder": (
        "AutoencoderTiny",
        {
            "encoder_block_out_channels": (16, 16),
            "decoder_block_out_channels": (16, 16),
            "num_encoder_blocks": (1, 1),
            "num_decoder_blocks": (1, 1),
        },
        lambda: {"sample": torch.randn(2, 3, 16, 16)},
        0.95,
    ),
    # Small as these are, the embedding of the steps, which is an input, is a good part of them.
    "transformer": (
        "DiTTransformer2DModel",
        {**TWO_HEADS, "out_channels": 8, "sample_size": 8, "num_embeds_ada_norm": 10},
        lambda: latent(class_labels=torch.tensor([1, 2])),
        0.8,
    ),
    "transformer of text and image": (
        "SD3Transformer2DModel",
        {
            **TWO_HEADS,
            "sample_size": 8,
            "joint_attention_dim": 24,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 20,
            "out_channels": 4,
            "pos_embed_max_size": 8,
            "qk_norm": "rms_norm",
        },
        lambda: latent(encoder_hidden_states=torch.randn(2, 6, 24), pooled_projections=torch.randn(2, 20)),
        0.9,
    ),
}
FAST = {"tiny autoencoder"}


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_a_network(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("diffusers", reason="needs diffusers")
    kind, options, inputs, share = NETWORKS[name]

    def make() -> nn.Module:
        torch.manual_seed(0)
        return Plain(getattr(library, kind)(**options))

    check_cuts(make, inputs(), tmp_path, share)
