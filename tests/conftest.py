from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# Time limits on single examples would fail on a busy machine for no fault of the code.
settings.register_profile("secateur", deadline=None, print_blob=True)
settings.load_profile("secateur")

# pytest-xdist runs one process a core.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
