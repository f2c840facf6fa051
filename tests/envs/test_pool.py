"""envpool as a vectorizer: refused with a cure where it cannot be had, and where it can, exact."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs import Task, check_vectorizer, final_observations, find_task, make_env, make_vector_env
from o2o_smooth.envs.pool import POOL_IDS, PoolVectorEnv
from o2o_smooth.errors import EnvError


def still(env_id: str, **changes: Any) -> Task:
    """A task whose episodes all begin in the same state."""
    return Task(id="still", env_id=env_id, env_kwargs={"reset_noise_scale": 0.0}, **changes)


def pool(task: Task, num_envs: int) -> PoolVectorEnv:
    pytest.importorskip("envpool")
    made = make_vector_env(task, num_envs, vectorizer="envpool")
    assert isinstance(made, PoolVectorEnv)
    return made


@pytest.mark.parametrize(
    "task",
    [
        Task(id="pendulum", env_id="Pendulum-v1"),
        Task(id="pen", env_id="Hopper-v5", compat="adroit"),
        Task(id="keys", env_id="Hopper-v5", obs_keys=("a",)),
    ],
)
def test_tasks_that_envpool_would_step_otherwise_are_refused(task: Task) -> None:
    with pytest.raises(EnvError, match=rf"does not step task {task.id} .*Hopper-v5.*use --vectorizer sync or async"):
        check_vectorizer(task, "envpool")


def test_missing_package_names_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)  # as if it were not installed
    for call in (check_vectorizer, lambda task, name: make_vector_env(task, 2, vectorizer=name)):
        with pytest.raises(EnvError, match=r"pip install 'o2o_smooth\[envpool\]', or use --vectorizer sync or async"):
            call(find_task("hopper-medium-v2"), "envpool")


def test_unknown_env_kwargs_are_refused() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(EnvError, match=r"does not take the env_kwargs of task odd .*gravity.*--vectorizer sync"):
        check_vectorizer(Task(id="odd", env_id="Hopper-v5", env_kwargs={"gravity": 1.0}), "envpool")


@pytest.mark.parametrize("env_id", POOL_IDS)
def test_steps_are_gymnasiums_from_equal_starts(env_id: str) -> None:
    task = still(env_id)
    envs, single = pool(task, 1), make_env(task)
    try:
        assert envs.single_action_space == single.action_space
        assert envs.single_observation_space == single.observation_space
        rng = np.random.default_rng(0)
        obs, _ = envs.reset(seed=0)
        expected, _ = single.reset(seed=0)
        np.testing.assert_allclose(obs[0], expected, rtol=0, atol=1e-6)
        box = envs.single_action_space
        assert isinstance(box, gym.spaces.Box)
        for _ in range(30):
            action = rng.uniform(box.low, box.high).astype(np.float32)
            obs, reward, terminated, truncated, infos = envs.step(action[None])
            expected, gain, over, cut, _ = single.step(action)
            np.testing.assert_allclose(final_observations(obs, infos)[0], expected, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(reward[0], float(gain), rtol=1e-3, atol=1e-3)
            assert (bool(terminated[0]), bool(truncated[0])) == (over, cut)
            if over:
                break
    finally:
        envs.close()
        single.close()


def test_actions_are_scaled_as_the_task_says() -> None:
    full, tenth = pool(still("HalfCheetah-v5"), 1), pool(still("HalfCheetah-v5", action_scale=0.1), 1)
    for envs in (full, tenth):
        envs.reset(seed=0)
    a, b = full.step(np.full((1, 6), 0.1, np.float32))[0], tenth.step(np.ones((1, 6), np.float32))[0]
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    full.close()
    tenth.close()


def test_each_environment_has_the_seed_it_was_given() -> None:
    task = find_task("hopper-medium-v2")
    four, two = pool(task, 4), pool(task, 2)
    a, b = four.reset(seed=[7, 8, 9, 2**31 - 1])[0], two.reset(seed=[9, 7])[0]
    np.testing.assert_array_equal(a[[2, 0]], b)
    assert len(np.unique(a[:, 1])) == 4
    np.testing.assert_array_equal(four.reset(seed=7)[0][:3], a[:3])  # one seed: those that follow it
    assert (four.reset()[0] != a).any()
    assert (pool(task, 4).reset()[0] != pool(task, 4).reset()[0]).any()
    four.close()
    two.close()


def collect(num_envs: int, seeds: list[int], steps: int, **options: Any) -> NDArray[np.float32]:
    """Rows (num_envs, steps, width) of random actions in the hopper with a time limit of 20."""
    task = Task(id="short", env_id="Hopper-v5", max_episode_steps=20)
    buffer = ReplayBuffer(num_envs, steps, 11, 3)
    collector = Collector(
        pool(task, num_envs), num_envs, buffer, reward_map=RewardMap(), discount=0.9, seeds=seeds, **options
    )
    rngs = {seed: np.random.default_rng(seed) for seed in seeds}
    try:
        for _ in range(steps):
            collector.step(lambda obs: np.stack([rngs[s].uniform(-1, 1, (1, 3)) for s in seeds]).astype(np.float32))
    finally:
        collector.close()
    return np.stack([buffer.packed_rows(m, np.arange(steps)) for m in range(num_envs)])


def test_every_row_is_a_real_transition_whoever_else_is_in_the_pool() -> None:
    rows = collect(3, [5, 6, 7], 120)
    obs, next_obs = rows[..., :11], rows[..., 11:22]
    terminated, truncated = rows[..., -3] > 0, rows[..., -2] > 0
    over = terminated | truncated
    np.testing.assert_array_equal(obs[:, 1:][~over[:, :-1]], next_obs[:, :-1][~over[:, :-1]])
    begins = obs[:, 1:][over[:, :-1]]
    np.testing.assert_allclose(begins[:, 0], 1.25, atol=0.01)  # every episode begins upright, at rest
    assert np.abs(next_obs[over][:, 5:]).max() > 0.1  # and ends in motion: the successor is not the reset's
    assert terminated.sum() > 3
    assert truncated.sum() > 3
    lengths = np.diff(np.flatnonzero(over[0]), prepend=-1)
    assert lengths.max() == 20
    np.testing.assert_array_equal(collect(2, [7, 5], 120), rows[[2, 0]])
    np.testing.assert_array_equal(collect(3, [5, 6, 7], 120, overlap=True), rows)


def test_termination_in_the_last_step_is_a_termination() -> None:
    """The still hopper falls in the same step whenever it does the same; a time limit there hides nothing."""
    fall = np.full((1, 3), 0.5, np.float32)

    def until_over(task: Task) -> tuple[int, bool, bool]:
        envs = pool(task, 1)
        envs.reset(seed=0)
        for t in range(1, 1000):
            _, _, terminated, truncated, _ = envs.step(fall)
            if terminated[0] or truncated[0]:
                envs.close()
                return t, bool(terminated[0]), bool(truncated[0])
        raise AssertionError("the hopper does not fall")

    length, terminated, truncated = until_over(still("Hopper-v5"))
    assert (terminated, truncated) == (True, False)
    assert until_over(still("Hopper-v5", max_episode_steps=length)) == (length, True, True)
    assert until_over(still("Hopper-v5", max_episode_steps=length - 1)) == (length - 1, False, True)
