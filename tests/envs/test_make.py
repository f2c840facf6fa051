from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.envs import Task, episode_success, final_observations, find_task, make_env, make_vector_env
from o2o_smooth.envs.workers import WorkerVectorEnv
from o2o_smooth.errors import EnvError
from tests.envs.counting import counting_length, counting_task, counting_terminates

N_ENVS = 3
STEPS = 60


class SpaceEnv(gym.Env[Any, Any]):
    """An environment with spaces to order."""

    def __init__(self, obs: gym.Space[Any], action: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = obs, action
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.seen.append(action)
        return self.observation_space.sample(), 0.0, False, False, {}


def box(*shape: int, low: float = -1.0, high: float = 1.0, dtype: Any = np.float32) -> gym.spaces.Box:
    return gym.spaces.Box(low, high, shape, dtype)


def space_task(obs: gym.Space[Any], action: gym.Space[Any], **changes: Any) -> Task:
    if "o2o-smooth-tests/Space-v0" not in gym.registry:
        gym.register("o2o-smooth-tests/Space-v0", entry_point="tests.envs.test_make:SpaceEnv")
    return Task(id="space", env_id="o2o-smooth-tests/Space-v0", env_kwargs={"obs": obs, "action": action}, **changes)


@pytest.fixture(scope="module", params=["sync", "async"])
def counted(request: pytest.FixtureRequest) -> dict[str, NDArray[Any]]:
    """Many steps of the counting environments: obs, next_obs, reward, flags, success, all (steps, envs, ...)."""
    envs = make_vector_env(counting_task(), N_ENVS, vectorizer=request.param)
    rows: dict[str, list[Any]] = {name: [] for name in ("obs", "next_obs", "reward", "terminated", "truncated", "ok")}
    try:
        obs, _ = envs.reset(seed=0)  # the tags are 0, 1, 2
        for _ in range(STEPS):
            next_obs, reward, terminated, truncated, infos = envs.step(np.zeros((N_ENVS, 2), np.float32))
            success = episode_success(infos, terminated | truncated)
            rows["obs"].append(obs)
            rows["next_obs"].append(final_observations(next_obs, infos))
            rows["reward"].append(reward)
            rows["terminated"].append(terminated)
            rows["truncated"].append(truncated)
            rows["ok"].append(np.zeros(N_ENVS, np.bool_) if success is None else success)
            obs = next_obs
    finally:
        envs.close()
    return {name: np.stack(values) for name, values in rows.items()}


def expected_transitions(tag: int) -> list[tuple[list[int], list[int], int, bool, bool, bool]]:
    rows: list[tuple[list[int], list[int], int, bool, bool, bool]] = []
    episode = 0
    while len(rows) < STEPS:
        length = counting_length(tag, episode)
        for step in range(length):
            last = step == length - 1
            ends = counting_terminates(tag, episode)
            success = last and episode % 3 == 0
            here, there = [episode, step, tag], [episode, step + 1, tag]
            rows.append((here, there, step + 1, last and ends, last and not ends, success))
        episode += 1
    return rows[:STEPS]


def test_vector_steps_give_exactly_the_true_transitions(counted: dict[str, NDArray[Any]]) -> None:
    for tag in range(N_ENVS):
        obs, next_obs, reward, terminated, truncated, _ = zip(*expected_transitions(tag), strict=True)
        np.testing.assert_array_equal(counted["obs"][:, tag], obs)
        np.testing.assert_array_equal(counted["next_obs"][:, tag], next_obs)
        np.testing.assert_array_equal(counted["reward"][:, tag], reward)
        np.testing.assert_array_equal(counted["terminated"][:, tag], terminated)
        np.testing.assert_array_equal(counted["truncated"][:, tag], truncated)
    assert counted["terminated"].any(axis=0).all()
    assert counted["truncated"].any(axis=0).all()


def test_success_once_in_an_episode_is_success_of_the_episode(counted: dict[str, NDArray[Any]]) -> None:
    for tag in range(N_ENVS):
        np.testing.assert_array_equal(counted["ok"][:, tag], [row[-1] for row in expected_transitions(tag)])
    assert counted["ok"].any(axis=0).all()


@pytest.mark.parametrize("vectorizer", ["sync", "async"])
def test_vector_env_resets_in_the_step_that_ends_an_episode(vectorizer: str) -> None:
    envs = make_vector_env(counting_task(), 1, vectorizer=vectorizer)
    try:
        assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.SAME_STEP
    finally:
        envs.close()


def test_final_observations_are_a_copy() -> None:
    next_obs = np.zeros((2, 3), np.float32)
    successors = final_observations(next_obs, {})
    next_obs += 1
    assert (successors == 0).all()


def test_observations_are_copies_of_the_environments_array() -> None:
    env = make_env(counting_task())
    first, _ = env.reset(seed=5)
    env.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(first, [0, 0, 5])


def test_success_is_none_where_the_environment_reports_none() -> None:
    envs = make_vector_env(replace(find_task("Pendulum-v1"), max_episode_steps=2), 2)
    envs.reset(seed=0)
    for _ in range(2):
        *_, truncated, infos = envs.step(np.zeros((2, 1), np.float32))
    assert truncated.all()
    assert episode_success(infos, truncated) is None
    envs.close()


@pytest.mark.parametrize(
    ("name", "obs_dim", "action_dim"),
    [
        ("D4RL/pointmaze/umaze-dense-v2", 6, 2),
        ("antmaze-umaze-v2", 31, 8),
        ("hopper-medium-v2", 11, 3),
        ("Pendulum-v1", 3, 1),
    ],
)
def test_env_has_flat_float32_observations_and_the_tasks_limit(name: str, obs_dim: int, action_dim: int) -> None:
    pytest.importorskip("gymnasium_robotics")
    task = find_task(name)
    env = make_env(task)
    obs, _ = env.reset(seed=0)
    assert obs.dtype == np.float32
    assert (obs.shape, env.action_space.shape) == ((obs_dim,), (action_dim,))
    assert env.observation_space.contains(obs)
    next_obs, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(next_obs)
    assert env.spec is not None
    assert env.spec.max_episode_steps == task.max_episode_steps
    env.close()


def test_dict_observation_is_concatenated_in_the_tasks_order() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_env(find_task("antmaze-umaze-v2"))
    flat, _ = env.reset(seed=3)
    raw, _ = env.get_wrapper_attr("env").reset(seed=3)
    np.testing.assert_array_equal(
        flat, np.concatenate([raw["achieved_goal"], raw["observation"], raw["desired_goal"]]).astype(np.float32)
    )
    env.close()


def test_dict_observation_without_keys_takes_the_order_of_the_space() -> None:
    space = gym.spaces.Dict({"b": box(2, low=0, high=0), "a": box(1, 2, low=-3, high=-3)})
    obs, _ = make_env(space_task(space, box(1))).reset(seed=0)
    np.testing.assert_array_equal(obs, [-3, -3, 0, 0])


def test_reward_is_raw_and_antmaze_ends_at_the_goal() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_env(find_task("antmaze-umaze-v2"))
    env.reset(seed=0)
    maze = env.unwrapped
    _, reward, terminated, _, info = env.step(np.zeros(8, np.float32))
    assert (reward, terminated) == (0.0, False)
    assert "episode_success" not in info
    maze.goal = np.array(maze.data.qpos[:2])  # type: ignore[attr-defined]
    _, reward, terminated, _, info = env.step(np.zeros(8, np.float32))
    assert (reward, terminated, info["episode_success"]) == (1.0, True, True)
    env.close()


def test_actions_reach_the_simulator_scaled() -> None:
    env = make_env(space_task(box(1), box(2), action_scale=0.2))
    env.reset(seed=0)
    env.step(np.array([1.0, -0.5], np.float32))
    (seen,) = env.get_wrapper_attr("seen")
    np.testing.assert_allclose(seen, np.array([0.2, -0.1]), rtol=1e-6)


def test_task_limit_truncates() -> None:
    env = make_env(space_task(box(1), box(1), max_episode_steps=3))
    env.reset(seed=0)
    flags = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]


