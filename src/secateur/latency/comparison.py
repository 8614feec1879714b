"""What was measured: the time of a forward pass, and how those of several networks compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Time of a forward pass: the median of repeated runs, and their quartiles.

    Attributes:
        median_ms: middle time, milliseconds.
        low_ms: lower quartile, milliseconds.
        high_ms: upper quartile, milliseconds.
        runs: number of timed runs.
        threads: CPU threads that PyTorch used within an operator.
        device: where the network ran.
        batch: number of examples in the inputs.
        runtime: how it was run.

    >>> print(Latency(12.34, 12.0, 12.9, 20, 1, "cpu", 8))
    12.3 ms (12.0 to 12.9, 20 runs, batch 8, cpu, 1 thread)
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    threads: int
    device: str
    batch: int
    runtime: str = "eager"

    @classmethod
    def of(
        cls, times: Sequence[float], *, threads: int, device: str, batch: int, runtime: str = "eager"
    ) -> Latency:
        """The latency that repeated runs show.

        Args:
            times: of the runs, milliseconds.
            threads: CPU threads within an operator.
            device: where they ran.
            batch: number of examples in the inputs.
            runtime: how they ran.

        >>> Latency.of([3.0, 1.0, 2.0], threads=1, device="cpu", batch=8).median_ms
        2.0
        """
        low, median, high = (float(value) for value in np.percentile(times, (25, 50, 75)))
        return cls(median, low, high, len(times), threads, device, batch, runtime)

    @property
    def spread_ms(self) -> float:
        """Distance of the quartiles, milliseconds: the width of the noise."""
        return self.high_ms - self.low_ms

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else ""
        middle, low, high = _digits(self.median_ms, self.low_ms, self.high_ms)
        runtime = f", {self.runtime}" * (self.runtime != "eager")
        where = f"{self.device}{threads}{runtime}"
        return f"{middle} ms ({low} to {high}, {self.runs} runs, batch {self.batch}, {where})"


@dataclass(frozen=True)
class Comparison:
    """Latencies of several networks that were run in turn.

    Attributes:
        latencies: by name, in the order given; the first is what the others are held against.
        ratios: by name, how many times as long the first took in the same turn, the median over turns;
            a machine that is slow for a while is slow for both. Without, medians are divided.

    >>> fast, slow = Latency(5, 4.9, 5.1, 9, 1, "cpu", 1), Latency(10, 9, 11, 9, 1, "cpu", 1)
    >>> comparison = Comparison({"before": slow, "after": fast})
    >>> comparison.speedup("after"), comparison.is_noise("after")
    (2.0, False)
    >>> print(comparison)
    before  10.0 ms (9.0 to 11.0, 9 runs, batch 1, cpu, 1 thread)
    after   5.00 ms (4.90 to 5.10, 9 runs, batch 1, cpu, 1 thread)  2.00 times as fast
    """

    latencies: Mapping[str, Latency]
    ratios: Mapping[str, float] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        """Name of the network that the others are held against."""
        return next(iter(self.latencies))

    def speedup(self, name: str) -> float:
        """How many times as fast as the reference a network is."""
        if name in self.ratios:
            return self.ratios[name]
        return self.latencies[self.reference].median_ms / self.latencies[name].median_ms

    def is_noise(self, name: str) -> bool:
        """Whether the difference to the reference is smaller than the larger spread of the two."""
        one, other = self.latencies[self.reference], self.latencies[name]
        return abs(one.median_ms - other.median_ms) < max(one.spread_ms, other.spread_ms)

    def __str__(self) -> str:
        width = max(map(len, self.latencies))
        return "\n".join(
            f"{name:<{width}}  {latency}{self._verdict(name)}" for name, latency in self.latencies.items()
        )

    def _verdict(self, name: str) -> str:
        if name == self.reference:
            return ""
        if self.is_noise(name):
            return "  no difference beyond noise"
        return f"  {self.speedup(name):.2f} times as fast"


def _digits(*numbers: float) -> list[str]:
    """Numbers with as many decimals as give the first three digits."""
    size = int(np.floor(np.log10(max(abs(numbers[0]), 1e-9))))
    return [f"{number:.{min(max(2 - size, 0), 6)}f}" for number in numbers]
