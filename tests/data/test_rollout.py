"""Roll-outs: whole episodes as the environment gave them, in an order that favours none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.data import rollout
from o2o_smooth.data.generate import Policy, array_policy, random_policy, scripted_policy, with_noise
from o2o_smooth.data.rollout import (
    Lanes,
    interleave,
    read_recordings,
    roll_out,
    uniform_policy,
    write_recordings,
)
from o2o_smooth.envs import Task, find_task, make_env
from o2o_smooth.envs.scripted import WaypointController
from o2o_smooth.errors import DataError, EnvError
from tests.envs.counting import counting_length, counting_task, counting_terminates

LOW, HIGH = np.full(2, -1, np.float32), np.ones(2, np.float32)


class Moody(gym.Env[NDArray[np.float64], NDArray[Any]]):
    """An episode lasts 1 step or 19, by the parity of the seed; observations and rewards can be broken."""

    def __init__(self, nan_obs: int = -1, nan_reward: int = -1, endless: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float64)
        self.broken, self.endless = (nan_obs, nan_reward), endless

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.length = 0, 19 if (seed or 0) % 2 else 1
        return np.array([np.nan if self.broken[0] == 0 else 0.0]), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        obs = np.array([np.nan if self.steps == self.broken[0] else float(self.steps)])
        reward = np.nan if self.steps == self.broken[1] else 1.0
        return obs, reward, False, self.steps >= self.length and not self.endless, {}


def moody(**kwargs: Any) -> Task:
    if "o2o-smooth-tests/Moody-v0" not in gym.registry:
        gym.register("o2o-smooth-tests/Moody-v0", entry_point="tests.data.test_rollout:Moody")
    return Task(id="moody", env_id="o2o-smooth-tests/Moody-v0", env_kwargs=kwargs)


def still(obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
    return np.zeros((len(obs), 1), np.float32)


@pytest.fixture
def lanes() -> Iterator[list[Any]]:
    """Three counting environments."""
    envs = [make_env(counting_task()) for _ in range(3)]
    yield envs
    for env in envs:
        env.close()


def expected_starts(seed: int, count: int, transitions: int) -> list[int]:
    """Seeds of the episodes that count, from the definition: those that start first, until they are long enough."""
    rng = np.random.default_rng(seed)
    started: list[int] = []
    free = dict.fromkeys(range(count), 0)  # lane -> the moment its episode is over
    for now in range(10_000):
        for lane in range(count):
            if free[lane] == now:
                started.append(int(rng.integers(2**31)))
                free[lane] = now + counting_length(started[-1], 0)
        while (total := sum(counting_length(s, 0) for s in started)) - counting_length(started[-1], 0) >= transitions:
            started.pop()
        if total >= transitions:
            return started
    raise AssertionError


@pytest.mark.parametrize("transitions", [1, 5, 60])
def test_episodes_are_whole_and_are_those_that_started_first(lanes: list[Any], transitions: int) -> None:
    def act(obs: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
        return np.asarray(obs[:, 1:] / np.float32(100), dtype=np.float32)

    episodes = roll_out(lanes, act, np.random.default_rng(7), transitions=transitions)
    assert [episode.seed for episode in episodes] == expected_starts(7, 3, transitions)
    lengths = [len(episode.rewards) for episode in episodes]
    assert sum(lengths) >= transitions > sum(lengths[:-1])
    for episode in episodes:
        length = counting_length(episode.seed, 0)
        steps = np.arange(length + 1)
        # float64, as the environment below our wrapper gives them, and copies though it overwrites its array
        seen = np.stack([np.zeros(length + 1), steps, np.full(length + 1, episode.seed)], axis=1)
        np.testing.assert_array_equal(episode.observations, seen)
        assert episode.observations.dtype == np.float64
        np.testing.assert_array_equal(episode.rewards, steps[1:])
        np.testing.assert_array_equal(episode.actions[:, 0], np.float32(steps[:-1]) / np.float32(100))
        last = steps[1:] == length
        np.testing.assert_array_equal(episode.terminations, last & counting_terminates(episode.seed, 0))
        np.testing.assert_array_equal(episode.truncations, last & (not counting_terminates(episode.seed, 0)))


def test_short_episodes_are_not_over_represented() -> None:
    """Half of the episodes have 19 steps, the others 1; those that finish first are mostly short ones."""
    envs = [make_env(moody()) for _ in range(8)]
    rng = np.random.default_rng(0)
    lengths = [len(e.rewards) for _ in range(150) for e in roll_out(envs, still, rng, transitions=40)]
    assert len(lengths) > 500
    assert np.mean(np.array(lengths) == 19) == pytest.approx(0.5, abs=0.06)


def test_equal_arguments_give_equal_arrays_and_another_seed_does_not(lanes: list[Any]) -> None:
    def arrays(seed: int) -> list[NDArray[Any]]:
        played = roll_out(lanes, uniform_policy(LOW, HIGH), np.random.default_rng(seed), transitions=30)
        return [np.concatenate([getattr(e, name) for e in played]) for name in ("observations", "actions", "rewards")]

    first = arrays(1)
    for a, b in zip(first, arrays(1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1], arrays(2)[1])


def test_progress_counts_finished_episodes_up_to_what_was_asked(lanes: list[Any]) -> None:
    seen: list[tuple[int, int]] = []
    roll_out(
        lanes, uniform_policy(LOW, HIGH), np.random.default_rng(0), transitions=30, progress=lambda *a: seen.append(a)
    )
    assert seen[-1] == (30, 30)
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert 0 < counts[0] < 30


def test_actions_are_recorded_as_executed() -> None:
    env = make_env(moody())
    (episode,) = roll_out([env], lambda obs, rng: np.full((1, 1), 7.0), np.random.default_rng(0), transitions=1)
    np.testing.assert_array_equal(episode.actions, np.full_like(episode.actions, 2.0))
    assert episode.actions.dtype == np.float32


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"nan_obs": 3}, r"Moody-v0 returned an observation with NaN or infinity in step 3 of an episode in lane \d"),
        ({"nan_obs": 0}, "NaN or infinity at a reset in lane 0"),
        ({"nan_reward": 2}, r"Moody-v0 returned a reward of nan in step 2 of an episode in lane \d"),
        ({"endless": True}, "no end of an episode after 30 steps"),
    ],
)
def test_broken_environment_is_named_with_step_and_lane(
    monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(rollout, "LONGEST_EPISODE", 30)
    envs = [make_env(moody(**kwargs)) for _ in range(4)]
    with pytest.raises(EnvError, match=words):
        roll_out(envs, still, np.random.default_rng(0), transitions=300)


@pytest.mark.parametrize(("action", "words"), [(np.full((1, 1), np.nan), "NaN"), (np.zeros((1, 2)), r"\(1, 2\)")])
def test_broken_policy_is_an_error(action: NDArray[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        roll_out([make_env(moody())], lambda obs, rng: action, np.random.default_rng(0), transitions=1)


def test_no_transitions_are_refused() -> None:
    with pytest.raises(DataError, match="at least 1"):
        roll_out([make_env(moody())], still, np.random.default_rng(0), transitions=0)


def test_one_lane_plays_what_a_plain_loop_plays() -> None:
    """The PointMaze sets that were made before there were lanes stay what they are."""
    pytest.importorskip("gymnasium_robotics")
    task = find_task("D4RL/pointmaze/open-v2")
    env: Any = make_env(task)
    policy = scripted_policy(task, env)
    played = roll_out([env], policy.act, np.random.default_rng(5), transitions=200, flatten=policy.flatten)
    rng = np.random.default_rng(5)
    controller = WaypointController(env.get_wrapper_attr("maze"))
    for episode in played:
        obs, _ = env.env.reset(seed=int(rng.integers(2**31)))
        for step, action in enumerate(episode.actions):
            for key, value in obs.items():
                np.testing.assert_array_equal(episode.observations[key][step], value)
            flat = np.concatenate([obs["observation"], obs["desired_goal"]])
            np.testing.assert_array_equal(action, controller(flat[None], rng)[0])
            obs, reward, *_ = env.env.step(action)
            assert episode.rewards[step] == reward
    assert [len(episode.rewards) for episode in played] == [150, 150]
    assert set(played[0].observations) == {"observation", "achieved_goal", "desired_goal"}
    env.close()


def test_recordings_come_back_from_disk_as_they_were(tmp_path: Path, lanes: list[Any]) -> None:
    def record(envs: list[Any]) -> None:
        recorder = Lanes(envs)
        rng = np.random.default_rng(0)
        for _ in range(9):
            for lane in recorder.idle:
                recorder.begin(lane, int(rng.integers(1000)))
            recorder.step(uniform_policy(LOW, HIGH)(recorder.obs, rng))
        written = recorder.recordings()
        assert any(not r.finished for r in written)
        assert sum(len(r) for r in written) == recorder.steps == 9 * len(envs)
        write_recordings(tmp_path / "a.npz", written)
        read = read_recordings(tmp_path / "a.npz")
        for a, b in zip(written, read, strict=True):
            assert (a.seed, a.lane, a.start, len(a), a.finished) == (b.seed, b.lane, b.start, len(b), b.finished)
            for name in ("actions", "rewards", "terminations", "truncations"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                assert getattr(a, name).dtype == getattr(b, name).dtype
            np.testing.assert_equal(a.observations, b.observations)
        assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]

    record(lanes)
    pytest.importorskip("gymnasium_robotics")
    record([make_env(find_task("D4RL/pointmaze/open-v2"))])  # dict observations


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_broken_recordings_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "broken.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.npz is absent or broken"):
        read_recordings(file)


def test_interleaved_lists_keep_their_shares_all_along() -> None:
    envs = [make_env(counting_task())]
    rng = np.random.default_rng(0)
    lists = [roll_out(envs, uniform_policy(LOW, HIGH), rng, transitions=n) for n in (300, 100)]
    merged = interleave(lists, [3.0, 1.0])
    assert [e for i, e in merged if i == 0] == lists[0]
    assert [e for i, e in merged if i == 1] == lists[1]
    done = np.cumsum([[len(e.rewards) * (i == k) for k in (0, 1)] for i, e in merged], axis=0)
    assert (np.abs(done[:, 0] - 3 * done[:, 1]) <= 3 * 6).all()  # an episode has 6 steps at most


def actions_of(policy: Policy, n: int = 20_000) -> NDArray[Any]:
    return policy.act(np.zeros((n, 1), np.float32), np.random.default_rng(0))


def test_noise_is_in_units_of_half_the_action_box() -> None:
    env = make_env(moody())  # a box of [-2, 2]
    quiet = Policy("still", still, {"kind": "still"})
    noisy = with_noise(quiet, env, noise=0.1)
    assert actions_of(noisy).std() == pytest.approx(0.2, rel=0.03)
    assert noisy.record == {"kind": "still", "noise": 0.1, "epsilon": 0.0}
    np.testing.assert_array_equal(actions_of(with_noise(quiet, env)), 0)
    odd = actions_of(with_noise(quiet, env, epsilon=0.25))
    assert np.mean(odd != 0) == pytest.approx(0.25, abs=0.02)
    assert odd.max() > 1.9
    assert np.abs(actions_of(random_policy(env))).max() <= 2


def test_array_policy_spans_the_action_box(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, W0=np.zeros((1, 1)), b0=np.array([0.5]), log_std=np.array([-1.0]))
    env = make_env(moody())
    np.testing.assert_array_equal(actions_of(array_policy(path, env, deterministic=True)), 1.0)
    assert actions_of(array_policy(path, env)).std() > 0.3
    np.savez(path, W0=np.zeros((1, 2)), b0=np.zeros(1))
    with pytest.raises(DataError, match="takes 2 observations and gives 1 actions, the environment has 1 and 1"):
        array_policy(path, env)


def test_scripted_controller_is_refused_where_there_is_no_maze() -> None:
    with pytest.raises(DataError, match="for PointMaze tasks and the Corridor, not for moody"):
        scripted_policy(moody(), make_env(moody()))
