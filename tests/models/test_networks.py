from __future__ import annotations

import torch
import torch.nn.functional as F

from secateur.models import build
from secateur.models.cifar import PaddedShortcut


def test_resnets_have_the_published_number_of_parameters_and_layers():
    # He et al. 2016, table 6: 0.27 and 0.85 million.
    for name, blocks, millions in (("resnet20", 3, 0.27), ("resnet56", 9, 0.85)):
        model = build(f"secateur:{name}")
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions
        weighted = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        assert len(weighted) == 6 * blocks + 2


def test_shortcut_takes_every_second_pixel_and_pads_channels():
    x = torch.randn(2, 3, 4, 6)
    y = PaddedShortcut(1, 4)(x)
    assert y.shape == (2, 8, 2, 3)
    torch.testing.assert_close(y[:, 1:4], F.interpolate(x, scale_factor=0.5, mode="nearest"))
    assert not y[:, :1].any()
    assert not y[:, 4:].any()


def test_digits_network_trains():
    model = build("secateur:digits")
    x, target = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
