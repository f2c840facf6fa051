from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from o2o_smooth.envs import find_task, make_env, make_vector_env
from o2o_smooth.envs.corridor import (
    CORRIDOR_BEHAVIOUR,
    CORRIDOR_ID,
    CORRIDOR_REFERENCE,
    CorridorController,
    CorridorEnv,
    CorridorSettings,
    CorridorVectorEnv,
)
from o2o_smooth.envs.make import final_observations

TASK = find_task("corridor-mixed-v0")
Floats = NDArray[np.float64]


def recomputed(start: Floats, actions: NDArray[Any]) -> tuple[list[list[float]], list[float], bool]:
    """The trajectory from a start, written down once more from the task's equations: states, rewards, whether it left.

    Plain Python floats, so that nothing is shared with the environment.
    """
    y, vy, vx = (float(value) for value in start)
    states, rewards = [[y, vy, vx]], []
    for a in actions.tolist():
        a0, a1 = (max(-1.0, min(1.0, value)) for value in a)
        faster = max(0.0, min(3.0, vx + 0.1 * (2 * a0 - 0.5 * vx)))
        vy = vy + 0.1 * ((1 + 1.5 * vx) * y + 4 * a1)
        y = y + 0.1 * vy
        vx = faster
        states.append([y, vy, vx])
        rewards.append(vx)
        if abs(y) > 1:
            return states, rewards, True
    return states, rewards, False


def played(env: Any, seed: int, choose: Any) -> tuple[Any, ...]:
    """An episode: observations, actions, rewards, how it ended."""
    obs, _ = env.reset(seed=seed)
    seen, actions, rewards, rng = [obs], [], [], np.random.default_rng(seed)
    while True:
        action = choose(obs, rng)
        obs, reward, terminated, truncated, _ = env.step(action)
        seen.append(obs)
        actions.append(action)
        rewards.append(reward)
        if terminated or truncated:
            return np.array(seen), np.array(actions), rewards, terminated, truncated


def wild(obs: Any, rng: np.random.Generator) -> Any:
    return rng.uniform(-1.5, 1.5, 2).astype(np.float32)  # beyond the box: the environment clips


def steered(obs: Any, rng: np.random.Generator) -> Any:
    return CorridorController(CORRIDOR_REFERENCE)(obs[None], rng)[0]


