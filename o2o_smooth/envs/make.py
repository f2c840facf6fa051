"""From a task to environments: flat float32 observations, honest episode ends, one wrapper and no more.

Vector environments reset in the step that ends an episode (SAME_STEP), so every step is a real transition; the true
successor of an episode's last step is in the infos and `final_observations` puts it in its place.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from o2o_smooth.envs import simulator
from o2o_smooth.envs.compat import COMPATIBILITY, ScaledActions
from o2o_smooth.envs.corridor import CORRIDOR_ID, STEPS, CorridorVectorEnv
from o2o_smooth.envs.inline import InlineVectorEnv
from o2o_smooth.envs.pool import PoolVectorEnv, require_pool
from o2o_smooth.envs.supervision import Supervision
from o2o_smooth.envs.tasks import ROBOTICS, Task, find_spec, register_robotics
from o2o_smooth.envs.workers import WorkerVectorEnv
from o2o_smooth.errors import EnvError

VECTORIZERS = ("sync", "async", "envpool")
EPISODE_SUCCESS = "episode_success"

Obs = NDArray[np.float32]
Env = gym.Env[Obs, NDArray[Any]]
Vector = VectorEnv[Obs, NDArray[Any], NDArray[Any]]


class TaskEnv(gym.Wrapper[Obs, NDArray[Any], Any, NDArray[Any]]):
    """One environment as a task wants it.

    Observations are flat float32 copies, and the info of an episode's last step carries `episode_success`
    (true if `success` or `is_success` was true at least once) where the environment reports one.

    Raises:
        EnvError: A space is of an unsupported kind.
    """

    def __init__(self, env: gym.Env[Any, Any], obs_keys: tuple[str, ...] | None = None):
        super().__init__(env)
        self.pristine = simulator.pristine(env)
        self._keys, boxes = obs_layout(env.observation_space, obs_keys)
        low = np.concatenate([_float32(box.low) for box in boxes])
        high = np.concatenate([_float32(box.high) for box in boxes])
        self.observation_space = gym.spaces.Box(low, high, dtype=np.float32)
        self.action_space = _check_action_space(env.action_space)
        self._success: bool | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Begin an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._success = None
        return self._flat(obs), info

    def step(self, action: NDArray[Any]) -> tuple[Obs, Any, bool, bool, dict[str, Any]]:
        """Step; the reward is the environment's own."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        success = info.get("success", info.get("is_success"))
        if success is not None:
            self._success = bool(success) or bool(self._success)
            if terminated or truncated:
                info[EPISODE_SUCCESS] = self._success
        return self._flat(obs), reward, terminated, truncated, info

    def _flat(self, obs: Any) -> Obs:
        if self._keys is None:
            return np.array(obs, dtype=np.float32).reshape(-1)  # a copy: the environment may reuse its own array
        return np.concatenate([np.ravel(obs[key]) for key in self._keys], dtype=np.float32, casting="same_kind")


def make_env(task: Task) -> Env:
    """Make one environment of a task: Box float32 observations (O,), Box actions (A,), the task's time limit.

    Raises:
        EnvError: The environment is unknown, its package is not installed, or a space is of an unsupported kind.
    """
    return _make(task, _spec(task))


def make_vector_env(
    task: Task, num_envs: int, *, vectorizer: str = "sync", supervision: Supervision | None = None
) -> Vector:
    """Make `num_envs` environments that step together and reset in the step that ends an episode.

    `sync` steps them in turn, which is faster for cheap simulators; `async` gives each a process. The processes start
    afresh (no fork), so a script that asks for them needs the `if __name__ == "__main__":` guard. `envpool` steps
    them in threads of the envpool package, where it knows the task (`pool.POOL_IDS`).

    Args:
        task: The task.
        num_envs: How many.
        vectorizer: One of `VECTORIZERS`.
        supervision: What is done about environments that fail (not with envpool); default: `Supervision()`.

    Raises:
        EnvError: As `make_env`; or `num_envs` or `vectorizer` is out of range or cannot be had.
    """
    if num_envs < 1:
        raise EnvError(f"num_envs is {num_envs}, expected at least 1")
    check_vectorizer(task, vectorizer)
    supervision = supervision or Supervision()
    if vectorizer == "envpool":
        env = make_env(task)
        env.close()
        return PoolVectorEnv(task, num_envs, env.observation_space, env.action_space)
    if vectorizer == "sync" and task.env_id == CORRIDOR_ID and task.action_scale == 1.0 and not task.env_kwargs:
        return CorridorVectorEnv(num_envs, task.max_episode_steps or STEPS)  # the same numbers, sooner
    maker = functools.partial(_make, task, _spec(task))
    if vectorizer == "sync":
        return InlineVectorEnv(maker, num_envs, supervision)
    return WorkerVectorEnv(maker, num_envs, supervision)


