"""D4RL's HDF5 files: their quirks, exact successors, hostile files, and the reader whose death hurts nobody."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from o2o_smooth.data import Transitions, from_arrays, from_hdf5, from_minari, hdf5, load_dataset, suspicion, write_hdf5
from o2o_smooth.data.antmaze import from_d4rl, mirror_actions
from o2o_smooth.data.dataset import FIELDS, array_hash
from o2o_smooth.data.hdf5 import published_name
from o2o_smooth.envs import Task, find_task
from o2o_smooth.errors import DataError
from tests.shared import shared

Arrays = dict[str, NDArray[Any]]
TASK = Task(id="test", env_id="Pendulum-v1", max_episode_steps=5)
SIX = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


@pytest.fixture(autouse=True)
def probe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading process costs a third of a second; only tests that are marked `probed` wait for it."""
    if "probed" not in request.fixturenames:
        monkeypatch.setattr(hdf5, "survives", lambda path: None)


@pytest.fixture
def probed() -> None:
    """Ask for the reading process."""


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time."""
    for module in ("suspicion", "store", "dataset", "hdf5", "buffer"):
        monkeypatch.setattr(f"o2o_smooth.data.{module}.SLICE_ROWS", 4)


def recording(n: int = 12, seed: int = 0, width: int = 2) -> Arrays:
    """Random rows of D4RL's layout, in the dtypes of our own files; episodes of any length, of one step too."""
    rng = np.random.default_rng(seed)
    terminals, timeouts = rng.random(n) < 0.2, rng.random(n) < 0.2
    obs, last = (rng.normal(size=(n, width)).astype(np.float32) for _ in range(2))
    return {
        "observations": obs,
        "actions": rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": np.where((terminals | timeouts)[:, None], last, np.roll(obs, -1, axis=0)),
    }


def write(path: Path, arrays: Any, chunks: int | None = None, **options: Any) -> Path:
    """A file as D4RL's scripts write it: contiguous, or in chunks of so many rows."""
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            array = np.asarray(values)
            shape = None if chunks is None else (min(chunks, len(array)), *array.shape[1:])
            file.create_dataset(name, data=array, chunks=shape, **options)
    return path


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name not in names}


def load(path: Path, task: Task | None = None) -> Transitions:
    return from_hdf5([path], task=task).transitions


def assert_equal(a: Transitions, b: Transitions) -> None:
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)
        if x.dtype == np.float32:  # -0.0 and 0.0 are not the same
            np.testing.assert_array_equal(np.signbit(x), np.signbit(y), err_msg=name)


def reference(arrays: Arrays, horizon: int | None) -> list[tuple[Any, ...]]:
    """Transitions as D4RL's layout means them, row by row: (obs, action, reward, next_obs, terminated, truncated)."""
    n = len(arrays["rewards"])
    obs, successors = arrays["observations"], arrays.get("next_observations")
    rows: list[tuple[Any, ...]] = []
    first = 0  # of the episode
    for i in range(n):
        last = i == n - 1
        terminated = bool(arrays["terminals"][i])
        cut = "timeouts" in arrays and bool(arrays["timeouts"][i])
        if "timeouts" not in arrays and successors is None:
            assert horizon is not None
            cut = not terminated and i - first + 1 == horizon
        jump = not last and successors is not None and bool((obs[i + 1] != successors[i]).any())
        cut = cut or (not terminated and (last or jump))
        step = (obs[i], arrays["actions"][i], arrays["rewards"][i])
        if successors is not None:
            rows.append((*step, successors[i], terminated, cut))
        elif terminated:
            rows.append((*step, obs[i], True, False))
        elif not cut:
            rows.append((*step, obs[i + 1], False, False))
        elif i > first:  # no successor: dropped, and the step before is the episode's last
            rows[-1] = (*rows[-1][:5], True)
        if terminated or cut:
            first = i + 1
    return rows


def assert_as_in_the_reference(t: Transitions, arrays: Arrays, horizon: int | None) -> None:
    columns = [np.array(column) for column in zip(*reference(arrays, horizon), strict=True)]
    for name, column in zip(("obs", "action", "reward", "next_obs", "terminated", "truncated"), columns, strict=True):
        np.testing.assert_array_equal(getattr(t, name), column, err_msg=name)


def refused(path: Path, *words: str, task: Task | None = None) -> None:
    """Refused in one line that names the file and says all the words."""
    with pytest.raises(DataError) as error:
        from_hdf5([path], task=task)
    text = str(error.value)
    assert "\n" not in text
    for word in (str(path), *words):
        assert word in text, text


# ------------------------------------------------------------------------------------------------------------- quirks


@pytest.mark.parametrize("absent", [(), ("timeouts",), ("next_observations",), ("timeouts", "next_observations")])
@pytest.mark.parametrize("chunks", [None, 1, 3, 4, 7, 50])
def test_transitions_are_exact_across_slices_and_chunks(
    tmp_path: Path, small_slices: None, absent: tuple[str, ...], chunks: int | None
) -> None:
    options = {} if chunks is None else {"compression": "gzip" if chunks % 2 else "lzf", "shuffle": True}
    for seed in range(12):
        arrays = without(recording(3 + 2 * seed, seed), *absent)
        arrays["terminals"][:2] = False, True  # so that something is left of every recording
        path = write(tmp_path / f"{seed}.hdf5", arrays, chunks, **options)
        assert_as_in_the_reference(load(path, TASK), arrays, TASK.max_episode_steps)


