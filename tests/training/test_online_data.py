"""What a run collected online is a dataset: exact episodes, lane by lane, with raw rewards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.data import Transitions, from_hdf5, hdf5, load_dataset, read_path
from o2o_smooth.data.batch import FloatArray
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.data.dataset import FIELDS, array_hash
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs import find_task
from o2o_smooth.errors import DataError
from o2o_smooth.training import output
from o2o_smooth.training.online_data import write_online
from o2o_smooth.training.prepare import prepare
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.run import run
from tests.training.test_run import data, small

__all__ = ["data"]  # the fixture

O, A = 3, 2  # noqa: E741 - observation and action, as everywhere
SEEDS = (3, 5)
ROUNDING = 0.51 * np.finfo(np.float32).eps
Step = tuple[Any, ...]  # obs, action, raw reward, next_obs, terminated, truncated


@pytest.fixture(autouse=True)
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading process has its own tests."""
    monkeypatch.setattr(hdf5, "survives", lambda path: None)


class World:
    """Lanes of two members that step in lockstep into a ring, as the collector does, and a plain list of it all."""

    def __init__(self, lanes: int, capacity: int, reward_map: RewardMap) -> None:
        self.lanes, self.reward_map = lanes, reward_map
        self.buffer = ReplayBuffer(len(SEEDS), capacity, O, A)
        self.rng = np.random.default_rng(0)
        self.obs: FloatArray = self.rng.normal(size=(len(SEEDS), lanes, O)).astype(np.float32)
        self.steps: list[list[Step]] = [[] for _ in SEEDS]  # by member, in the order of the ring

    def step(self) -> None:
        rng, shape = self.rng, (len(SEEDS), self.lanes)
        action, following = (rng.normal(size=(*shape, n)).astype(np.float32) for n in (A, O))
        reward = rng.normal(size=shape).astype(np.float32)
        terminated, truncated = rng.random(shape) < 0.2, rng.random(shape) < 0.1
        self.buffer.add(pack(self.obs, action, self.reward_map(reward), following, terminated, truncated))
        for member in range(len(SEEDS)):
            for lane in range(self.lanes):
                columns = (self.obs, action, reward, following, terminated, truncated)
                self.steps[member].append(tuple(np.copy(column[member, lane]) for column in columns))
        fresh = rng.normal(size=following.shape).astype(np.float32)
        self.obs = np.where((terminated | truncated)[..., None], fresh, following)

    def expected(self, member: int) -> list[NDArray[Any]]:
        """The arrays of the file: what the ring still has, lane after lane, cut where a lane's last episode runs."""
        everything = self.steps[member]
        alive = range(max(0, len(everything) - self.buffer.capacity), len(everything))
        rows: list[Step] = []
        for lane in range(self.lanes):
            mine = [everything[k] for k in alive if k % self.lanes == lane]
            if mine:
                *others, terminated, truncated = mine[-1]
                mine[-1] = (*others, terminated, truncated | ~terminated)
            rows += mine
        return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(("lanes", "capacity"), [(1, 100), (3, 100), (3, 30), (3, 31), (4, 10), (4, 7), (5, 3), (1, 1)])
@pytest.mark.parametrize("steps", [1, 4, 25])
def test_lanes_come_back_as_exact_episodes_with_raw_rewards(
    tmp_path: Path, lanes: int, capacity: int, steps: int
) -> None:
    world = World(lanes, capacity, RewardMap(0.1, -1.0))
    for _ in range(steps):
        world.step()
    write_online(tmp_path, world.buffer, SEEDS, num_envs=lanes, reward_map=world.reward_map, record={"task": "x"})
    assert sorted(path.name for path in (tmp_path / "online").iterdir()) == ["seed-3.hdf5", "seed-5.hdf5"]
    for member, seed in enumerate(SEEDS):
        t = from_hdf5([tmp_path / "online" / f"seed-{seed}.hdf5"]).transitions
        expected = dict(zip(("obs", "action", "reward", "next_obs", "terminated", "truncated"), world.expected(member),
                            strict=True))  # fmt: skip
        for name in FIELDS:
            if name == "reward":  # as exact as the mapped ones in the buffer allow
                raw, mapped = expected["reward"].astype(np.float64), world.reward_map(expected["reward"])
                assert (np.abs(t.reward - raw) <= ROUNDING * (np.abs(raw) + np.abs(mapped) / 0.1)).all()
            else:
                np.testing.assert_array_equal(getattr(t, name), expected[name], err_msg=name)
        with h5py.File(tmp_path / "online" / f"seed-{seed}.hdf5") as file:  # reading would find ends without a flag
            np.testing.assert_array_equal(file["timeouts"], expected["truncated"])
        inside = ~(t.terminated | t.truncated)
        rows = np.flatnonzero(inside)
        np.testing.assert_array_equal(t.next_obs[rows], t.obs[rows + 1])
        assert not inside[-1]


