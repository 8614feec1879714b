from __future__ import annotations

import numpy as np
import pytest

from secateur.graph.checking.trial_widths import about_half


@pytest.mark.parametrize("channels", range(2, 40))
def test_what_a_trial_keeps_is_no_mirror_image_of_itself(channels: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        kept = set(about_half(generator, channels))
        assert 1 <= len(kept) < channels
        assert kept != {channels - 1 - channel for channel in kept}
        if channels % 2 == 0:
            assert len(kept) % 2 == 1