def test_float64_bounds_beyond_float32_become_infinite_without_a_warning() -> None:
    env = make_env(space_task(box(1, low=-1e300, high=1e300, dtype=np.float64), box(1)))
    assert isinstance(env.observation_space, gym.spaces.Box)
    assert np.isinf(env.observation_space.high).all()


@pytest.mark.parametrize(
    ("obs", "action", "words"),
    [
        (box(1), gym.spaces.Discrete(2), r"Discrete\(2\)"),
        (box(1), box(1, low=-np.inf, high=np.inf), "unbounded action space"),
        (box(1), box(1, low=0, high=3, dtype=np.int32), "unsupported action space"),
        (gym.spaces.Discrete(4), box(1), r"observation space Discrete\(4\)"),
        (gym.spaces.Dict({"a": gym.spaces.Discrete(3)}), box(1), "Dict of Box"),
    ],
)
def test_unsupported_space_is_named_with_what_is_supported(
    obs: gym.Space[Any], action: gym.Space[Any], words: str
) -> None:
    with pytest.raises(EnvError, match=words) as error:
        make_env(space_task(obs, action))
    assert "supported is" in str(error.value) or "supported are" in str(error.value)


def test_unknown_observation_key_is_named() -> None:
    with pytest.raises(EnvError, match="no key 'velocity'"):
        make_env(space_task(gym.spaces.Dict({"a": box(1)}), box(1), obs_keys=("velocity",)))