@pytest.mark.parametrize("reward_map", [RewardMap(), RewardMap(shift=-1.0), RewardMap(scale=4.0)])
def test_rewards_of_whole_numbers_come_back_bit_for_bit(tmp_path: Path, reward_map: RewardMap) -> None:
    buffer = ReplayBuffer(1, 50, 1, 1)
    raw = np.arange(50, dtype=np.float32)[None]
    zeros, flags = np.zeros((1, 50, 1), np.float32), np.zeros((1, 50), np.bool_)
    buffer.add(pack(zeros, zeros, reward_map(raw), zeros, flags, flags))
    write_online(tmp_path, buffer, (0,), num_envs=1, reward_map=reward_map, record={})
    np.testing.assert_array_equal(from_hdf5([tmp_path / "online" / "seed-0.hdf5"]).transitions.reward, raw[0])


def held_by(buffer: ReplayBuffer, lanes: int) -> list[Transitions]:
    """What a buffer of raw rewards holds, by member, lane after lane."""
    found = []
    for member in range(buffer.members):
        rows = np.concatenate(
            [buffer.packed_rows(member, np.arange(lane, buffer.written, lanes)) for lane in range(lanes)]
        )
        o, a = buffer.obs_dim, buffer.action_dim
        terminated, truncated = rows[:, -3] == 1, rows[:, -2] == 1
        for lane in range(lanes):
            truncated[(lane + 1) * len(rows) // lanes - 1] = True
        found.append(
            Transitions(rows[:, :o], rows[:, 2 * o : 2 * o + a], rows[:, -4], rows[:, o : 2 * o], terminated, truncated)
        )
    return found


def test_finished_run_is_the_dataset_of_another(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffers: list[ReplayBuffer] = []

    def write(out: Path, buffer: ReplayBuffer, *args: Any, **options: Any) -> None:
        buffers.append(buffer)
        write_online(out, buffer, *args, **options)

    monkeypatch.setattr(output, "write_online", write)
    out = run(small(data, tmp_path / "first"))
    members = held_by(buffers[0], 2)
    assert all(len(t) == 300 for t in members)
    config = small(out, tmp_path / "second", seeds=(0,), online_steps=50)
    dataset = prepare(config, Silent()).dataset
    assert dataset is not None
    assert dataset.id == str(out)
    assert dataset.provenance == "generated"
    for name in ("obs", "reward", "next_obs", "terminated", "truncated"):  # actions are clipped to the box
        joined = np.concatenate([getattr(t, name) for t in members])
        np.testing.assert_array_equal(getattr(dataset.transitions, name), joined, err_msg=name)
    unclipped = read_path(out)
    np.testing.assert_array_equal(unclipped.transitions.action, np.concatenate([t.action for t in members]))
    for seed, t in zip(SEEDS, members, strict=True):
        alone = load_dataset(find_task("Pendulum-v1"), dataset=str(out / "online" / f"seed-{seed}.hdf5"))
        assert array_hash(alone.transitions) == array_hash(t)
    assert (run(config) / "manifest.json").is_file()


def test_run_that_kept_nothing_says_so(data: Path, tmp_path: Path) -> None:
    out = run(small(data, tmp_path / "run", online_steps=20, save_online=False, seeds=(3,)))
    assert not (out / "online").exists()
    with pytest.raises(DataError, match="kept no online data"):
        load_dataset(find_task("Pendulum-v1"), dataset=str(out))