def check_vectorizer(task: Task, vectorizer: str) -> None:
    """Check that a vectorizer can be had for a task, without making any environment.

    Raises:
        EnvError: It cannot; the text says why and what else there is.
    """
    if vectorizer not in VECTORIZERS:
        raise EnvError(f"vectorizer is {vectorizer!r}, expected one of {', '.join(VECTORIZERS)}")
    if vectorizer == "envpool":
        require_pool(task)


def final_observations(next_obs: NDArray[Any], infos: Mapping[str, Any]) -> Obs:
    """Give the true successors of a vector step, (n, O): the observation that ended an episode, not the reset's.

    Always a new array, so that it may be kept.
    """
    successors = np.array(next_obs, dtype=np.float32)
    if "final_obs" in infos:
        for row in np.flatnonzero(infos["_final_obs"]):
            successors[row] = infos["final_obs"][row]
    return successors


def episode_success(infos: Mapping[str, Any], done_mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Tell which of the episodes that ended in this vector step succeeded at least once.

    Args:
        infos: Infos of the vector step.
        done_mask: (n,), where an episode ended.

    Returns:
        (n,), false where no episode ended; None if none ended or the environment reports no success.
    """
    final = infos.get("final_info")
    if final is None or EPISODE_SUCCESS not in final or not done_mask.any():
        return None
    return np.asarray(final[EPISODE_SUCCESS], dtype=np.bool_) & done_mask


def obs_layout(
    space: gym.Space[Any], obs_keys: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...] | None, list[gym.spaces.Box]]:
    """Find the boxes that make up an observation: keys (None for a plain Box) and boxes, in order.

    Raises:
        EnvError: The space is neither a Box nor a Dict of Boxes, or lacks a key.
    """
    if isinstance(space, gym.spaces.Box):
        return None, [space]
    if not isinstance(space, gym.spaces.Dict):
        raise EnvError(f"unsupported observation space {space}: supported are Box and Dict of Box")
    keys = tuple(space.spaces) if obs_keys is None else obs_keys
    missing = [key for key in keys if key not in space.spaces]
    if missing:
        raise EnvError(f"the observation has no key {missing[0]!r}, it has {', '.join(space.spaces)}")
    boxes = [box for key in keys if isinstance(box := space.spaces[key], gym.spaces.Box)]
    if not keys or len(boxes) != len(keys):
        raise EnvError(f"unsupported observation space {space}: supported are Box and Dict of Box")
    return keys, boxes


def _check_action_space(space: gym.Space[Any]) -> gym.spaces.Box:
    supported = "supported is a bounded Box of floats with one axis"
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise EnvError(f"unsupported action space {space}: {supported}")
    if not space.is_bounded():
        raise EnvError(f"unbounded action space {space}: {supported}")
    return gym.spaces.Box(_float32(space.low), _float32(space.high), dtype=np.float32)


def _float32(values: NDArray[Any]) -> Obs:
    """A bound as float32; one beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ravel(values).astype(np.float32)


def _spec(task: Task) -> EnvSpec:
    """Look the environment up here, where the user registered it; workers that start afresh get what was found."""
    spec = find_spec(task.env_id)
    if spec is not None:
        return spec
    if task.domain in ROBOTICS:
        register_robotics()  # raises, and says why
    raise EnvError(f"task {task.id}: no environment {task.env_id!r} is registered with gymnasium")


def _make(task: Task, spec: EnvSpec) -> Env:
    """Build one environment; a top-level function of picklable arguments, as worker processes need it."""
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("gymnasium_robotics."):
        register_robotics()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*out of date", category=DeprecationWarning
            )  # AntMaze v4 is meant
            env = gym.make(
                spec, max_episode_steps=task.max_episode_steps, disable_env_checker=True, **dict(task.env_kwargs)
            )
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise EnvError(_missing(task, error)) from error
    except (gym.error.Error, TypeError) as error:
        raise EnvError(f"cannot make environment {task.env_id!r}: {_one_line(error)}") from error
    maze_file = getattr(env.unwrapped, "tmp_xml_file_path", None)
    if maze_file is not None:  # read by now; gymnasium-robotics leaves one behind for every maze it makes
        Path(maze_file).unlink(missing_ok=True)
    try:
        if task.action_scale != 1.0:
            env = ScaledActions(env, task.action_scale)
        if task.compat is not None:
            env = COMPATIBILITY[task.compat](env)
        return TaskEnv(env, task.obs_keys)
    except EnvError as error:
        env.close()
        raise EnvError(f"environment {task.env_id!r}: {error}") from None


def _missing(task: Task, error: Exception) -> str:
    try:
        importlib.import_module("mujoco")
    except ImportError:
        extra = "robotics" if task.domain in ROBOTICS else "mujoco"
        return f"environment {task.env_id!r} needs MuJoCo: pip install 'o2o_smooth[{extra}]'"
    return f"environment {task.env_id!r} needs a package that is not installed: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
