"""The environments are D4RL's: its reference scores hold in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.data.policies import ArrayPolicy
from o2o_smooth.envs import Task, find_task, make_env, make_vector_env
from o2o_smooth.envs.compat import KITCHEN_GOALS, D4RLAdroit, D4RLKitchen, ScaledActions
from o2o_smooth.errors import EnvError
from tests.shared import shared

pytest.importorskip("gymnasium_robotics")

HANDS = ("pen", "hammer", "door", "relocate")


def scores(task: Task, act: Any, episodes: int) -> NDArray[np.float64]:
    """Scores of `episodes` episodes, one after the other from fixed seeds."""
    env = make_env(task)
    returns = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=1000 + episode)
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total += float(reward)
            ended = terminated or truncated
        returns.append(total)
    env.close()
    found = task.score(returns)
    assert found is not None
    return found


@pytest.mark.parametrize("hand", HANDS)
def test_random_policy_scores_0(hand: str) -> None:
    task = find_task(f"{hand}-human-v1")
    rng = np.random.default_rng(0)
    found = scores(task, lambda obs: rng.uniform(-1, 1, 30)[: SIZES[hand]].astype(np.float32), 40)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean()) < max(1.0, 3 * error)
    assert error < (6.0 if hand == "pen" else 0.5)  # pen: spread over random targets


SIZES = {"pen": 24, "hammer": 26, "door": 28, "relocate": 30}


@pytest.mark.parametrize(("hand", "low", "high", "episodes"), [("door", 98.0, 108.0, 10), ("pen", 80.0, 119.0, 60)])
def test_expert_policy_scores_what_d4rls_does(hand: str, low: float, high: float, episodes: int) -> None:
    policy = ArrayPolicy(shared(f"data/policies/{hand}_dapg.npz"))
    rng = np.random.default_rng(0)
    found = scores(find_task(f"{hand}-expert-v1"), lambda obs: policy(obs[None], rng)[0], episodes)
    assert low < found.mean() < high


def test_human_demonstrations_replay_to_the_recorded_returns() -> None:
    """Open loop, from the recorded initial states: actions and wrapper give the recorded rewards back."""
    with h5py.File(shared("data/d4rl/door-human.hdf5")) as file:
        actions, rewards, timeouts = (file[name][()] for name in ("actions", "rewards", "timeouts"))
        initial = [file[f"infos/init_{name}"][()] for name in ("qpos", "qvel", "door_body_pos")]
    task = find_task("door-human-v1")
    env = make_env(
        Task(id="door, as long as a demonstration", env_id=task.env_id, max_episode_steps=400, compat="adroit")
    )
    recorded, replayed = [], []
    ends = np.flatnonzero(timeouts)
    for episode, (first, last) in enumerate(zip([0, *(ends[:-1] + 1)], ends, strict=True)):
        state = dict(zip(("qpos", "qvel", "door_body_pos"), (part[episode] for part in initial), strict=True))
        env.reset(seed=0, options={"initial_state_dict": state})
        replayed.append(sum(float(env.step(action)[1]) for action in actions[first : last + 1]))
        recorded.append(float(rewards[first : last + 1].sum()))
    env.close()
    assert len(recorded) == 25
    assert np.corrcoef(recorded, replayed)[0, 1] > 0.98


def test_reward_differs_from_the_shipped_one_by_the_sign_of_the_distance() -> None:
    ours, shipped = make_env(find_task("door-human-v1")), gym.make("AdroitHandDoor-v1")
    ours.reset(seed=3)
    shipped.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 28).astype(np.float32)
        obs, reward, *_ = ours.step(action)
        bare: Any = shipped.step(action)[1]
        distance = float(np.linalg.norm(obs[35:38]))  # the observation's own palm to handle
        assert float(np.asarray(bare).item()) - float(reward) == pytest.approx(0.2 * distance, abs=1e-6)
    ours.close()
    shipped.close()


def test_sparse_reward_has_no_distance_to_turn() -> None:
    env = D4RLAdroit(gym.make("AdroitHandDoorSparse-v1"))
    env.reset(seed=0)
    assert env.step(np.zeros(28, np.float32))[1] == pytest.approx(-0.1)
    env.close()


def test_pen_ends_when_it_is_dropped_and_after_100_steps_at_the_latest() -> None:
    task = find_task("pen-human-v1")
    env = make_env(task)
    bare: Any = env.unwrapped
    rng = np.random.default_rng(0)
    dropped = whole = 0
    for episode in range(20):
        env.reset(seed=episode)
        steps, ended = 0, False
        still = episode % 2 == 0
        while not ended:
            steps += 1
            *_, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 24).astype(np.float32) * (0.0 if still else 1.0))
            assert terminated == (bare.data.xpos[bare.obj_body_id][2] < 0.075)
            ended = terminated or truncated
        dropped += terminated
        whole += truncated and steps == 100
    env.close()
    assert dropped > 0
    assert whole > 0


@pytest.mark.parametrize("name", ["kitchen-complete-v0", "kitchen-mixed-v0", "D4RL/kitchen/partial-v2"])
def test_kitchen_observation_is_d4rls_flat_60(name: str) -> None:
    task = find_task(name)
    env = make_env(task)
    obs, _ = env.reset(seed=0)
    bare: Any = env.unwrapped
    assert obs.shape == (60,)
    np.testing.assert_allclose(obs[:30], bare.data.qpos, atol=0.02)  # but for the noise
    goal = np.zeros(30)
    for subtask in task.env_kwargs["tasks_to_complete"]:
        first, positions = KITCHEN_GOALS[subtask]
        goal[first : first + len(positions)] = positions
    np.testing.assert_allclose(obs[30:], goal, atol=1e-6)
    assert np.count_nonzero(goal) >= 7
    env.close()


def test_kitchen_pays_a_finished_subtask_once_and_ends_with_the_last() -> None:
    env = make_env(find_task("kitchen-complete-v0"))
    env.reset(seed=0)
    bare: Any = env.unwrapped
    total, terminated = 0.0, False
    info: dict[str, Any] = {}
    for subtask in ("microwave", "kettle", "light switch", "slide cabinet"):
        assert not terminated
        first, positions = KITCHEN_GOALS[subtask]
        bare.data.qpos[first : first + len(positions)] = positions
        for _ in range(2):
            _, reward, terminated, _, info = env.step(np.zeros(9, np.float32))
            total += float(reward)
            if terminated:
                break
    assert (total, terminated, info["success"]) == (4.0, True, True)
    env.close()


def test_d4rls_horizons() -> None:
    assert {find_task(f"kitchen-{name}-v0").max_episode_steps for name in ("complete", "partial", "mixed")} == {280}
    assert find_task("D4RL/kitchen/partial-v2").max_episode_steps == 450  # as Minari recorded its set


@pytest.mark.parametrize("wrapper", [D4RLAdroit, D4RLKitchen])
def test_wrapper_on_another_environment_is_refused(wrapper: Any) -> None:
    with pytest.raises(EnvError, match="does not fit"):
        wrapper(gym.make("Pendulum-v1"))


def test_wrapped_environment_can_be_made_again_from_its_specification() -> None:
    env = D4RLAdroit(ScaledActions(gym.make("AdroitHandPen-v1"), 0.5))
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, D4RLAdroit)
    assert isinstance(again.env, ScaledActions)
    env.close()
    again.close()


def test_vector_env_has_the_wrapper_too() -> None:
    envs = make_vector_env(find_task("pen-human-v1"), 2)
    envs.reset(seed=0)
    ends = 0
    rng = np.random.default_rng(0)
    for _ in range(150):
        ends += int(envs.step(rng.uniform(-1, 1, (2, 24)).astype(np.float32))[2].sum())
    envs.close()
    assert ends > 0


def test_policy_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    from o2o_smooth.errors import DataError

    np.savez(tmp_path / "a.npz", W0=np.zeros((3, 2)), b0=np.zeros(3), W1=np.zeros((1, 4)), b1=np.zeros(1))
    with pytest.raises(DataError, match="do not fit"):
        ArrayPolicy(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    with pytest.raises(DataError, match="holds no network"):
        ArrayPolicy(tmp_path / "b.npz")
    with pytest.raises(DataError, match="no policy file"):
        ArrayPolicy(tmp_path / "c.npz")


@pytest.mark.parametrize(("scale", "runs"), [(0.2, True), (1.0, False)])
def test_d4rls_ant_runs_with_its_own_torques_and_lies_on_its_back_with_gymnasiums(scale: float, runs: bool) -> None:
    """The policy that collected D4RL's AntMaze, sent down the first corridor: gear 30 is what it was trained with."""
    policy = ArrayPolicy(shared("data/policies/ant_goal.npz"))
    env = make_env(replace(find_task("antmaze-umaze-v2"), action_scale=scale))
    travelled, on_its_back = [], []
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        start, upside_down, rng = obs[0], 0, np.random.default_rng(seed)
        for _ in range(80):
            command = np.array([10.0, 0.0])
            obs, *_ = env.step(policy(np.concatenate([obs[2:29], command])[None], rng)[0])
            _, x, y, _ = obs[3:7]  # the torso's quaternion
            upside_down += bool(x * x + y * y > 0.5)
        travelled.append(float(obs[0] - start))
        on_its_back.append(upside_down)
    env.close()
    assert (np.mean(travelled) > 4.0) == runs  # metres, of the 8 that the corridor has
    assert (max(on_its_back) == 0) == runs
