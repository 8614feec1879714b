from __future__ import annotations

import pytest
import torch

import secateur as sec
from secateur.jobs.layers import layers


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_the_layers_add_up_to_the_network(name: str) -> None:
    model = sec.build(name, classes=7)
    graph = sec.trace(model, torch.zeros(2, 3, 32, 32))
    found = layers(model, graph)
    assert sum(layer.macs for layer in found) == graph.cost().macs
    assert sum(layer.params for layer in found) == graph.cost().params


def test_a_convolution_costs_what_the_closed_form_says() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3, stride=2, groups=2))
    (layer,) = layers(model, sec.trace(model, torch.zeros(3, 4, 9, 9)))
    assert layer.macs == 6 * (4 // 2) * 3 * 3 * 4 * 4
    assert layer.params == 6 * (4 // 2) * 3 * 3 + 6
    assert (layer.name, layer.kind) == ("0", "Conv2d")