@pytest.mark.parametrize("choose", [wild, steered])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_trajectory_is_the_equations(seed: int, choose: Any) -> None:
    env = gym.make(CORRIDOR_ID)
    bare: Any = env.unwrapped
    env.reset(seed=seed)
    start = bare._state.copy()
    seen, actions, rewards, terminated, truncated = played(env, seed, choose)
    states, want, left = recomputed(start, actions)
    assert len(states) == len(seen)
    np.testing.assert_allclose(seen, np.array(states, dtype=np.float32), rtol=0, atol=1e-6)
    np.testing.assert_allclose(rewards, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(bare._state, states[-1], rtol=0, atol=1e-12)
    assert (terminated, truncated) == (left, len(rewards) == 100)
    assert left == (choose is wild)


def test_edge_of_the_corridor_is_beyond_one_and_speed_stays_between_its_bounds() -> None:
    env = CorridorEnv()
    env.reset(seed=0)
    for y, left in ((1.0, False), (np.nextafter(1.0, 2.0), True), (-1.1, True)):
        env._state = np.array([y, -0.1 * (1 + 1.5 * 0.0) * y, 0.0])  # vy' is 0, so y' is y
        _, reward, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
        assert (env._state[0], terminated, truncated) == (y, left, False)
        assert reward == 0.0
    env._state = np.array([0.0, 0.0, 2.9])
    assert env.step(np.array([1.0, 0.0], np.float32))[1] == pytest.approx(2.955)
    for _ in range(100):  # the drag holds it under 4; the bound is what stops it at 3
        env._state[:2] = 0.0
        reward = env.step(np.array([1.0, 0.0], np.float32))[1]
    assert reward == 3.0
    for _ in range(100):
        env._state[:2] = 0.0
        reward = env.step(np.array([-1.0, 0.0], np.float32))[1]
    assert reward == 0.0


def test_acceleration_reads_the_old_speed_and_position() -> None:
    env = CorridorEnv()
    env.reset(seed=0)
    env._state = np.array([0.5, 0.25, 2.0])
    env.step(np.array([1.0, -0.5], np.float32))
    # vx' = 2 + .1 (2 - 1); vy' = .25 + .1 ((1 + 3) .5 - 2); y' = .5 + .1 vy'
    np.testing.assert_allclose(env._state, [0.525, 0.25, 2.1], rtol=0, atol=1e-15)


def test_starts_fill_their_box() -> None:
    envs = CorridorVectorEnv(4000)
    starts, _ = envs.reset(seed=0)
    np.testing.assert_allclose(starts.min(0), [-0.2, -0.2, 0.0], atol=2e-3)
    np.testing.assert_allclose(starts.max(0), [0.2, 0.2, 0.2], atol=2e-3)
    np.testing.assert_allclose(starts.mean(0), [0.0, 0.0, 0.1], atol=0.01)


def test_gymnasiums_checker_is_content() -> None:
    with warnings.catch_warnings():
        # That infinite bounds are unusual is no fault: y and vy have none.
        warnings.filterwarnings("ignore", message=".*Box observation space (minimum|maximum) value is -?infinity.*")
        warnings.filterwarnings("ignore", message=".*wrapped environment.*")
        check_env(gym.make(CORRIDOR_ID).unwrapped, skip_render_check=True)


def test_same_seed_gives_the_same_episode() -> None:
    env = make_env(TASK)
    first, again, other = (played(env, seed, wild) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    assert first[2] == again[2]
    assert (first[0][0] != other[0][0]).any()


def record(envs: Any, steps: int) -> list[Any]:
    """Everything that a vector environment gives for a row of fixed actions."""
    rng = np.random.default_rng(1)
    obs, _ = envs.reset(seed=[11, 5, 8])
    seen: list[Any] = [obs.copy()]
    for t in range(steps):
        action = CorridorController(CorridorSettings(3.0, 0.2))(obs, rng)  # some episodes last
        action[0] = rng.uniform(-1, 1, 2)  # and some do not
        obs, reward, terminated, truncated, infos = envs.step(action)
        seen += [obs.copy(), reward, terminated, truncated, final_observations(obs, infos)]
        assert ("final_obs" in infos) == bool((terminated | truncated).any()), t
    obs, _ = envs.reset()  # generators go on
    seen.append(obs.copy())
    obs, _ = envs.reset(seed=7)
    seen.append(obs.copy())
    envs.close()
    return seen


def plain() -> SyncVectorEnv:
    """gymnasium's own vector environment over single ones."""
    return SyncVectorEnv([lambda: make_env(TASK)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)


def test_all_vector_environments_give_the_same_numbers() -> None:
    want = record(plain(), 230)
    ended = np.array(want[4:-2:5]), np.array(want[3:-2:5])
    assert all(flags.sum() > 2 for flags in ended)  # of both kinds
    sync = make_vector_env(TASK, 3)
    assert isinstance(sync, CorridorVectorEnv)
    for made in (sync, make_vector_env(TASK, 3, vectorizer="async")):
        for mine, theirs in zip(record(made, 230), want, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)


def test_vector_environment_has_the_tasks_time_limit_and_spaces() -> None:
    envs, env = make_vector_env(TASK, 2), make_env(TASK)
    assert (envs.single_observation_space, envs.single_action_space) == (env.observation_space, env.action_space)
    assert envs.observation_space.shape == (2, 3)
    short = CorridorVectorEnv(2, max_episode_steps=3)
    short.reset(seed=0)
    flags = [short.step(np.zeros((2, 2), np.float32))[3].tolist() for _ in range(6)]
    assert flags == [[False] * 2, [False] * 2, [True] * 2] * 2
    with pytest.raises(ValueError, match="3 seeds for 2"):
        short.reset(seed=[1, 2, 3])


def test_global_random_state_is_untouched() -> None:
    before: Any = np.random.get_state()  # noqa: NPY002  # it is what must not move
    envs = CorridorVectorEnv(2)
    envs.reset(seed=0)
    envs.step(CorridorController()(envs.reset()[0], np.random.default_rng(0)))
    after: Any = np.random.get_state()  # noqa: NPY002
    np.testing.assert_array_equal(before[1], after[1])


def mean_return(act: Any, episodes: int, seed: int) -> float:
    envs, rng = CorridorVectorEnv(episodes), np.random.default_rng(seed)
    obs, _ = envs.reset(seed=seed)
    total, running = np.zeros(episodes), np.ones(episodes, dtype=np.bool_)
    for _ in range(100):
        obs, reward, terminated, truncated, _ = envs.step(act(obs, rng))
        total += reward * running
        running &= ~(terminated | truncated)
    return float(total.mean())


def test_references_are_those_of_uniform_play_and_of_the_fast_controller() -> None:
    def uniform(obs: Any, rng: np.random.Generator) -> Any:
        return rng.uniform(-1, 1, (len(obs), 2))

    scores = TASK.score([mean_return(uniform, 3000, 1), mean_return(CorridorController(CORRIDOR_REFERENCE), 200, 1)])
    assert scores is not None
    assert abs(scores[0]) < 0.25  # a standard error is 0.02; the reference itself is rounded 0.07 below the mean
    assert abs(scores[1] - 100) < 0.1


def test_behaviour_holds_its_lane_and_leaves_room() -> None:
    score = TASK.score(mean_return(CorridorController(CORRIDOR_BEHAVIOUR), 100, 2))
    assert score is not None
    assert 34 < score < 37


def test_controller_is_its_formula() -> None:
    obs = np.array([[0.2, -0.5, 0.9], [0.9, 0.9, 0.0], [0.0, 0.0, 3.0]])
    quiet = CorridorController(CorridorSettings(1.0, 0.0))(obs, np.random.default_rng(0))
    np.testing.assert_allclose(quiet, [[0.45, 0.1], [1.0, -1.0], [-1.0, 0.0]], atol=1e-6)
    assert quiet.dtype == np.float32
    noisy = CorridorController(CorridorSettings(1.0, 0.3))(
        np.tile([[0.0, 0.0, 1.0]], (4000, 1)), np.random.default_rng(0)
    )
    np.testing.assert_allclose(noisy.mean(0), [0.25, 0.0], atol=0.02)
    np.testing.assert_allclose(noisy.std(0), 0.3, atol=0.02)
    assert np.abs(noisy).max() <= 1.0


def test_environment_of_all_its_tasks_is_found_without_their_data() -> None:
    bare = find_task(CORRIDOR_ID)
    assert (bare.domain, bare.dataset_ids, bare.ref_expert) == ("corridor", (), TASK.ref_expert)
    for kind in ("mixed", "medium", "narrow"):
        task = find_task(f"o2o-smooth/corridor/{kind}-v0")
        assert (task.id, task.max_episode_steps) == (f"corridor-{kind}-v0", 100)
