"""Count batches and their examples over all processes that share them."""

from __future__ import annotations

import torch


class BatchCounter:
    """Count batches, so that random numbers drawn for one do not depend on the number of processes.

    Attributes:
        examples: of the current batch over all processes.
        here: of them in this process.

    >>> batches = BatchCounter()
    >>> batches.expect(5)
    >>> batches.begin(2)
    >>> batches.examples, batches.here
    (5, 2)
    >>> batches.begin(3)  # without a call of expect: a whole batch
    >>> batches.examples, batches.here
    (3, 3)
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._number = -1
        self._expected = False
        self.examples = self.here = 0
        self._generator = torch.Generator()

    def expect(self, examples: int) -> None:
        """Set the global size of the next batch; this process may hold only part of it."""
        self._next(examples)
        self._expected = True

    def begin(self, batch: int) -> None:
        """Start a forward pass over so many examples in this process."""
        if not self._expected:
            self._next(batch)
        self._expected, self.here = False, batch

    @property
    def generator(self) -> torch.Generator:
        """Make the generator of random numbers for this batch."""
        return self._generator

    def _next(self, examples: int) -> None:
        self._number += 1
        self.examples = examples
        self._generator.manual_seed(self._seed + self._number)