def test_episodes_of_a_file_without_timeouts_end_at_the_time_limit(tmp_path: Path) -> None:
    arrays = without(recording(14), "timeouts", "next_observations")
    arrays["terminals"] = np.isin(np.arange(14), [1, 11])
    path = write(tmp_path / "hopper-v0.hdf5", arrays)
    dataset = from_hdf5([path], task=TASK)
    # episodes: rows 0 to 1, terminated; 2 to 6, cut; 7 to 11, terminated at the limit; 12 to 13, the recording ends
    np.testing.assert_array_equal(
        dataset.transitions.obs, arrays["observations"][[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]]
    )
    np.testing.assert_array_equal(np.flatnonzero(dataset.transitions.terminated), [1, 10])
    np.testing.assert_array_equal(np.flatnonzero(dataset.transitions.truncated), [5, 11])
    assert "taken at the task's limit of 5 steps" in dataset.note
    refused(path, "where episodes end cannot be told")


def test_step_whose_successor_is_not_the_next_row_is_a_cut_although_no_flag_says_so(
    tmp_path: Path, small_slices: None
) -> None:
    arrays = recording(14)
    arrays["terminals"][:], arrays["timeouts"][:] = False, False
    arrays["next_observations"] = np.roll(arrays["observations"], -1, axis=0)
    arrays["next_observations"][[3, 7, 10]] += 1
    arrays["next_observations"][5] += 1e-6  # rounding is no jump
    for chunks in (None, 5):
        dataset = from_hdf5([write(tmp_path / "a.hdf5", arrays, chunks)])
        np.testing.assert_array_equal(np.flatnonzero(dataset.transitions.truncated), [3, 7, 10, 13])
        assert "3 steps without a flag, first row 3" in dataset.note


def test_jump_across_the_whole_of_float32_does_not_warn(tmp_path: Path) -> None:
    arrays = recording(6)
    arrays["terminals"][:], arrays["timeouts"][:] = False, False
    arrays["next_observations"] = np.roll(arrays["observations"], -1, axis=0)
    arrays["observations"][3], arrays["next_observations"][2] = np.finfo(np.float32).max, np.finfo(np.float32).min
    np.testing.assert_array_equal(np.flatnonzero(load(write(tmp_path / "a.hdf5", arrays)).truncated), [2, 5])


def test_terminated_step_without_a_successor_keeps_its_own_observation(tmp_path: Path) -> None:
    arrays = without(recording(4), "next_observations")
    arrays["terminals"], arrays["timeouts"] = np.array([0, 1, 0, 1], bool), np.array([0, 1, 0, 0], bool)
    t = load(write(tmp_path / "a.hdf5", arrays))
    np.testing.assert_array_equal(t.next_obs, arrays["observations"][[1, 1, 3, 3]])
    np.testing.assert_array_equal(t.terminated, [0, 1, 0, 1])
    assert not t.truncated.any()


@pytest.mark.parametrize(
    "changes",
    [
        {"rewards": lambda x: x[:, None]},
        {"terminals": lambda x: x.astype(np.uint8), "timeouts": lambda x: x.astype(np.int64)[:, None]},
        {"terminals": lambda x: x.astype(np.float64), "timeouts": lambda x: x.astype(np.float16)},
        {name: lambda x: x.astype(np.float64) for name in ("observations", "actions", "next_observations", "rewards")},
        {name: lambda x: x.astype(">f4") for name in ("observations", "actions", "next_observations", "rewards")},
    ],
    ids=["rewards (N, 1)", "integer flags", "float flags", "float64", "big endian"],
)
def test_dtypes_and_shapes_of_old_files_give_the_same_transitions(
    tmp_path: Path, changes: dict[str, Callable[[Any], Any]]
) -> None:
    arrays = recording()
    plain = load(write(tmp_path / "plain.hdf5", arrays))
    changed = arrays | {name: change(arrays[name]) for name, change in changes.items()}
    assert_equal(load(write(tmp_path / "changed.hdf5", changed)), plain)


def test_half_precision_and_integers_become_float32(tmp_path: Path) -> None:
    arrays = recording()
    half = arrays["observations"].astype(np.float16)
    path = write(tmp_path / "half.hdf5", arrays | {"observations": half, "rewards": np.arange(12)})
    t = load(path)
    np.testing.assert_array_equal(t.obs, half.astype(np.float32))
    np.testing.assert_array_equal(t.reward, np.arange(12, dtype=np.float32))


def test_action_of_one_axis_is_one_column(tmp_path: Path) -> None:
    arrays = recording()
    path = write(tmp_path / "a.hdf5", arrays | {"actions": arrays["actions"][:, 0]})
    np.testing.assert_array_equal(load(path).action, arrays["actions"][:, :1])


