from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector, Episode, RewardHistory, random_policy
from o2o_smooth.data.normalize import RewardMap, observation_statistics
from o2o_smooth.data.store import UNKNOWN_RETURN
from o2o_smooth.envs import Task, make_vector_env
from o2o_smooth.errors import EnvError
from tests.envs.counting import counting_length, counting_task, counting_terminates

MEMBERS, PER_MEMBER, STEPS = 3, 2, 57
TAGS = [4, 11, 3, 10, 0, 7]  # one per sub-environment, in the order of members
DISCOUNT = 0.5
MAP = RewardMap(0.5, -1.0)  # exact in float32


def actions(obs: NDArray[np.float32]) -> NDArray[np.float32]:
    """A policy whose action shows which observation it saw: (step / 100, tag / 100)."""
    return obs[..., 1:] / np.float32(100)


@dataclass(frozen=True)
class Row:
    """What one transition must be."""

    obs: tuple[float, float, float]
    next_obs: tuple[float, float, float]
    reward: float
    terminated: bool
    truncated: bool
    mc_return: float


def expected_rows(tag: int, steps: int) -> list[Row]:
    """The first transitions of a tag, by hand from the counting environment's definition."""
    rows: list[Row] = []
    episode = 0
    while len(rows) < steps:
        length, ends = counting_length(tag, episode), counting_terminates(tag, episode)
        finished = len(rows) + length <= steps
        for k in range(length):
            tail = sum(DISCOUNT**j * (0.5 * (k + 1 + j) - 1.0) for j in range(length - k))
            last = k == length - 1
            rows.append(
                Row(
                    (episode, k, tag),
                    (episode, k + 1, tag),
                    0.5 * (k + 1) - 1.0,
                    last and ends,
                    last and not ends,
                    tail if finished else UNKNOWN_RETURN,
                )
            )
        episode += 1
    return rows[:steps]


def expected_episodes(tag: int, steps: int) -> list[tuple[float, int]]:
    """Raw return and length of the episodes that end within the steps."""
    found: list[tuple[float, int]] = []
    while (taken := sum(length for _, length in found)) < steps:
        length = counting_length(tag, len(found))
        if taken + length > steps:
            break
        found.append((length * (length + 1) / 2, length))
    return found


def collector(
    capacity: int = 10_000, vectorizer: str = "sync", tags: list[int] = TAGS, overlap: bool = False
) -> Collector:
    return Collector(
        make_vector_env(counting_task(), len(tags), vectorizer=vectorizer),
        MEMBERS,
        ReplayBuffer(MEMBERS, capacity, 3, 2),
        reward_map=MAP,
        discount=DISCOUNT,
        seeds=tags,
        overlap=overlap,
    )


@pytest.fixture(scope="module", params=["sync", "async", "sync overlap", "async overlap"])
def collected(request: pytest.FixtureRequest) -> tuple[Collector, list[list[Episode]]]:
    vectorizer, _, overlap = request.param.partition(" ")
    made = collector(vectorizer=vectorizer, overlap=bool(overlap))
    try:
        return made, [made.step(actions) for _ in range(STEPS)]
    finally:
        made.close()


def test_every_row_is_exactly_the_known_transition(collected: tuple[Collector, list[list[Episode]]]) -> None:
    made, _ = collected
    assert len(made.buffer) == STEPS * PER_MEMBER
    batch = made.buffer.gather(torch.arange(len(made.buffer)).expand(MEMBERS, -1))
    for i, tag in enumerate(TAGS):
        member, j = divmod(i, PER_MEMBER)
        rows = expected_rows(tag, STEPS)
        got = {name: value[member, j::PER_MEMBER].numpy() for name, value in batch._asdict().items()}
        np.testing.assert_array_equal(got["obs"], [row.obs for row in rows])
        np.testing.assert_array_equal(got["next_obs"], [row.next_obs for row in rows])
        np.testing.assert_array_equal(got["reward"], [row.reward for row in rows])
        np.testing.assert_array_equal(got["terminated"], [row.terminated for row in rows])
        np.testing.assert_array_equal(got["truncated"], [row.truncated for row in rows])
        np.testing.assert_array_equal(got["mc_return"], np.array([row.mc_return for row in rows], np.float32))
        np.testing.assert_array_equal(got["action"], actions(got["obs"]))
        assert got["terminated"].sum() >= 3
        assert got["truncated"].sum() >= 3
    assert (batch.mc_return == UNKNOWN_RETURN).any()  # some episode is still running


