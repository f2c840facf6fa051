"""Packed rows in memory or mapped from disk: the same transitions and batches, and no more memory than promised."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from o2o_smooth.data import Transitions, end_at_goal, from_arrays, store
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.dataset import FIELDS, array_hash, clip_actions
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.data.store import MEMORY_VARIABLE, SCRATCH_VARIABLE, RowStore, free_memory, memory_limit
from o2o_smooth.envs import Task
from o2o_smooth.errors import DataError

GOAL_REWARD = 0.8
GOAL = Task(id="goal", env_id="Pendulum-v1", goal_reward=GOAL_REWARD, max_episode_steps=50)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time."""
    for module in ("suspicion", "store", "dataset", "buffer"):
        monkeypatch.setattr(f"o2o_smooth.data.{module}.SLICE_ROWS", 7)
    monkeypatch.setattr("o2o_smooth.data.batch._SLICE", 7)


def recording(n: int = 60, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(n, 3)),
        "actions": rng.uniform(-2, 2, (n, 2)),
        "rewards": rng.normal(size=n),
        "terminals": rng.random(n) < 0.1,
        "timeouts": rng.random(n) < 0.1,
    }


def both(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Transitions, Transitions]:
    """The same recording in memory and mapped from disk."""
    monkeypatch.delenv(MEMORY_VARIABLE, raising=False)
    in_memory = from_arrays(recording(), **options).transitions
    monkeypatch.setenv(MEMORY_VARIABLE, "0")
    mapped = from_arrays(recording(), **options).transitions
    assert [isinstance(t.rows, np.memmap) for t in (in_memory, mapped)] == [False, True]
    return in_memory, mapped


# -------------------------------------------------------------------------------------------------- memory or disk


def test_rows_in_memory_and_on_disk_are_the_same_transitions(
    monkeypatch: pytest.MonkeyPatch, small_slices: None
) -> None:
    for task in (None, GOAL):
        in_memory, mapped = both(monkeypatch, task=task)
        assert array_hash(in_memory) == array_hash(mapped)
        np.testing.assert_array_equal(in_memory.episode_returns, mapped.episode_returns)


def test_rows_in_memory_and_on_disk_give_the_same_batches(monkeypatch: pytest.MonkeyPatch, small_slices: None) -> None:
    in_memory, mapped = both(monkeypatch)
    index = torch.randint(len(mapped), (3, 32), generator=torch.Generator().manual_seed(0))
    for reward_map in (None, RewardMap(0.5, -1.0)):
        batches = [
            ReplayBuffer.from_transitions(t, 3, discount=0.9, reward_map=reward_map).gather(index)
            for t in (in_memory, mapped, Transitions(*(getattr(mapped, name) for name in FIELDS)))
        ]
        for name, value in batches[0]._asdict().items():
            for batch in batches[1:]:
                assert torch.equal(value, getattr(batch, name)), name


def test_batches_come_from_the_datasets_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for t in both(monkeypatch):
        assert t.rows is not None
        buffer = ReplayBuffer.from_transitions(t, 2, discount=0.9)
        assert np.shares_memory(buffer._rows.numpy(), t.rows)
        assert np.shares_memory(t.rows, t.next_obs)


def test_actions_are_clipped_on_disk_as_in_memory(monkeypatch: pytest.MonkeyPatch, small_slices: None) -> None:
    box = np.full(2, -1, np.float32), np.full(2, 1, np.float32)
    monkeypatch.setenv(MEMORY_VARIABLE, "0")
    clipped = clip_actions(from_arrays(recording()), *box)
    assert isinstance(clipped.transitions.action, np.memmap)
    raw = from_arrays(recording()).transitions.action
    np.testing.assert_array_equal(clipped.transitions.action, np.clip(raw, np.float32(-0.99999), np.float32(0.99999)))
    assert clipped.clipped == (np.abs(raw) > 0.99999).sum()


def test_mapped_file_has_no_name_and_goes_with_its_rows(tmp_path: Path) -> None:
    os.environ[SCRATCH_VARIABLE] = str(tmp_path)
    try:
        rows = RowStore(1000, 3, 2, memory_bytes=0)
    finally:
        del os.environ[SCRATCH_VARIABLE]
    assert list(tmp_path.iterdir()) == []
    mappings = Path("/proc/self/maps")
    if mappings.exists():
        assert str(tmp_path) in mappings.read_text()
        rows.obs[:] = 1
        del rows
        assert str(tmp_path) not in mappings.read_text()