def test_what_else_a_file_holds_is_not_read(tmp_path: Path) -> None:
    arrays = recording()
    path = write(tmp_path / "a.hdf5", arrays | {"infos/qpos": np.zeros((12, 5)), "metadata/policy": np.zeros(3)})
    with h5py.File(path, "a") as file:
        file["infos/name"] = ["a", "b"]
        file["infos/elsewhere"] = h5py.ExternalLink("nowhere.hdf5", "/x")
        file["readme"] = "words"
    assert_equal(load(path), load(write(tmp_path / "b.hdf5", arrays)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": None}, ["lack 'rewards'"]),
        ({"actions": np.zeros((11, 2))}, ["actions have shape (11, 2)", "12 rows"]),
        ({"observations": np.zeros((12, 2, 2))}, ["observations have shape (12, 2, 2)"]),
        ({"observations": np.zeros((0, 2))}, ["observations have shape (0, 2)"]),
        ({"rewards": np.zeros((12, 2))}, ["rewards have shape (12, 2)"]),
        ({"terminals": np.full(12, 0.5)}, ["terminals hold values other than 0 and 1, first 0.5 in row 0"]),
        ({"timeouts": np.full(12, np.nan)}, ["timeouts hold values other than 0 and 1"]),
        ({"timeouts": np.zeros(5)}, ["timeouts have shape (5,)"]),
        ({"next_observations": np.zeros((12, 3))}, ["next_observations have shape (12, 3)"]),
        ({"rewards": np.array([0] * 7 + [np.inf] + [0] * 2 + [np.nan] * 2)}, ["rewards hold NaN", "3 of 12", "row 7"]),
        ({"observations": np.full((12, 2), 1e300)}, ["observations hold NaN or infinity in 12 of 12 rows"]),
        ({"obs": np.zeros((12, 2))}, ["observations and obs"]),
    ],
)
def test_column_that_does_not_fit_is_named(
    tmp_path: Path, small_slices: None, changes: dict[str, Any], words: list[str]
) -> None:
    arrays = {name: array for name, array in (recording() | changes).items() if array is not None}
    refused(write(tmp_path / "a.hdf5", arrays), *words)


def test_progress_goes_from_file_to_file_and_ends_at_all(tmp_path: Path, small_slices: None) -> None:
    paths = [write(tmp_path / f"{n}.hdf5", recording(n)) for n in (12, 5)]
    calls: list[tuple[int, int]] = []
    from_hdf5(paths, progress=lambda done, total: calls.append((done, total)))
    done, totals = zip(*calls, strict=True)
    assert set(totals) == {4 * 17}
    assert list(done) == sorted(set(done))
    assert done[-1] == 4 * 17


# ------------------------------------------------------------------------------------------------------ several files


def test_several_files_are_joined_in_order_without_a_step_between_them(tmp_path: Path) -> None:
    parts = [without(recording(n, n), "next_observations") for n in (5, 9, 4)]
    for part in parts:
        part["terminals"][:], part["timeouts"][:] = False, False
    paths = [write(tmp_path / f"{i}.hdf5", part) for i, part in enumerate(parts)]
    dataset = from_hdf5(paths, id="run/online")
    alone = [load(path) for path in paths]
    for name in FIELDS:
        joined = np.concatenate([getattr(t, name) for t in alone])
        np.testing.assert_array_equal(getattr(dataset.transitions, name), joined)
    np.testing.assert_array_equal(np.flatnonzero(dataset.transitions.truncated), [3, 11, 14])
    assert dataset.id == "run/online"


