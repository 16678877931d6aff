"""What passengers feel is the same from numpy and torch, alone and in batches."""

from __future__ import annotations

import numpy as np
import torch

from framework.scene.comfort import COMFORT_BOUNDS, comfort_quantities


def test_torch_in_batches_is_numpy_one_by_one() -> None:
    rng = np.random.default_rng(0)
    initial, states = rng.normal(size=(3, 4)), rng.normal(size=(3, 20, 4))
    together = comfort_quantities(torch.from_numpy(initial), torch.from_numpy(states), 4.0)
    assert list(together) == list(COMFORT_BOUNDS)
    for row in range(3):
        for name, alone in comfort_quantities(initial[row], states[row], 4.0).items():
            np.testing.assert_allclose(together[name][row].numpy(), alone, atol=1e-12)