def test_what_needs_less_than_the_limit_stays_in_memory() -> None:
    size = 100 * (2 * 3 + 2 + 4) * 4
    assert not RowStore(100, 3, 2, memory_bytes=size).mapped
    assert RowStore(100, 3, 2, memory_bytes=size - 1).mapped


def test_disk_without_room_is_refused_with_the_cures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        free: int

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv(MEMORY_VARIABLE, "0")
    for place in (tmp_path, tmp_path / "absent"):
        monkeypatch.setenv(SCRATCH_VARIABLE, str(place))
        with monkeypatch.context() as patch:
            if place.exists():
                patch.setattr(shutil, "disk_usage", lambda folder: Usage(100))
            with pytest.raises(DataError, match=rf"needs 0\.00 GiB.*{place}.*{SCRATCH_VARIABLE}") as error:
                from_arrays(recording())
            assert "\n" not in str(error.value)
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=f"not free in {tmp_path}.*No space left on device"):
        from_arrays(recording())
    assert list(tmp_path.iterdir()) == []


def test_memory_without_room_is_refused_with_the_cures() -> None:
    with pytest.raises(DataError, match=rf"needs .* GiB, which is not free in memory.*{SCRATCH_VARIABLE}"):
        RowStore(10**13, 3, 2, memory_bytes=2**62)


@pytest.mark.parametrize(("text", "expected"), [("2", 2**31), ("0.5", 2**29), ("0", 0), ("1e3", 1000 * 2**30)])
def test_limit_is_read_in_gib(monkeypatch: pytest.MonkeyPatch, text: str, expected: int) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, text)
    assert memory_limit() == expected


def test_limit_may_be_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, "inf")
    assert memory_limit() > 2**60


@pytest.mark.parametrize("text", ["", "x", "2 GiB", "nan", "-1", "-inf"])
def test_limit_that_is_no_number_of_gib_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(MEMORY_VARIABLE, text)
    with pytest.raises(DataError, match=f"{MEMORY_VARIABLE} is '{text}', expected a number of GiB"):
        from_arrays(recording())


def test_half_of_what_is_free_is_taken_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MEMORY_VARIABLE, raising=False)
    monkeypatch.setattr(store, "free_memory", lambda: 1000)
    assert memory_limit() == 500
    monkeypatch.setattr(store, "free_memory", lambda: None)  # nobody knows
    assert memory_limit() > 2**60


