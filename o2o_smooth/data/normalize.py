"""One reward map and one observation normaliser for dataset, collector and evaluator, frozen at the switch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from o2o_smooth.data.batch import FloatArray, Transitions


@dataclass(frozen=True)
class RewardMap:
    """Learner's reward = reward * scale + shift; scores and episode returns stay in raw rewards."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, reward: NDArray[np.floating]) -> FloatArray:
        """Map raw rewards."""
        return (reward * self.scale + self.shift).astype(np.float32)

    def apply(self, transitions: Transitions) -> Transitions:
        """The same transitions with mapped rewards."""
        if self.scale == 1.0 and self.shift == 0.0:
            return transitions
        return Transitions(
            transitions.obs,
            transitions.action,
            self(transitions.reward),
            transitions.next_obs,
            transitions.terminated,
            transitions.truncated,
        )


def observation_statistics(transitions: Transitions) -> tuple[FloatArray, FloatArray]:
    """Mean and deviation of the observations, (O,) each, computed in float64."""
    mean = transitions.obs.mean(axis=0, dtype=np.float64)
    std = transitions.obs.std(axis=0, dtype=np.float64)
    return mean.astype(np.float32), std.astype(np.float32)