def test_files_of_different_widths_are_not_joined(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{width}.hdf5", recording(width=width)) for width in (2, 3)]
    with pytest.raises(DataError, match=r"different widths.*\[\(2, 2\), \(3, 2\)\]"):
        from_hdf5(paths)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("damage", ["NaN", "chunk", "checksum"])
def test_broken_file_among_several_is_the_one_that_is_named(tmp_path: Path, place: int, damage: str) -> None:
    paths = [tmp_path / f"seed-{i}.hdf5" for i in range(3)]
    for i, path in enumerate(paths):
        write_hdf5(path, from_arrays(recording(12, i)).transitions, {})
    with h5py.File(paths[place], "a") as file:
        if damage == "chunk":
            chunk = file["rewards"].id.get_chunk_info(0)
        else:
            file["rewards"][3] = np.nan if damage == "NaN" else 5
    if damage == "chunk":
        content = bytearray(paths[place].read_bytes())
        content[chunk.byte_offset + chunk.size // 2] ^= 1
        paths[place].write_bytes(content)
    with pytest.raises(DataError) as error:
        from_hdf5(paths)
    assert [path.name in str(error.value) for path in paths] == [i == place for i in range(3)]
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- as the tasks have it


def test_111_columns_of_ant_are_cut_to_those_of_the_environment(tmp_path: Path) -> None:
    ant = find_task("ant-medium-v2")
    arrays = recording(width=111) | {"actions": np.zeros((12, 8))}
    for given in (arrays, without(arrays, "next_observations")):
        t = load(write(tmp_path / "ant.hdf5", given), ant)
        whole = load(tmp_path / "ant.hdf5")
        assert whole.obs.shape[1] == 111
        np.testing.assert_array_equal(t.obs, whole.obs[:, :27])
        np.testing.assert_array_equal(t.next_obs, whole.next_obs[:, :27])


def test_wide_file_of_ours_is_believed_when_the_task_cuts_it(tmp_path: Path) -> None:
    arrays = recording(width=111) | {"actions": np.zeros((12, 8))}
    write_hdf5(tmp_path / "ant.hdf5", from_arrays(arrays).transitions, {})
    assert load(tmp_path / "ant.hdf5", find_task("ant-medium-v2")).obs.shape == (12, 27)
    with h5py.File(tmp_path / "ant.hdf5", "a") as file:
        file["observations"][3, 100] = 7  # a column that the task does not want
    refused(tmp_path / "ant.hdf5", "checksum", task=find_task("ant-medium-v2"))


def antmaze_recording(n: int = 12) -> Arrays:
    rng = np.random.default_rng(0)
    arrays = without(recording(n, width=29), "next_observations")
    arrays["rewards"] = (np.arange(n) % 5 == 4).astype(np.float32)
    arrays["timeouts"] = np.arange(n) % 6 == 5
    arrays["terminals"][:] = False
    goal = {"infos/goal": rng.normal(size=(n, 2))}
    return arrays | {"actions": rng.uniform(-1, 1, (n, 8)).astype(np.float32)} | goal


def test_29_columns_of_antmaze_get_the_goal_and_our_frame(tmp_path: Path, small_slices: None) -> None:
    task = replace(find_task("antmaze-umaze-v2"), goal_reward=None)
    arrays = antmaze_recording()
    obs = from_d4rl(task, arrays["observations"], arrays["infos/goal"].astype(np.float32))
    kept = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    for chunks in (None, 3):
        t = load(write(tmp_path / "maze.hdf5", arrays, chunks), task)
        np.testing.assert_array_equal(t.obs, obs[kept])
        np.testing.assert_array_equal(t.next_obs, obs[[k + 1 for k in kept]])
        np.testing.assert_array_equal(t.action, mirror_actions(arrays["actions"])[kept])


def test_antmaze_ends_at_the_goal(tmp_path: Path) -> None:
    t = load(write(tmp_path / "maze.hdf5", antmaze_recording()), find_task("antmaze-umaze-v2"))
    np.testing.assert_array_equal(np.flatnonzero(t.reward), np.flatnonzero(t.terminated))
    assert t.terminated.sum() == 2


def test_antmaze_values_beyond_float32_are_refused_without_a_warning(tmp_path: Path) -> None:
    task = find_task("antmaze-umaze-v2")
    for name in ("observations", "infos/goal", "actions"):
        arrays = antmaze_recording()
        arrays[name] = arrays[name].astype(np.float64)
        arrays[name][3] = 1e300
        refused(write(tmp_path / "maze.hdf5", arrays), "NaN or infinity", "row 3", task=task)


@pytest.mark.parametrize("goal", ["absent", "short", "soft link", "link to infos", "infos is a dataset"])
def test_antmaze_without_its_goals_is_refused(tmp_path: Path, goal: str) -> None:
    arrays = without(antmaze_recording(), "infos/goal")
    if goal == "short":
        arrays["infos/goal"] = np.zeros((11, 2))
    elif goal == "infos is a dataset":
        arrays["infos"] = np.zeros(3)
    elif goal == "link to infos":
        arrays["inner/goal"] = np.zeros((12, 2))
    path = write(tmp_path / "maze.hdf5", arrays)
    with h5py.File(path, "a") as file:
        if goal == "soft link":
            file["goal"] = np.zeros((12, 2))
            file["infos/goal"] = h5py.SoftLink("/goal")
        elif goal == "link to infos":
            file["infos"] = h5py.SoftLink("/inner")
    refused(path, "goal", task=find_task("antmaze-umaze-v2"))


def test_maze2d_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = write(tmp_path / "maze2d-umaze-sparse-v1.hdf5", recording(width=4))
    refused(path, "maze2d", "another simulator", "D4RL/pointmaze", task=find_task("D4RL/pointmaze/umaze-v2"))


def test_shared_d4rl_file_is_minaris_set_with_the_last_steps() -> None:
    """Minari needs the observation after every action, so that its set lacks each demonstration's last step."""
    door = find_task("door-human-v1")
    from_file = load_dataset(door, dataset=str(shared("data/d4rl/door-human.hdf5")))
    t = from_file.transitions
    assert (len(t), len(t.episode_ends), t.obs.shape[1], t.action.shape[1]) == (6704, 25, 39, 28)
    theirs = from_minari(shared("data/minari/d4rl-real/door/human-v0"), task=door).transitions
    np.testing.assert_allclose(t.episode_returns, theirs.episode_returns, rtol=1e-6)
    np.testing.assert_array_equal(t.episode_ends, theirs.episode_ends)
    np.testing.assert_array_equal(t.obs, theirs.obs)
    np.testing.assert_array_equal(t.next_obs, theirs.next_obs)
    assert from_file.provenance == "own"  # the name of D4RL's own file ends in -v1


# --------------------------------------------------------------------------------------------------------- provenance


@pytest.mark.parametrize(
    ("task_id", "name"),
    [
        ("hopper-medium-replay-v2", "hopper_medium_replay-v2.hdf5"),
        ("door-human-v1", "door-human-v1.hdf5"),
        ("antmaze-umaze-v2", "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"),
        ("kitchen-complete-v0", "mini_kitchen_microwave_kettle_light_slider-v0.hdf5"),
        ("D4RL/pointmaze/umaze-v2", None),
        ("Hopper-v5", None),
    ],
)
def test_d4rls_own_files_are_known_by_name(task_id: str, name: str | None) -> None:
    assert published_name(find_task(task_id)) == name


def test_provenance_is_what_we_wrote_or_the_name_of_d4rls_file_or_the_users_own(tmp_path: Path) -> None:
    hopper = find_task("hopper-medium-v2")
    t = from_arrays(recording()).transitions
    theirs = write(tmp_path / "hopper_medium-v2.hdf5", recording())
    assert from_hdf5([theirs], task=hopper).provenance == "d4rl"
    assert from_hdf5([theirs]).provenance == "own"
    assert from_hdf5([theirs], task=find_task("hopper-expert-v2")).provenance == "own"
    assert from_hdf5([theirs], task=hopper, provenance="generated").provenance == "generated"
    write_hdf5(theirs, t, {"provenance": "generated"})
    assert from_hdf5([theirs], task=hopper).provenance == "generated"
    write_hdf5(theirs, t, {"provenance": "nonsense"})
    assert from_hdf5([theirs]).provenance == "own"
    with pytest.raises(DataError, match="provenance is 'mine'"):
        from_hdf5([theirs], provenance="mine")


@pytest.mark.parametrize(
    "record", [b"{", b"[" * 60_000, b"\xff", b"null", b"[1]", b'"d4rl"', b'{"provenance": ["d4rl"]}']
)
def test_record_that_is_none_does_not_make_a_provenance(tmp_path: Path, record: bytes) -> None:
    path = write(tmp_path / "a.hdf5", recording())
    with h5py.File(path, "a") as file:
        file.attrs["o2o_smooth"] = np.bytes_(record)
    if record[:1] in (b"{", b"[", b"\xff") and record not in (b"[1]", b'{"provenance": ["d4rl"]}'):
        refused(path, "its record (o2o_smooth) is broken")
    else:
        assert from_hdf5([path]).provenance == "own"


def test_record_of_another_kind_is_not_read(tmp_path: Path) -> None:
    """Of variable length, a damaged length or type would crash the library or fill the memory."""
    path = write(tmp_path / "a.hdf5", recording())
    for value in ('{"provenance": "d4rl"}', [1, 2], np.array([b"a", b"b"]), h5py.Empty("S5")):
        with h5py.File(path, "a") as file:
            file.attrs["o2o_smooth"] = value
        assert from_hdf5([path]).provenance == "own"


# ------------------------------------------------------------------------------------------------------------- writing


def odd_transitions(n: int = 40) -> Transitions:
    """Values that a careless conversion changes."""
    arrays = recording(n)
    obs, successors = arrays["observations"], arrays["next_observations"]
    obs[0] = -0.0, np.float32(1e-45)  # the smallest denormal
    obs[1] = successors[0] = np.finfo(np.float32).max, np.finfo(np.float32).min
    successors[1] = obs[2]
    arrays["rewards"][:2] = -0.0, np.float32(0.1)
    arrays["terminals"][-1] = arrays["timeouts"][-1] = True
    return from_arrays(arrays).transitions


def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, small_slices: None, probed: None) -> None:
    t = odd_transitions()
    write_hdf5(tmp_path / "new" / "a.hdf5", t, {"provenance": "generated", "seed": 3})
    dataset = from_hdf5([tmp_path / "new" / "a.hdf5"])
    assert_equal(dataset.transitions, t)
    assert dataset.sha256 == array_hash(t)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.hdf5"]
    with h5py.File(tmp_path / "new" / "a.hdf5") as file:  # D4RL's names, for anybody's reader
        assert set(file) == set(SIX)
        assert all(file[name].fletcher32 for name in SIX)


def test_recording_that_ends_without_a_flag_is_believed(tmp_path: Path) -> None:
    t = odd_transitions()
    t.terminated[-1] = t.truncated[-1] = False
    write_hdf5(tmp_path / "a.hdf5", t, {})
    assert load(tmp_path / "a.hdf5").truncated[-1]  # the end of a recording is a cut


def test_views_and_mapped_rows_are_written_like_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("O2O_SMOOTH_DATA_GIB", "0")
    t = odd_transitions()
    assert isinstance(t.obs, np.memmap)
    write_hdf5(tmp_path / "a.hdf5", t, {})
    assert_equal(load(tmp_path / "a.hdf5"), t)


@pytest.mark.parametrize("name", SIX)
def test_changed_contents_do_not_match_the_checksum(tmp_path: Path, name: str) -> None:
    write_hdf5(tmp_path / "a.hdf5", odd_transitions(), {})
    with h5py.File(tmp_path / "a.hdf5", "a") as file:  # h5py makes a new checksum for the chunk
        changed = file[name][()]
        changed[5] = ~changed[5] if changed.dtype == np.bool_ else 0.25
        file[name][...] = changed
    refused(tmp_path / "a.hdf5", "do not match the checksum")


def test_lost_column_does_not_match_the_checksum(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "a.hdf5", odd_transitions(), {})
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        del file["next_observations"]
    refused(tmp_path / "a.hdf5", "do not match the checksum")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left\non device")])
def test_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    write_hdf5(tmp_path / "a.hdf5", odd_transitions(), {})
    before = (tmp_path / "a.hdf5").read_bytes()

    def fail(transitions: Transitions) -> str:
        (hidden,) = (path.name for path in tmp_path.iterdir() if path.name != "a.hdf5")
        assert hidden.startswith(".")  # beside the file: only there can it be renamed
        raise error

    monkeypatch.setattr(hdf5, "array_hash", fail)  # when all datasets are written
    expected = KeyboardInterrupt if error is KeyboardInterrupt else DataError
    with pytest.raises(expected) as caught:
        write_hdf5(tmp_path / "a.hdf5", from_arrays(recording()).transitions, {})
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf5"]
    assert (tmp_path / "a.hdf5").read_bytes() == before


def test_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.hdf5").mkdir()
    for path in (tmp_path / "file" / "a.hdf5", tmp_path / "folder.hdf5", Path("/proc/o2o_smooth/a.hdf5")):
        with pytest.raises(DataError, match=rf"cannot write {path}: [^\n]+$"):
            write_hdf5(path, odd_transitions(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.hdf5"]


# ------------------------------------------------------------------------------------------------------- hostile files

Hostile = Callable[[Any, Path], object]


def replaced(name: str, make: Callable[[Any, Path], Any]) -> Hostile:
    """Put something else in the place of a dataset."""

    def change(file: Any, folder: Path) -> None:
        del file[name]
        make(file, folder)

    return change


def unknown_filter(file: Any, folder: Path) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((4, 2))
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (1,))  # zstd's number, which a plugin would serve
    space = h5py.h5s.create_simple((12, 2))
    h5py.h5d.create(file.id, b"actions", h5py.h5t.IEEE_F32LE, space, properties)


def huge_chunk(file: Any, folder: Path) -> None:
    """A chunk of 2 GiB, stored as a few bytes."""
    n = 2**29
    rewards = file.create_dataset("rewards", (n,), np.float32, chunks=(n,), compression="gzip")
    rewards.id.write_direct_chunk((0,), b"x" * 3_000_000)


def missing_chunk(file: Any, folder: Path) -> None:
    rewards = file.create_dataset("rewards", (12,), np.float32, chunks=(3,), compression="gzip")
    rewards[:9] = 1  # whoever wrote this was stopped; h5py would read zeros


def missing_plain_chunk(file: Any, folder: Path) -> None:
    file.create_dataset("rewards", (12,), np.float32, chunks=(3,))[:9] = 1


def few_bytes(file: Any, folder: Path) -> None:
    """All chunks are there, of a few bytes each, and claim 4 GB."""
    rewards = file.create_dataset("rewards", (10**9,), np.float32, chunks=(10**8,), compression="gzip")
    for first in range(0, 10**9, 10**8):
        rewards.id.write_direct_chunk((first,), b"x" * 10)


def external(file: Any, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(48))
    file.create_dataset("rewards", (12,), np.float32, external=[(str(folder / "secret"), 0, 48)])


def virtual(file: Any, folder: Path) -> None:
    layout = h5py.VirtualLayout((12,), np.float32)
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "rewards", (12,))
    file.create_virtual_dataset("rewards", layout)


def dataset(name: str, *args: Any, **options: Any) -> Hostile:
    return replaced(name, lambda file, folder: file.create_dataset(name, *args, **options))


def link(name: str, value: Any) -> Hostile:
    def put(file: Any, folder: Path) -> None:
        file[name] = value

    return replaced(name, put)


def cycle(file: Any, folder: Path) -> None:
    file["observations"] = file["/"]


HOSTILE: dict[str, tuple[Hostile, str, str]] = {
    "soft link": (link("rewards", h5py.SoftLink("/terminals")), "rewards", "link"),
    "dangling link": (link("rewards", h5py.SoftLink("/nowhere")), "rewards", "link"),
    "loop of links": (link("rewards", h5py.SoftLink("/rewards")), "rewards", "link"),
    "external link": (link("rewards", h5py.ExternalLink("other.hdf5", "/rewards")), "rewards", "link"),
    "group": (replaced("rewards", lambda file, folder: file.create_group("rewards")), "rewards", "group"),
    "group loop": (replaced("observations", cycle), "observations", "group"),
    "type": (link("rewards", np.dtype("f4")), "rewards", "datatype"),
    "external storage": (replaced("rewards", external), "rewards", "another file"),
    "virtual": (replaced("rewards", virtual), "rewards", "another file"),
    "strings": (dataset("rewards", data=["a"] * 12), "rewards", "dtype object"),
    "fixed strings": (dataset("rewards", data=np.array([b"a"] * 12)), "rewards", "dtype |S1"),
    "vlen": (dataset("rewards", (12,), h5py.vlen_dtype(np.float32)), "rewards", "dtype object"),
    "references": (dataset("rewards", (12,), h5py.ref_dtype), "rewards", "dtype object"),
    "compound": (dataset("rewards", (12,), np.dtype([("a\nb", "f4")])), "rewards", "dtype"),
    "arrays": (dataset("rewards", (12,), np.dtype("(2,)f4")), "rewards", "dtype"),
    "complex": (dataset("rewards", data=np.zeros(12, complex)), "rewards", "dtype complex128"),
    "long double": (dataset("rewards", data=np.zeros(12, np.longdouble)), "rewards", "dtype float128"),
    "no space": (dataset("rewards", data=h5py.Empty("f4")), "rewards", "empty"),
    "scalar": (dataset("rewards", data=1.0), "rewards", "shape ()"),
    "unknown filter": (replaced("actions", unknown_filter), "actions", "filter 32015"),
    "nothing stored": (dataset("rewards", (10**12,), "f4"), "rewards", "0 bytes"),
    "no chunk stored": (dataset("rewards", (10**12,), "f4", chunks=(1000,)), "rewards", "0 bytes"),
    "size overflows": (dataset("observations", (2**33, 2**31), "f4", chunks=(8, 8)), "observations", "0 bytes"),
    "few bytes stored": (replaced("rewards", few_bytes), "rewards", "but only 100 bytes of it are stored"),
    "missing plain chunk": (replaced("rewards", missing_plain_chunk), "rewards", "but only 36 bytes"),
    "huge chunk": (replaced("rewards", huge_chunk), "rewards", "chunks of"),
    "missing chunk": (replaced("rewards", missing_chunk), "rewards", "3 of 4 chunks"),
}


def hostile(path: Path, change: Hostile) -> Path:
    write(path, recording(), 5)
    with h5py.File(path, "a") as file:
        change(file, path.parent)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_dataset_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, field, words = HOSTILE[name]
    refused(hostile(tmp_path / "evil.hdf5", change), field, words)


def test_hostile_files_take_neither_memory_nor_time(tmp_path: Path) -> None:
    """With the reading process, and in a process of its own, whose memory is nobody else's."""
    greedy = (
        "external storage",
        "nothing stored",
        "no chunk stored",
        "size overflows",
        "few bytes stored",
        "huge chunk",
    )
    names = [str(hostile(tmp_path / f"{name}.hdf5", HOSTILE[name][0])) for name in greedy]
    names.append(str(deadly(tmp_path / "chunk.hdf5", 2**31)))
    sound = str(write(tmp_path / "sound.hdf5", recording()))
    code = """if True:
        import resource, sys
        from pathlib import Path
        from o2o_smooth.data import from_hdf5
        from o2o_smooth.errors import DataError

        def memory():  # in KiB: ours, and the largest reader's with what it had of us when it began
            ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
            return int(ours.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss

        from_hdf5([Path(sys.argv[1])])
        before = memory()
        for name in sys.argv[2:]:
            try:
                from_hdf5([Path(name)])
            except DataError as error:
                assert "\\n" not in str(error)
            else:
                raise AssertionError(name)
        print(*((after - first) >> 10 for first, after in zip(before, memory())))
    """
    begin = time.monotonic()
    command = [sys.executable, "-c", code, sound, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert all(int(grown) < 200 for grown in done.stdout.split()), done.stdout  # MiB
    assert time.monotonic() - begin < 60


def test_groups_that_hold_each_other_are_walked_once(tmp_path: Path, probed: None) -> None:
    path = write(tmp_path / "a.hdf5", recording())
    with h5py.File(path, "a") as file:
        loop = file.create_group("loop")
        for i in range(30):
            loop[f"again{i}"] = loop
            loop[f"up{i}"] = file["/"]
    begin = time.monotonic()
    assert len(load(path)) == 12
    assert time.monotonic() - begin < 10


def test_missing_groups_folders_and_other_files_are_one_line(tmp_path: Path, probed: None) -> None:
    (tmp_path / "folder.hdf5").mkdir()
    (tmp_path / "empty.hdf5").touch()
    (tmp_path / "text.hdf5").write_text("observations\n" * 100)
    os.mkfifo(tmp_path / "pipe.hdf5")
    (tmp_path / "dangling.hdf5").symlink_to("nowhere.hdf5")
    with h5py.File(tmp_path / "none.hdf5", "w"):
        pass
    refused(tmp_path / "folder.hdf5", "is no file")
    refused(tmp_path / "pipe.hdf5", "is no file")
    refused(tmp_path / "dangling.hdf5", "is no file")
    refused(tmp_path / "empty.hdf5", "broken or incomplete")
    refused(tmp_path / "text.hdf5", "broken or incomplete")
    refused(tmp_path / "none.hdf5", "holds none of observations")
    refused(tmp_path / "absent.hdf5", "no dataset file")
    refused(tmp_path / ("long" * 100 + ".hdf5"), "no dataset file")


def test_part_of_a_minari_dataset_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "main_data.hdf5", {"episode_0/observations": np.zeros((3, 2))})
    refused(path, "a part of a Minari dataset", "folder")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_broken_or_incomplete(tmp_path: Path, probed: None, share: float) -> None:
    path = write(tmp_path / "a.hdf5", recording(1000))
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
    refused(path, "broken or incomplete")


# -------------------------------------------------------------------------------------- the reader whose death is tame


def deadly(path: Path, claimed: int = 0) -> Path:
    """A file on which HDF5 2.0.0 dies of a segmentation fault: its index says that a checksummed chunk has no bytes.

    Found by overwriting every byte of a small file with a few values in turn. Or: the chunk is said to have others.
    """
    write(path, recording(), 5, compression="gzip", shuffle=True, fletcher32=True)
    with h5py.File(path) as file:
        size = file["observations"].id.get_chunk_info(0).size
    content = bytearray(path.read_bytes())
    node = content.index(b"TREE\x01")  # the first B-tree of chunks; its first key begins with the chunk's size
    while struct.unpack_from("<I", content, node + 24)[0] != size:
        node = content.index(b"TREE\x01", node + 1)
    struct.pack_into("<I", content, node + 24, claimed)
    path.write_bytes(content)
    return path


def dies(path: Path) -> bool:
    """Whether a plain reader dies of it."""
    code = "import h5py, sys; h5py.File(sys.argv[1])['observations'][()]"
    return subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False).returncode < 0


