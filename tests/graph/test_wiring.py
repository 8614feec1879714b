from __future__ import annotations

import pytest
import torch

import secateur as sec
import secateur._torchvision


def test_what_is_written_into_no_tensor_is_no_channel() -> None:
    """Transformer in transformer: an inner and an outer one meet in a tensor made from nothing."""
    tnt = pytest.importorskip("timm.models.tnt")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = tnt.TNT(
            img_size=32,
            embed_dim=24,
            inner_dim=8,
            depth=1,
            num_heads_inner=2,
            num_heads_outer=2,
            num_classes=3,
        ).eval()
        x = torch.randn(2, 3, 32, 32)
    graph = sec.trace(model, x)
    assert all(
        member.tensor in dict(model.state_dict()) for group in graph.groups for member in group.members
    )
    plan = sec.make_plan(
        graph, sec.score(model, graph, "magnitude"), sec.Budget(channels=0.5), allocation="uniform"
    )
    assert plan.channels_removed > 20
    assert sec.verify(model, sec.apply_plan(model, plan), plan, x).ok
