"""The spaces that an agent can work in."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from o2o_smooth.errors import EnvError


def check_spaces(
    observation_space: gym.Space[Any], action_space: gym.Space[Any]
) -> tuple[int, NDArray[np.float32], NDArray[np.float32]]:
    """Features of an observation, and the action box's lower and upper bounds (A,).

    Raises:
        EnvError: A space of another kind.
    """
    if not isinstance(observation_space, gym.spaces.Box) or len(observation_space.shape) != 1:
        raise EnvError(
            f"observations must be a one-dimensional Box, got {observation_space}; "
            f"wrap the environment in gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action_space, gym.spaces.Box) or len(action_space.shape) != 1:
        raise EnvError(f"actions must be a one-dimensional Box, got {action_space}; discrete actions are not supported")
    low, high = action_space.low.astype(np.float32), action_space.high.astype(np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise EnvError(f"actions must have finite bounds with low < high, got {action_space}")
    return int(observation_space.shape[0]), low, high