def test_file_that_kills_the_library_is_refused(tmp_path: Path, probed: None) -> None:
    path = deadly(tmp_path / "deadly.hdf5")
    if dies(path):
        refused(path, "the HDF5 library crashes on it, signal")
    else:  # another version of the library
        refused(path)


def test_chunk_that_claims_more_than_the_file_has_is_refused_before_there_is_room_for_it(tmp_path: Path) -> None:
    refused(deadly(tmp_path / "a.hdf5", 2**31), "observations claims 2,147,", "more than the file has")


def test_damage_that_comes_first_does_not_hide_what_kills(tmp_path: Path, probed: None) -> None:
    path = deadly(tmp_path / "deadly.hdf5")
    with h5py.File(path) as file:
        address = h5py.h5o.get_info(file["actions"].id).addr
    content = bytearray(path.read_bytes())
    content[address : address + 16] = bytes(16)
    path.write_bytes(content)
    if not dies(path):
        pytest.skip("this version of the HDF5 library survives the file")
    refused(path, "the HDF5 library crashes on it, signal")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes on it, signal 11"),
        ("import time; time.sleep(60)", "does not end within"),
        ("raise SystemExit('a table of\\ncontents is damaged')", "contents is damaged"),
        ("raise SystemExit(3)", "the reader fails"),
    ],
)
def test_what_became_of_the_reader_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: None, script: str, words: str
) -> None:
    (tmp_path / "reader.py").write_text(script)
    monkeypatch.setattr(suspicion, "__file__", str(tmp_path / "reader.py"))
    monkeypatch.setattr(suspicion, "LEAST_S", 0.5)
    refused(write(tmp_path / "a.hdf5", recording()), words)


