"""Held-out episodes: which ones they are, and that what is left is numbered without gaps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.holdout import FEWEST, MIN_EPISODES, RowMap, choose_holdout
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.store import RowStore
from o2o_smooth.errors import DataError

CPU = torch.device("cpu")
RANGES = ((0, 2), (5, 8), (8, 9), (14, 15))  # at both ends, and two side by side
LEFT = [2, 3, 4, 9, 10, 11, 12, 13]
HELD = [0, 1, 5, 6, 7, 8, 14]


def recording(lengths: list[int]) -> Transitions:
    """Row k has the reward k."""
    n = sum(lengths)
    truncated = np.zeros(n, np.bool_)
    truncated[np.cumsum(lengths) - 1] = True
    number = np.arange(n, dtype=np.float32)
    return Transitions(
        number[:, None].copy(),
        np.zeros((n, 1), np.float32),
        number,
        number[:, None] + 1,
        np.zeros(n, np.bool_),
        truncated,
    )


def test_numbers_without_gaps_stand_for_all_other_rows() -> None:
    rows = RowMap(RANGES, 15, CPU)
    assert rows.held == 7
    assert rows.left(torch.arange(8)).tolist() == LEFT
    assert rows.apart(torch.arange(7)).tolist() == HELD
    one = RowMap(((3, 5),), 6, CPU)
    assert one.left(torch.tensor([3, 0, 2, 3])).tolist() == [5, 0, 2, 5]
    assert one.apart(torch.tensor([1, 0])).tolist() == [4, 3]


@pytest.mark.parametrize("ranges", [((2, 2),), ((3, 5), (4, 6)), ((-1, 2),), ((4, 9),)])
def test_rows_that_are_not_there_are_refused(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(DataError, match="do not fit a dataset of 8 rows"):
        RowMap(ranges, 8, CPU)


def test_something_is_left_to_learn_from() -> None:
    with pytest.raises(DataError, match="leaves none to learn from"):
        RowMap(((0, 8),), 8, CPU)


def test_a_buffer_passes_over_held_out_rows() -> None:
    data = recording([2, 3, 3, 1, 5, 1])
    buffer = ReplayBuffer.from_transitions(data, 2, discount=0.5, reward_map=RewardMap(2.0, 1.0), held_out=RANGES)
    assert (len(buffer), buffer.held_out, buffer.written) == (8, 7, 8)
    index = torch.stack([torch.arange(8), torch.arange(8).flip(0)])
    assert buffer.gather(index).obs[..., 0].tolist() == [LEFT, LEFT[::-1]]
    assert buffer.gather(index[:, 2:5]).obs[..., 0].tolist() == [LEFT[2:5], LEFT[::-1][2:5]]
    assert buffer.gather(torch.arange(8).expand(2, -1)).reward.tolist() == [[2 * k + 1.0 for k in LEFT]] * 2
    assert buffer.gather_held_out(torch.arange(7).expand(2, -1)).obs[..., 0].tolist() == [HELD] * 2
    assert buffer.newest(3).obs[0, :, 0].tolist() == LEFT[-3:]
    assert buffer.dataset_rows(torch.tensor([0, 3])).tolist() == [2, 9]
    whole = ReplayBuffer.from_transitions(data, 2, discount=0.5, reward_map=RewardMap(2.0, 1.0))
    assert (len(whole), whole.held_out) == (15, 0)
    assert whole.dataset_rows(torch.tensor([0, 3])).tolist() == [0, 3]
    same = whole.gather(torch.tensor([LEFT, LEFT[::-1]]))
    assert all(
        torch.equal(a, b) for a, b in zip(same, buffer.gather(index), strict=True)
    )  # returns are whole episodes'
    with pytest.raises(DataError, match="no rows are held out"):
        whole.gather_held_out(index)
    with pytest.raises(DataError, match="cannot be added"):
        buffer.add(np.zeros((1, 1, buffer._rows.shape[1]), np.float32))


@pytest.mark.parametrize("memory", [None, 0], ids=["memory", "mapped"])
def test_nothing_is_copied(memory: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_SMOOTH_SCRATCH", str(tmp_path))
    store, given = RowStore(15, 1, 1, memory_bytes=memory), recording([2, 3, 3, 1, 5, 1])
    store.rows[:] = 0
    store.obs[:], store.next_obs[:], store.reward[:] = given.obs, given.next_obs, given.reward
    store.truncated[:] = given.truncated
    data = store.transitions()
    assert isinstance(data.rows, np.memmap) == (memory == 0)
    buffer = ReplayBuffer.from_transitions(data, 1, discount=0.5, held_out=RANGES)
    assert data.rows is not None
    assert np.shares_memory(buffer._rows.numpy(), data.rows)
    assert buffer.gather(torch.arange(8)[None]).obs[0, :, 0].tolist() == LEFT


def test_whole_episodes_are_chosen_all_over_the_data_by_the_data_alone() -> None:
    lengths = np.random.default_rng(0).integers(13, 19, 1000).tolist()
    data = recording(lengths)
    found = choose_holdout(data, 0.02)
    assert found == choose_holdout(recording(lengths), 0.02)
    ends = np.cumsum(lengths)
    episodes = [(int(end) - length, int(end)) for length, end in zip(lengths, ends, strict=True)]
    numbers = [episodes.index(r) for r in found.ranges]
    assert [k // 50 for k in numbers] == list(range(20))  # one of each stretch
    assert len({k % 50 for k in numbers}) > 10  # and not every fiftieth
    assert found.to_dict() == {"episodes": 20, "rows": sum(lengths[k] for k in numbers), "remark": ""}


@pytest.mark.parametrize(("episodes", "share", "expected"), [
    (MIN_EPISODES - 1, 0.5, 0), (MIN_EPISODES, 0.01, FEWEST), (MIN_EPISODES, 0.25, 50), (1017, 0.01, 10), (400, 0.0, 0),
])  # fmt: skip
def test_how_many_are_chosen(episodes: int, share: float, expected: int) -> None:
    found = choose_holdout(recording([60] * episodes), share)
    assert len(set(found.ranges)) == expected
    assert found.rows == 60 * expected
    assert bool(found.remark) == (expected == 0)


def test_a_few_episodes_that_are_most_of_the_data_stay_in() -> None:
    lengths = [1000 if k % 10 == 0 else 20 for k in range(MIN_EPISODES)]
    found = choose_holdout(recording(lengths), 0.25)
    assert {stop - first for first, stop in found.ranges} == {20, 1000}
    assert len(found.ranges) == 50
    one = [20] * MIN_EPISODES
    for first, _ in choose_holdout(recording(one), 0.1).ranges[:3]:
        one[first // 20] = 10**5
    found = choose_holdout(recording(one), 0.1)
    assert found.rows == 17 * 20  # each of the three is a third of the data


def test_too_few_rows_are_not_worth_holding_out() -> None:
    assert choose_holdout(recording([51] * 400), 0.0125).rows == 0
    assert "255 rows" in choose_holdout(recording([51] * 400), 0.0125).remark
    assert choose_holdout(recording([52] * 400), 0.0125).rows == 260
