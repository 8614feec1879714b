"""Pace: the number and the size of the batch that is being looked at, whoever else looks at parts of it."""

from __future__ import annotations

import torch


class Pace:
    """Counts batches, so that what is drawn by chance in one does not depend on the number of processes.

    Attributes:
        examples: of the current batch over all processes.
        here: of them in this process.

    >>> pace = Pace()
    >>> pace.expect(5)
    >>> pace.begin(2)
    >>> pace.examples, pace.here
    (5, 2)
    >>> pace.begin(3)  # nobody has told anything: a whole batch
    >>> pace.examples, pace.here
    (3, 3)
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._number = -1
        self._told = False
        self.examples = self.here = 0
        self._generator = torch.Generator()

    def expect(self, examples: int) -> None:
        """Is told the size of the next batch, also where no example of it comes here."""
        self._next(examples)
        self._told = True

    def begin(self, batch: int) -> None:
        """Is told that a forward pass over so many examples begins here."""
        if not self._told:
            self._next(batch)
        self._told, self.here = False, batch

    @property
    def generator(self) -> torch.Generator:
        """Where chance comes from in this batch."""
        return self._generator

    def _next(self, examples: int) -> None:
        self._number += 1
        self.examples = examples
        self._generator.manual_seed(self._seed + self._number)
