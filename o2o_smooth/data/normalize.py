"""One reward map and one observation normaliser for dataset, collector and evaluator, frozen at the switch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray, Transitions
from o2o_smooth.data.suspicion import SLICE_ROWS


@dataclass(frozen=True)
class RewardMap:
    """Learner's reward = reward * scale + shift; scores and episode returns stay in raw rewards."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, reward: NDArray[np.floating]) -> FloatArray:
        """Map raw rewards."""
        return (reward * self.scale + self.shift).astype(np.float32)


def observation_statistics(transitions: Transitions) -> tuple[FloatArray, FloatArray]:
    """Mean and deviation of the observations, (O,) each, computed in float64."""
    obs, n = transitions.obs, len(transitions)
    slices = [slice(i, i + SLICE_ROWS) for i in range(0, n, SLICE_ROWS)]  # std at once would copy everything
    mean = sum(obs[s].sum(axis=0, dtype=np.float64) for s in slices) / n
    std = np.sqrt(sum(((obs[s] - mean) ** 2).sum(axis=0) for s in slices) / n)
    return mean.astype(np.float32), std.astype(np.float32)
