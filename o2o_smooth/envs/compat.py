"""Environments as D4RL had them: what gymnasium-robotics does otherwise, put back.

Without these wrappers D4RL's reference scores mean nothing: with them a random policy scores about 0 and the policies
behind D4RL's expert data about 100. All can be named in an environment's specification, so a Minari dataset that is
made in a wrapped environment recovers it whole (where this package is installed).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from o2o_smooth.errors import EnvError

PEN_DROPPED = 0.075
"""Height of the pen, in metres, below which D4RL ends the episode."""

KITCHEN_GOALS: dict[str, tuple[int, tuple[float, ...]]] = {
    "bottom burner": (11, (-0.88, -0.01)),
    "top burner": (15, (-0.92, -0.01)),
    "light switch": (17, (-0.69, -0.05)),
    "slide cabinet": (19, (0.37,)),
    "hinge cabinet": (20, (0.0, 1.45)),
    "microwave": (22, (-0.75,)),
    "kettle": (23, (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
"""Where a finished subtask's joints are: first of the 30 positions, and the positions (D4RL kitchen_envs.py)."""


class D4RLAdroit(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Adroit with D4RL's rewards and D4RL's end of an episode.

    gymnasium-robotics (1.2.1 to 1.4.2) adds 0.1 x the distance of palm and object in door, hammer and relocate where
    D4RL subtracts it, and its pen goes on when it has been dropped, where D4RL's episode ends. Only the dense reward
    has the distance.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        bare = env.unwrapped
        name = type(bare).__name__
        if not name.startswith("AdroitHand"):
            raise EnvError(f"the D4RL compatibility for Adroit does not fit {name}")
        self._pen = name.startswith("AdroitHandPen")
        fixed = env.spec is not None and not env.spec.id.endswith("-v1")  # -v2 has D4RL's sign
        self._flip = not (self._pen or fixed or getattr(bare, "sparse_reward", False))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step; the reward is D4RL's."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        value = float(np.asarray(reward).reshape(()))  # the door's is an array of one
        if self._pen:
            bare: Any = self.env.unwrapped
            terminated = terminated or bool(bare.data.xpos[bare.obj_body_id][2] < PEN_DROPPED)
        elif self._flip:
            value -= 0.2 * self._distance()
        return obs, value, bool(terminated), bool(truncated), info

    def _distance(self) -> float:
        """Palm to handle (door), or palm to object (hammer, relocate), in metres."""
        bare: Any = self.env.unwrapped
        data = bare.data
        if hasattr(bare, "handle_site_id"):
            return float(np.linalg.norm(data.site_xpos[bare.grasp_site_id] - data.site_xpos[bare.handle_site_id]))
        return float(np.linalg.norm(data.site_xpos[bare.S_grasp_site_id] - data.xpos[bare.obj_body_id]))


class D4RLKitchen(gym.ObservationWrapper[NDArray[np.float64], Any, Any], RecordConstructorArgs):
    """FrankaKitchen with D4RL's flat observation, (60,): robot positions 9, object positions 21, goal 30.

    gymnasium-robotics gives a dict whose `observation` (59) holds velocities and no goal. The goal has the finished
    positions of the subtasks that are asked for, and 0 elsewhere. `info["success"]`: all subtasks are done.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        wanted = getattr(env.unwrapped, "goal", None)
        if not isinstance(wanted, dict) or not set(wanted) <= set(KITCHEN_GOALS):
            raise EnvError(f"the D4RL compatibility for Kitchen does not fit {type(env.unwrapped).__name__}")
        self._goal = kitchen_goal(wanted)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (60,), np.float64)

    def observation(self, observation: Any) -> NDArray[np.float64]:
        """Flatten."""
        return np.concatenate([kitchen_positions(observation["observation"]), self._goal])

    def step(self, action: Any) -> tuple[NDArray[np.float64], Any, bool, bool, dict[str, Any]]:
        """Step; an episode's success is that no subtask is left."""
        obs, reward, terminated, truncated, info = super().step(action)
        bare: Any = self.env.unwrapped
        info["success"] = len(info["episode_task_completions"]) == len(bare.goal)
        return obs, reward, terminated, truncated, info


def kitchen_positions(observation: NDArray[Any]) -> NDArray[np.float64]:
    """The 30 positions, (..., 30), of FrankaKitchen's `observation`, (..., 59), which has velocities too."""
    return np.concatenate([observation[..., :9], observation[..., 18:39]], axis=-1).astype(np.float64)


def kitchen_goal(subtasks: Any) -> NDArray[np.float64]:
    """The goal part of D4RL's Kitchen observation, (30,), for the names of subtasks."""
    goal = np.zeros(30)
    for name in subtasks:
        first, positions = KITCHEN_GOALS[name]
        goal[first : first + len(positions)] = positions
    return goal


class ScaledActions(gym.ActionWrapper[Any, NDArray[Any], NDArray[Any]], RecordConstructorArgs):
    """The agent acts in the environment's box; the simulator gets `scale` times that.

    D4RL's ant has gear 30, gymnasium's 150: 0.2 restores D4RL's torques; unscaled, the ant flips over.
    """

    def __init__(self, env: gym.Env[Any, Any], scale: float) -> None:
        RecordConstructorArgs.__init__(self, scale=scale)
        super().__init__(env)
        self.scale = np.float32(scale)

    def action(self, action: NDArray[Any]) -> NDArray[Any]:
        """Scale."""
        return np.asarray(action * self.scale)


COMPATIBILITY: dict[str, Any] = {"adroit": D4RLAdroit, "kitchen": D4RLKitchen}
"""Wrappers by the name that a task gives."""
