"""The Corridor: a task of seconds on which a policy pretrained offline is known to drop at the switch.

A point drives down a corridor without walls' mercy. Its sideways position y is unstable, the more so the faster it
drives (vx), and beyond |y| = 1 the episode ends. Faster earns more, so the online objective speeds up at once, into
speeds at which the data never steered. With dt = 0.1 and actions a in [-1, 1]^2:

    vx' = clip(vx + dt (2 a0 - 0.5 vx), 0, 3)
    vy' = vy + dt ((1 + 1.5 vx) y + 4 a1)
    y'  = y + dt vy'
    reward vx';  terminated where |y'| > 1;  truncated after 100 steps
    start: y, vy ~ U(-0.2, 0.2), vx ~ U(0, 0.2)

The observation is (y, vy, vx). The state is float64; what is seen is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Obs = NDArray[np.float32]
State = NDArray[np.float64]  # (..., 3): y, vy, vx
StepResult = tuple[Obs, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]

CORRIDOR_ID = "o2o-smooth/Corridor-v0"
STEPS = 100
"""Time limit."""
DT = 0.1
TOP_SPEED = 3.0
_START_LOW, _START_HIGH = np.array([-0.2, -0.2, 0.0]), np.array([0.2, 0.2, 0.2])


def corridor_start(rng: np.random.Generator) -> State:
    """Draw a first state, (3,)."""
    return rng.uniform(_START_LOW, _START_HIGH)


def corridor_step(state: State, action: NDArray[Any]) -> tuple[State, NDArray[np.bool_]]:
    """One step of any number of points.

    Args:
        state: (..., 3).
        action: (..., 2), clipped here to [-1, 1].

    Returns:
        The next states (..., 3), whose last column is the reward, and (...,) whether the point left the corridor.
    """
    a = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
    y, vy, vx = state[..., 0], state[..., 1], state[..., 2]
    after = np.empty_like(state)
    after[..., 2] = np.clip(vx + DT * (2.0 * a[..., 0] - 0.5 * vx), 0.0, TOP_SPEED)
    after[..., 1] = vy + DT * ((1.0 + 1.5 * vx) * y + 4.0 * a[..., 1])
    after[..., 0] = y + DT * after[..., 1]
    return after, np.abs(after[..., 0]) > 1.0


def _spaces() -> tuple[gym.Space[Any], gym.Space[Any]]:
    bound = np.array([np.inf, np.inf, TOP_SPEED], dtype=np.float32)
    low = np.array([-np.inf, -np.inf, 0.0], dtype=np.float32)
    return gym.spaces.Box(low, bound, dtype=np.float32), gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


class CorridorEnv(gym.Env[Obs, NDArray[Any]]):
    """The Corridor; the time limit is kept by gymnasium's wrapper, as its registration says."""

    metadata = {"render_modes": []}  # noqa: RUF012  # as gymnasium has it

    def __init__(self) -> None:
        self.observation_space, self.action_space = _spaces()
        self._state: State = np.zeros(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._state = corridor_start(self.np_random)
        return self._state.astype(np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Step."""
        self._state, left = corridor_step(self._state, action)
        return self._state.astype(np.float32), float(self._state[2]), bool(left), False, {}


class CorridorVectorEnv(VectorEnv[Obs, NDArray[Any], NDArray[Any]]):
    """Many Corridors in one computation, reset in the step that ends an episode (SAME_STEP).

    Every number is that of `SyncVectorEnv` over as many `CorridorEnv`, at a fraction of the time.

    Args:
        num_envs: How many.
        max_episode_steps: Time limit.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012  # as gymnasium has it

    def __init__(self, num_envs: int = 1, max_episode_steps: int = STEPS) -> None:
        self.num_envs, self._limit = num_envs, max_episode_steps
        self.single_observation_space, self.single_action_space = _spaces()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._state: State = np.zeros((num_envs, 3))
        self._steps = np.zeros(num_envs, dtype=np.int64)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode everywhere.

        Args:
            seed: One per environment; a number stands for itself and those that follow it; None goes on with the
                generators there are.
            options: Not used.
        """
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
        for i, own in enumerate(seed):
            if own is not None or self._generators[i] is None:
                self._generators[i] = seeding.np_random(own)[0]
        self._begin(np.arange(self.num_envs))
        return self._state.astype(np.float32), {}

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Step all."""
        self._state, terminated = corridor_step(self._state, actions)
        self._steps += 1
        truncated = self._steps >= self._limit
        reward, obs = self._state[:, 2].copy(), self._state.astype(np.float32)
        over = terminated | truncated
        infos: dict[str, Any] = {}
        if over.any():
            ended = np.flatnonzero(over)
            final = np.full(self.num_envs, None, dtype=object)
            for i in ended:
                final[i] = obs[i].copy()
            infos = {"final_obs": final, "_final_obs": over}
            self._begin(ended)
            obs[ended] = self._state[ended]
        return obs, reward, terminated, truncated, infos

    @property
    def time_limit(self) -> int:
        """Steps after which an episode is truncated."""
        return self._limit

    def lanes(self) -> list[tuple[State, int, np.random.Generator | None]]:
        """Every environment's state, steps of its episode, and generator; the generator itself, not a copy."""
        return [
            (state.copy(), int(steps), generator)
            for state, steps, generator in zip(self._state, self._steps, self._generators, strict=True)
        ]

    def set_lanes(self, lanes: Sequence[tuple[State, int, np.random.Generator | None]]) -> None:
        """Go on from what `lanes` gave."""
        for i, (state, steps, generator) in enumerate(lanes):
            self._state[i], self._steps[i], self._generators[i] = state, steps, generator

    def _begin(self, which: NDArray[np.int64]) -> None:
        for i in which:
            rng = self._generators[i]
            assert rng is not None, "reset() comes before step()"
            self._state[i] = corridor_start(rng)
        self._steps[which] = 0


@dataclass(frozen=True)
class CorridorSettings:
    """`a0 = 2 (speed - vx) + 0.25 speed`, `a1 = -(1.5 y + 0.8 vy)`, both plus `noise * N(0, 1)`, clipped to [-1, 1]."""

    speed: float = 1.0
    """Which vx it holds."""
    noise: float = 0.3
    """Standard deviation of the Gaussian noise."""


CORRIDOR_BEHAVIOUR = CorridorSettings()
"""Slow and noisy: the `mixed` (beside uniform play) and `medium` sets."""
CORRIDOR_NARROW = CorridorSettings(noise=0.1)
"""Slow and hardly noisy: the `narrow` set covers next to nothing but its own path."""
CORRIDOR_REFERENCE = CorridorSettings(speed=3.0, noise=0.02)
"""Its mean return is score 100."""


class CorridorController:
    """Steers to the middle and holds a speed. Stateless; observations (n, 3), actions (n, 2)."""

    def __init__(self, settings: CorridorSettings = CORRIDOR_BEHAVIOUR) -> None:
        self.settings = settings

    def __call__(self, obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        """Choose actions, (n, 2) in [-1, 1], for observations (n, 3)."""
        s = self.settings
        y, vy, vx = np.asarray(obs, dtype=np.float64).T
        command = np.stack([2.0 * (s.speed - vx) + 0.25 * s.speed, -(1.5 * y + 0.8 * vy)], axis=-1)
        action = command + s.noise * rng.standard_normal(command.shape)
        return np.asarray(action.clip(-1.0, 1.0), dtype=np.float32)


def register_corridor() -> None:
    """Make gymnasium know the environment."""
    if CORRIDOR_ID not in gym.registry:
        gym.register(CORRIDOR_ID, entry_point="o2o_smooth.envs.corridor:CorridorEnv", max_episode_steps=STEPS)
