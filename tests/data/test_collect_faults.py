"""What a failing environment leaves in the buffer: valid transitions, a truncation, and a count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from o2o_smooth.data.buffer import ReplayBuffer, columns
from o2o_smooth.data.collect import Collector, Episode
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.store import UNKNOWN_RETURN
from o2o_smooth.envs import make_vector_env
from o2o_smooth.envs.supervision import Fault
from o2o_smooth.errors import EnvError
from tests.envs.misbehaving import LENGTH, misbehaving

DISCOUNT = 0.5
AT = columns(2, 1)
WAYS = [("sync", False), ("sync", True), ("async", False), ("async", True)]


def policy(obs: NDArray[np.float32]) -> NDArray[np.float32]:
    return obs[..., 1:] / np.float32(100)


def returns(rewards: list[float]) -> list[float]:
    return [sum(DISCOUNT**j * r for j, r in enumerate(rewards[k:])) for k in range(len(rewards))]


class Made:
    """A collector of two members with two environments each; the last of the first member fails."""

    def __init__(
        self, way: tuple[str, bool], folder: Path, *, at: int = 3, capacity: int = 1000, **kwargs: Any
    ) -> None:
        task = misbehaving(**{"how": "raise", "at": at, "marks": str(folder), "times": 1, "tag": 22, **kwargs})
        self.buffer = ReplayBuffer(2, capacity, 2, 1)
        self.faults: list[Fault] = []
        envs = make_vector_env(task, 4, vectorizer=way[0])
        self.collector = Collector(
            envs,
            2,
            self.buffer,
            reward_map=RewardMap(),
            discount=DISCOUNT,
            seeds=[11, 22, 33, 44],
            overlap=way[1],
            on_fault=self.faults.append,
        )

    def steps(self, count: int) -> list[list[Episode]]:
        try:
            return [self.collector.step(policy) for _ in range(count)]
        finally:
            self.collector.close()

    def rows(self, member: int, lane: int) -> NDArray[np.float32]:
        numbers = np.arange(lane, self.buffer.written, 2)
        return np.asarray(self.buffer.packed_rows(member, numbers[numbers >= self.buffer.written - len(self.buffer)]))


@pytest.mark.parametrize("way", WAYS)
def test_the_dropped_episode_is_truncated_and_its_last_row_stands_twice(way: tuple[str, bool], tmp_path: Path) -> None:
    made = Made(way, tmp_path)
    episodes = made.steps(LENGTH + 4)
    rows = made.rows(0, 1)
    assert rows[:, AT.obs][:, 1].tolist() == [0, 1, 1, *range(LENGTH), 0]  # steps 0 and 1, the copy, new episodes
    np.testing.assert_array_equal(rows[1], rows[2])
    assert rows[1, AT.next_obs][1] == 2.0
    assert rows[:, AT.truncated].tolist() == [0, 1, 1, *[0] * (LENGTH - 1), 1, 0]
    assert not rows[:, AT.terminated].any()
    whole = returns([float(k + 1) for k in range(LENGTH)])
    assert rows[:, AT.mc_return].tolist() == [*returns([1.0, 2.0]), 2.0, *whole, UNKNOWN_RETURN]
    assert rows[2, AT.obs][0] != rows[3, AT.obs][0]  # another episode
    # The others have gone on, and are told of; the dropped episode is not.
    other = made.rows(0, 0)
    assert other[:, AT.obs][:, 1].tolist() == [*range(LENGTH), 0, 1, 2, 3]
    finished = [(k, e) for k, found in enumerate(episodes) for e in found]
    total = LENGTH * (LENGTH + 1) / 2
    first = [(LENGTH - 1, Episode(m, j, total, LENGTH)) for m, j in ((0, 0), (1, 0), (1, 1))]
    assert finished == [*first, (LENGTH + 2, Episode(0, 1, total, LENGTH))]
    assert made.collector.dropped_episodes.tolist() == [1, 0]
    assert [(fault.env, fault.failure.cause) for fault in made.faults] == [(1, "ValueError: the joint broke")]


def test_the_failing_of_one_member_does_not_touch_the_other(tmp_path: Path) -> None:
    made, calm = Made(("sync", False), tmp_path), Made(("sync", False), tmp_path, how="nothing")
    for one in (made, calm):
        one.steps(20)
    for lane in range(2):
        np.testing.assert_array_equal(made.rows(1, lane), calm.rows(1, lane))
    np.testing.assert_array_equal(made.rows(0, 0), calm.rows(0, 0))


def test_every_row_is_a_transition_that_was_seen(tmp_path: Path) -> None:
    """Fails again and again; each row is one of the environment's own, and episodes' ends are where flags are."""
    made = Made(("sync", False), tmp_path, times=7, tag=None)
    made.steps(40)
    assert made.collector.dropped_episodes.sum() == len(made.faults) == 7
    for member, lane in np.ndindex(2, 2):
        rows = made.rows(member, lane)
        np.testing.assert_array_equal(rows[:, AT.obs][:, 0], rows[:, AT.next_obs][:, 0])
        np.testing.assert_array_equal(rows[:, AT.obs][:, 1] + 1, rows[:, AT.next_obs][:, 1])
        np.testing.assert_array_equal(rows[:, AT.reward], rows[:, AT.next_obs][:, 1])
        goes_on = (rows[:-1, AT.next_obs] == rows[1:, AT.obs]).all(axis=1)
        np.testing.assert_array_equal(goes_on, rows[:-1, AT.truncated] == 0.0)
        known = rows[:, AT.mc_return] != UNKNOWN_RETURN
        assert known[: np.flatnonzero(rows[:, AT.truncated])[-1] + 1].all()


def test_a_failure_in_the_first_step_of_an_episode_copies_the_episode_before(tmp_path: Path) -> None:
    made = Made(("sync", False), tmp_path, how="nothing")
    for _ in range(LENGTH):
        made.collector.step(policy)
    envs: Any = made.collector.envs
    envs.envs[1].unwrapped.how, envs.envs[1].unwrapped.at = "raise", 1
    made.steps(2)
    rows = made.rows(0, 1)
    np.testing.assert_array_equal(rows[LENGTH - 1], rows[LENGTH])
    assert rows[:, AT.truncated].tolist() == [*[0] * (LENGTH - 1), 1, 1, 0]
    assert made.collector.dropped_episodes.tolist() == [1, 0]


def test_a_failure_in_the_very_first_step_copies_another_environment(tmp_path: Path) -> None:
    made = Made(("sync", False), tmp_path, at=1)
    made.steps(3)
    rows, other = made.rows(0, 1), made.rows(0, 0)
    np.testing.assert_array_equal(rows[0, : AT.truncated], other[0, : AT.truncated])
    assert rows[0, AT.truncated :].tolist() == [1.0, 1.0]  # truncated, with its reward as the return
    assert other[0, AT.truncated :].tolist() == [0.0, UNKNOWN_RETURN]
    assert rows[:, AT.obs][1:, 1].tolist() == [0, 1]


def test_where_there_is_no_row_at_all_it_is_an_error(tmp_path: Path) -> None:
    made = Made(("sync", False), tmp_path, at=1, times=4, tag=None)
    with pytest.raises(EnvError, match="environment 0 failed in its very first step"):
        made.steps(1)
    assert made.buffer.written == 0
    assert len(made.faults) == 4


def test_rows_that_are_gone_are_left_alone(tmp_path: Path) -> None:
    """A buffer of two rows a lane; the failing environment's episode is longer."""
    made = Made(("sync", False), tmp_path, at=6, capacity=4)
    made.steps(6)
    rows = made.rows(0, 1)
    np.testing.assert_array_equal(rows[0], rows[1])
    assert rows[:, AT.truncated].tolist() == [1, 1]
    assert made.rows(0, 0)[:, AT.truncated].tolist() == [0, 0]


def test_the_last_row_of_an_overwritten_episode_is_not_marked() -> None:
    buffer = ReplayBuffer(1, 2, 2, 1)
    buffer.add(np.zeros((1, 4, AT.width), np.float32))
    buffer.set_mc_returns(0, np.array([0, 1]), np.ones(2, np.float32), truncated=True)
    assert not buffer.gather(torch.tensor([[0, 1]])).truncated.any()
    buffer.set_mc_returns(0, np.array([1, 2]), np.ones(2, np.float32), truncated=True)
    assert buffer.gather(torch.tensor([[0, 1]])).truncated.tolist() == [[1.0, 0.0]]
