"""Networks that were trained before, and the pictures that they are judged on."""

from __future__ import annotations

from pathlib import Path

from secateur.data import ImageData
from secateur.jobs.networks import Network, input_of, open_network
from secateur.jobs.pictures import open_pictures
from secateur.jobs.settings import DataChoice, NetworkChoice


def opened(run: Path | str, source: Path | str) -> tuple[Network, ImageData]:
    """The network of a run folder, in evaluation mode, and pictures as it takes them, 64 at a time."""
    choice = NetworkChoice(source=str(run))
    data = open_pictures(DataChoice(source=str(source), batch_size=64), input_of(choice), seed=0)
    network = open_network(choice, data.classes)
    network.model.eval()
    return network, data