def test_sound_file_is_read_by_the_reader_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: None) -> None:
    calls = []
    run = subprocess.run

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        return run(*args, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    path = write(tmp_path / "a.hdf5", recording())
    load(path)
    load(path)
    assert len(calls) == 1
    write(path, recording(13))
    load(path)
    assert len(calls) == 2


def test_reader_finds_the_packages_that_we_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: None) -> None:
    """PYTHONPATH counts, and a module beside the reader is not taken for one of Python's."""
    (tmp_path / "h5py.py").write_text("raise SystemExit('not this one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    refused(write(tmp_path / "a.hdf5", recording()), "not this one")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    assert len(load(write(tmp_path / "a.hdf5", recording(13)))) == 13


def test_wide_rows_are_read_few_at_a_time() -> None:
    def rows(shape: tuple[int, ...], chunks: tuple[int, ...] | None = None) -> int:
        class Column:
            dtype = np.dtype(np.float32)

        column: Any = Column()
        column.shape, column.chunks = shape, chunks
        return suspicion.slice_rows(column)

    assert rows((10**7, 11)) == suspicion.SLICE_ROWS
    assert rows((10**7, 11), (100_000, 11)) == 100_000  # a chunk is not decompressed twice
    assert rows((10**7, 11), (1000, 11)) == 65_000
    assert rows((10**7, 10**6)) == suspicion.SLICE_BYTES // (4 * 10**6)
    assert rows((10**7, 10**9)) == 1
    assert rows((10**7, 10**6), (10**7, 1)) == suspicion.SLICE_BYTES // (4 * 10**6)  # a chunk is one thin column
