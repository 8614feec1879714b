"""Hold networks against each other: the job behind ``secateur measure``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from secateur.errors import UsageError
from secateur.jobs.evaluate import evaluate
from secateur.jobs.figures import figures, latencies
from secateur.jobs.networks import Network, open_network
from secateur.jobs.settings import DataChoice, NetworkChoice
from secateur.training.devices import make_machine
from secateur.training.events import Listener, Progress, silent
from secateur.training.settings import DeviceSettings


def measure(
    choices: Sequence[NetworkChoice],
    data: DataChoice | None = None,
    *,
    batch: int = 1,
    seconds: float = 1.0,
    device: DeviceSettings | None = None,
    listener: Listener = silent,
) -> dict[str, Any]:
    """Parameters, MACs, file size and time of networks that are run in turn.

    Args:
        choices: the networks, the first being what the others are held against.
        data: pictures to judge them on as well.
        batch: examples in a timed forward pass.
        seconds: time spent on each network.
        device: where to compute.
        listener: hears how it goes.

    Returns:
        ``networks``, a list of figures with their ``name``, and ``latency``, the conditions.

    Raises:
        UsageError: the networks take inputs of different sizes; ``--size`` makes them alike.
        SecateurError: a network or the data cannot be used.
    """
    machine = make_machine(device)
    networks: dict[str, Network] = {}
    for choice in choices:
        network = open_network(choice)
        network.model.to(machine.device)
        networks[choice.source] = network
    sizes = {network.input.size for network in networks.values()}
    if len(sizes) > 1:
        shown = " and ".join("x".join(map(str, size)) for size in sorted(sizes))
        raise UsageError(f"the networks take inputs of {shown}; give one --size for all")
    inputs = next(iter(networks.values())).example(batch)
    listener(Progress("measuring", 0, len(networks)))
    milliseconds, conditions = latencies({name: n.model for name, n in networks.items()}, inputs, seconds)
    listener(Progress("measuring", len(networks), len(networks)))
    rows = []
    for choice in choices:
        network = networks[choice.source]
        row = {
            "name": choice.source,
            "model": network.name,
            **figures(network.model, network.example(), network.file),
            "latency_ms": milliseconds[choice.source],
        }
        if data is not None:
            row["top1"] = evaluate(choice, data, device, listener)["top1"]
        rows.append(row)
    return {"networks": rows, "latency": conditions}