def test_unknown_env_and_bad_arguments_are_env_errors() -> None:
    with pytest.raises(EnvError, match="no environment 'Nope-v0'"):
        make_env(Task(id="x", env_id="Nope-v0"))
    with pytest.raises(EnvError, match="num_envs is 0"):
        make_vector_env(counting_task(), 0)
    with pytest.raises(EnvError, match="'threads'"):
        make_vector_env(counting_task(), 1, vectorizer="threads")
    with pytest.raises(EnvError, match="no_such"):
        make_env(Task(id="x", env_id="Pendulum-v1", env_kwargs={"no_such": 1}))


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [("gymnasium_robotics", "antmaze-umaze-v2", "robotics"), ("mujoco", "hopper-medium-v2", "mujoco")],
)
def test_missing_package_names_the_extra(package: str, name: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from o2o_smooth.envs import find_task, make_env\n"
        f"make_env(find_task({name!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("o2o_smooth.errors.EnvError")
    assert f"pip install 'o2o_smooth[{extra}]'" in last


def test_async_env_closes_its_processes() -> None:
    envs = make_vector_env(counting_task(), 2, vectorizer="async")
    assert isinstance(envs, WorkerVectorEnv)
    processes = envs.processes
    envs.reset(seed=0)
    envs.close()
    assert not any(process.is_alive() for process in processes)


def test_maze_leaves_no_file_behind() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_env(find_task("D4RL/pointmaze/umaze-dense-v2"))
    assert not Path(env.get_wrapper_attr("tmp_xml_file_path")).exists()
    env.reset(seed=0)
    env.close()


def test_same_seed_gives_the_same_episode() -> None:
    pytest.importorskip("gymnasium_robotics")
    env = make_env(find_task("D4RL/pointmaze/umaze-dense-v2"))
    first, again, other = (env.reset(seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    env.close()


def test_script_without_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from o2o_smooth.envs import find_task, make_vector_env\n"
        "make_vector_env(find_task('Pendulum-v1'), 1, vectorizer='async')\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "o2o_smooth.errors.EnvError: the environment processes ended" in done.stderr