def test_container_with_less_memory_than_its_machine_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("max", "1000\n"),
        ("current", "900\n"),
        ("stat", "anon 1\ninactive_file 300\nactive_file 9\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(content)
    monkeypatch.setattr(store, "CGROUP", tmp_path)
    assert free_memory() == 400  # cached files make room
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() != 400
    (tmp_path / "memory.max").write_text("nonsense")
    free_memory()


# ------------------------------------------------------------------------------------------------------------ the rows


def filled(n: int, memory_bytes: int) -> RowStore:
    rng = np.random.default_rng(n)
    rows = RowStore(n, 2, 1, memory_bytes=memory_bytes)
    rows.rows[:] = rng.normal(size=rows.rows.shape)
    rows.terminated[:], rows.truncated[:] = rng.random(n) < 0.5, rng.random(n) < 0.5
    return rows


@pytest.mark.parametrize("memory_bytes", [0, 2**40])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_rows_are_kept_in_place_as_an_index_would_take_them(
    small_slices: None, memory_bytes: int, share: float
) -> None:
    for n in (1, 6, 7, 8, 50):
        rows = filled(n, memory_bytes)
        mask = np.random.default_rng(n).random(n) < share
        expected = [array[mask] for array in (rows.rows, rows.terminated, rows.truncated)]
        before = rows.rows
        rows.keep(mask)
        for array, values in zip((rows.rows, rows.terminated, rows.truncated), expected, strict=True):
            np.testing.assert_array_equal(array, values)
        assert len(rows) == mask.sum()
        assert np.shares_memory(rows.rows, before) or not mask.any()


def test_store_without_rows_is_no_dataset() -> None:
    rows = filled(5, 2**40)
    rows.keep(np.zeros(5, np.bool_))
    with pytest.raises(DataError, match="no transitions"):
        rows.transitions()


def test_recording_is_cut_at_the_goal_in_place_as_a_copy_would_be(small_slices: None) -> None:
    for seed in range(10):
        t = from_arrays(recording(seed=seed)).transitions
        cut = from_arrays(recording(seed=seed), task=GOAL).transitions
        assert array_hash(cut) == array_hash(end_at_goal(t, GOAL_REWARD))
        assert cut.rows is not None
        np.testing.assert_array_equal(cut.rows[:, -3], cut.terminated)  # what batches are made of
        np.testing.assert_array_equal(cut.rows[:, -2], cut.truncated)


# ---------------------------------------------------------------------------------------------------- rewards, returns


def test_batches_have_mapped_rewards_and_the_dataset_keeps_the_raw_ones(
    monkeypatch: pytest.MonkeyPatch, small_slices: None
) -> None:
    reward_map = RewardMap(0.5, -1.0)
    for t in both(monkeypatch):
        raw = t.reward.copy()
        batch = ReplayBuffer.from_transitions(t, 1, discount=0.9, reward_map=reward_map).gather(
            torch.arange(len(t))[None]
        )
        np.testing.assert_allclose(batch.reward[0], raw * 0.5 - 1.0, rtol=1e-6)
        np.testing.assert_array_equal(batch.mc_return[0], t.mc_returns(0.9, reward_map(raw)))
        np.testing.assert_array_equal(t.reward, raw)
        np.testing.assert_array_equal(batch.terminated[0], t.terminated)
        np.testing.assert_array_equal(batch.next_obs[0], t.next_obs)


def loop_returns(t: Transitions, discount: float, reward: NDArray[np.float32]) -> NDArray[np.float64]:
    """Step by step, backwards."""
    returns, running = np.zeros(len(t)), 0.0
    for i in range(len(t) - 1, -1, -1):
        running = float(reward[i]) + (0.0 if t.terminated[i] or t.truncated[i] else discount * running)
        returns[i] = running
    return returns


@pytest.mark.parametrize("seed", range(8))
def test_returns_are_those_of_a_plain_loop(small_slices: None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    t = Transitions(
        obs=np.zeros((n, 1), np.float32),
        action=np.zeros((n, 1), np.float32),
        reward=rng.normal(size=n).astype(np.float32),
        next_obs=np.zeros((n, 1), np.float32),
        terminated=rng.random(n) < (0.0, 0.02, 0.3, 1.0)[seed % 4],
        truncated=rng.random(n) < (0.0, 0.1)[seed % 2],
    )
    mapped = RewardMap(2.0, 0.5)(t.reward)
    for discount in (0.0, 0.99, 1.0):
        np.testing.assert_allclose(t.mc_returns(discount), loop_returns(t, discount, t.reward), rtol=1e-5, atol=1e-6)
        expected = loop_returns(t, discount, mapped)
        np.testing.assert_allclose(t.mc_returns(discount, mapped), expected, rtol=1e-5, atol=1e-6)
        in_place = mapped.copy()
        assert t.mc_returns(discount, in_place, out=in_place) is in_place
        np.testing.assert_array_equal(in_place, t.mc_returns(discount, mapped))
    starts = np.append(0, t.episode_ends[:-1] + 1)
    totals = [float(np.sum(t.reward[i : j + 1], dtype=np.float64)) for i, j in zip(starts, t.episode_ends, strict=True)]
    np.testing.assert_allclose(t.episode_returns, totals, rtol=1e-12)


def test_episode_return_is_not_blurred_by_those_before() -> None:
    """Differences of one running sum would lose small returns behind large ones."""
    t = from_arrays(
        {
            "obs": np.zeros((3, 1)),
            "action": np.zeros((3, 1)),
            "reward": np.array([1e30, 0.5, 0.25]),
            "terminated": np.ones(3, np.bool_),
        },
        task=Task(id="short", env_id="x", max_episode_steps=5),
    ).transitions
    np.testing.assert_array_equal(t.episode_returns[1:], [0.5, 0.25])


# ------------------------------------------------------------------------------------------------------- ten millions

TEN_MILLION = 10_000_000
LOADER = """if True:
    import json, sys, time
    from pathlib import Path
    import torch
    from o2o_smooth.data import from_hdf5
    from o2o_smooth.data.buffer import ReplayBuffer
    from o2o_smooth.data.dataset import FIELDS
    from o2o_smooth.data.normalize import RewardMap

    def memory(kind):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))

    calls, held = [], []

    def progress(done, total):
        calls.append((done, total))
        held.append(memory("RssAnon"))

    before, began, without = memory("VmHWM"), time.monotonic(), memory("RssAnon")
    t = from_hdf5([Path(sys.argv[1])], progress=progress).transitions
    seconds, loaded = time.monotonic() - began, memory("VmHWM")
    buffer = ReplayBuffer.from_transitions(t, 2, discount=0.99, reward_map=RewardMap(0.1, -1.0))
    held.append(memory("RssAnon"))
    index = torch.randint(len(buffer), (2, 256), generator=torch.Generator().manual_seed(0))
    batch = buffer.gather(index)
    held.append(memory("RssAnon"))
    print(json.dumps({
        "rows": len(t), "size": sum(getattr(t, name).nbytes for name in FIELDS),
        "grown": loaded - before, "grown_with_buffer": memory("VmHWM") - before,
        "anonymous": max(held) - without, "calls": len(calls), "last": calls[-1], "seconds": seconds,
        "rising": calls == sorted(calls),
        "obs": batch.obs[..., 0].flatten().tolist(), "next_obs": batch.next_obs[..., 0].flatten().tolist(),
        "reward": batch.reward.flatten().tolist(), "terminated": batch.terminated.flatten().tolist(),
    }))
"""


@pytest.fixture(scope="module")
def ten_million(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hopper's sizes, 0.4 GB. Column 0 of an observation counts up to 2^24, so that successors can be told."""
    folder = tmp_path_factory.mktemp("large")
    if shutil.disk_usage(folder).free < 4 * 10**9:
        pytest.skip(f"{folder} has less than 4 GB free")
    n, block = TEN_MILLION, 100_000
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(block, 11)).astype(np.float32)
    action = rng.uniform(-1, 1, (block, 3)).astype(np.float32)
    with h5py.File(folder / "large.hdf5", "w") as file:
        columns = {
            name: file.create_dataset(name, shape, dtype, compression="lzf")
            for name, shape, dtype in (
                ("observations", (n, 11), np.float32),
                ("actions", (n, 3), np.float32),
                ("rewards", (n,), np.float32),
                ("terminals", (n,), np.bool_),
                ("timeouts", (n,), np.bool_),
            )
        }
        for i in range(0, n, block):
            rows = np.arange(i, i + block)
            obs[:, 0] = rows
            here = slice(i, i + block)
            columns["observations"][here], columns["actions"][here] = obs, action
            columns["rewards"][here] = rows % 1000
            columns["terminals"][here], columns["timeouts"][here] = rows % 700 == 699, rows % 1000 == 999
    return folder / "large.hdf5"


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [False, True])
def test_ten_million_transitions_take_little_more_memory_than_their_arrays(
    ten_million: Path, mapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("how much memory a process had is told by /proc")  # getrusage counts the parent's in
    env = dict(os.environ) | {SCRATCH_VARIABLE: str(ten_million.parent), "OMP_NUM_THREADS": "1"}
    env.pop(MEMORY_VARIABLE, None)
    free = free_memory()
    if mapped:
        env[MEMORY_VARIABLE] = "0.1"
    elif free is not None and free < 3 * 2**30:
        pytest.skip("less than 3 GiB of memory are free")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, ten_million], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ratio = {key: found[key] / found["size"] for key in ("grown", "grown_with_buffer", "anonymous")}
    with capsys.disabled():
        print(f"\nmapped={mapped}: {found['seconds']:.1f} s, of {found['size'] / 2**20:.0f} MiB {ratio}")
    cut = sum(1 for k in range(999, TEN_MILLION, 1000) if k % 700 != 699)  # timed out, without a successor
    assert found["rows"] == TEN_MILLION - cut
    if mapped:
        assert ratio["anonymous"] < 0.3
    else:
        assert ratio["grown"] < 1.2
        assert ratio["grown_with_buffer"] < 1.2
    assert found["calls"] > 100
    assert found["rising"]
    assert found["last"] == [3 * TEN_MILLION, 3 * TEN_MILLION]
    obs, next_obs, terminated = (np.array(found[name]) for name in ("obs", "next_obs", "terminated"))
    np.testing.assert_array_equal(next_obs, obs + (terminated == 0))
    np.testing.assert_allclose(found["reward"], (obs % 1000) * 0.1 - 1.0, rtol=1e-5, atol=1e-5)