def test_episodes_are_reported_when_they_end_with_their_raw_return(
    collected: tuple[Collector, list[list[Episode]]],
) -> None:
    _, reports = collected
    for t in range(STEPS):
        due = []
        for i, tag in enumerate(TAGS):
            before, now = expected_episodes(tag, t), expected_episodes(tag, t + 1)
            due += [Episode(i // PER_MEMBER, i % PER_MEMBER, *episode) for episode in now[len(before) :]]
        assert reports[t] == due
    assert sum(map(len, reports)) > 60


def test_env_steps_count_per_member(collected: tuple[Collector, list[list[Episode]]]) -> None:
    assert collected[0].env_steps == STEPS * PER_MEMBER == collected[0].buffer.written


@pytest.mark.parametrize("capacity", [1, 3, 7, 20])
def test_full_ring_holds_the_newest_transitions_with_their_returns(capacity: int) -> None:
    made = collector(capacity)
    for _ in range(STEPS):
        made.step(actions)
    batch = made.buffer.gather(torch.arange(capacity).expand(MEMBERS, -1))
    for member in range(MEMBERS):
        tags = TAGS[member * PER_MEMBER : (member + 1) * PER_MEMBER]
        written = [row for both in zip(*(expected_rows(tag, STEPS) for tag in tags), strict=True) for row in both]
        for k in range(len(written) - capacity, len(written)):
            slot = k % capacity
            assert tuple(batch.obs[member, slot].tolist()) == written[k].obs
            assert tuple(batch.next_obs[member, slot].tolist()) == written[k].next_obs
            assert batch.mc_return[member, slot].item() == pytest.approx(written[k].mc_return)


def test_policy_sees_members_apart_and_keeps_what_it_saw() -> None:
    made, seen = collector(), []

    def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
        seen.append(obs)
        return actions(obs)

    for _ in range(4):
        made.step(policy)
    assert [obs.shape for obs in seen] == [(MEMBERS, PER_MEMBER, 3)] * 4
    np.testing.assert_array_equal(seen[0][..., 2].ravel(), TAGS)
    assert (seen[0][..., 1] == 0).all()  # the environment overwrites its own array; what was handed out stays
    assert all(obs.dtype == np.float32 for obs in seen)


@pytest.mark.parametrize("overlap", [False, True])
def test_nothing_is_written_between_the_halves_of_a_step(overlap: bool) -> None:
    made = collector(overlap=overlap)
    made.step(actions)
    for wait in (False, True):
        before = made.env_steps, made.buffer.written
        made.start(actions)
        if wait:
            made.wait()
            made.wait()
        assert (made.env_steps, made.buffer.written) == before
        made.finish()
        assert (made.env_steps, made.buffer.written) == (before[0] + PER_MEMBER, before[1] + PER_MEMBER)
    with pytest.raises(RuntimeError, match="without start"):
        made.finish()
    made.start(actions)
    with pytest.raises(RuntimeError, match="again without finish"):
        made.start(actions)
    made.close()
    assert made.env_steps == 3 * PER_MEMBER


@pytest.mark.parametrize("overlap", [False, True])
def test_actions_may_come_when_they_are_needed(overlap: bool) -> None:
    plain, late = collector(), collector(overlap=overlap)
    for _ in range(20):
        plain.step(actions)
        late.step(lambda obs: lambda obs=obs: actions(obs))  # type: ignore[misc]
    numbers = np.arange(plain.buffer.written)
    for member in range(MEMBERS):
        np.testing.assert_array_equal(
            late.buffer.packed_rows(member, numbers), plain.buffer.packed_rows(member, numbers)
        )
    late.close()


@pytest.mark.parametrize("room", [1, 2, 3, 64])
def test_reward_history_gives_back_whole_episodes_whatever_its_room(room: int) -> None:
    lengths = np.array([3, 1, 29])  # of all episodes of each of three environments
    history = RewardHistory(3, room)
    for t in range(1, 200):
        history.append(np.array([t, 1000 + t, 2000 + t], np.float32))
        for env in np.flatnonzero(t % lengths == 0):
            assert history.take(int(env)) == [1000 * env + k for k in range(t - lengths[env] + 1, t + 1)]
    assert history.room <= max(room, 64)  # twice the longest episode, rounded up


def test_environments_must_divide_among_the_members() -> None:
    with pytest.raises(EnvError, match="5 environments cannot be shared evenly by 3 members"):
        collector(tags=TAGS[:5])


class BrokenEnv(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Returns something broken in one place of the second sub-environment (seed 1); episodes last three steps."""

    def __init__(self, where: str) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.where, self.tag, self.t, self.episode = where, 0, 0, -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self.tag = self.tag if seed is None else seed
        self.t, self.episode = 0, self.episode + 1
        return self._obs({"first reset": 0, "later reset": 1}.get(self.where) == self.episode), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == 3
        reward = float("inf") if self.where == "reward" and self.t == 2 and self.tag == 1 else 0.0
        bad = (self.where == "observation" and self.t == 2) or (self.where == "final observation" and over)
        return self._obs(bad), reward, False, over, {}

    def _obs(self, bad: bool) -> NDArray[np.float32]:
        return np.array([0.0, np.nan if bad and self.tag == 1 else 0.0], np.float32)


@pytest.mark.parametrize(
    ("where", "steps"),
    [("first reset", 0), ("observation", 1), ("reward", 1), ("final observation", 2), ("later reset", 2)],
)
def test_broken_number_stops_with_the_environments_name_before_it_is_stored(where: str, steps: int) -> None:
    if "o2o-smooth-tests/Broken-v0" not in gym.registry:
        gym.register("o2o-smooth-tests/Broken-v0", entry_point="tests.data.test_collect:BrokenEnv")
    task = Task(id="broken", env_id="o2o-smooth-tests/Broken-v0", env_kwargs={"where": where})
    buffer = ReplayBuffer(2, 100, 2, 1)

    def run() -> None:
        made = Collector(make_vector_env(task, 2), 2, buffer, reward_map=RewardMap(), discount=0.9, seeds=[0, 1])
        for _ in range(10):
            made.step(lambda obs: np.full((*obs.shape[:2], 1), 0.25, np.float32))

    words = "first reset" if where == "first reset" else rf"online step {steps} .*action \[0.25\]"
    with pytest.raises(EnvError, match=rf"environment 1 returned NaN or infinity.*{words}"):
        run()
    assert buffer.written == steps
    if steps:
        assert torch.isfinite(buffer.gather(torch.arange(steps).expand(2, -1)).obs).all()


def test_dataset_and_collector_map_rewards_alike() -> None:
    reward = np.array([0.0, 1.0, -3.5])
    assert MAP(reward).tolist() == [-1.0, -0.5, -2.75]
    assert MAP(reward).dtype == np.float32
    assert RewardMap()(reward).tolist() == reward.tolist()


def test_observation_statistics_do_not_lose_small_deviations() -> None:
    rng = np.random.default_rng(0)
    obs = (1000.0 + 0.01 * rng.normal(size=(50_000, 2))).astype(np.float32)
    flags = np.zeros(len(obs), np.bool_)
    mean, std = observation_statistics(Transitions(obs, obs, obs[:, 0], obs, flags, flags))
    exact = obs.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(std, exact.std(0), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_random_policy_is_uniform_in_the_box_and_one_stream_per_member() -> None:
    low, high = np.array([-2.0, 0.0], np.float32), np.array([-1.0, 5.0], np.float32)

    def draw(seeds: list[int]) -> NDArray[np.float32]:
        policy = random_policy(low, high, [np.random.default_rng(seed) for seed in seeds])
        return policy(np.zeros((len(seeds), 4000, 3), np.float32))

    both = draw([0, 1])
    assert both.shape == (2, 4000, 2)
    assert both.dtype == np.float32
    assert ((both >= low) & (both <= high)).all()
    np.testing.assert_allclose(both.mean((0, 1)), [-1.5, 2.5], atol=0.1)
    np.testing.assert_array_equal(both[1], draw([1])[0])
    assert (both[0] != both[1]).all()
