from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from o2o_smooth.data import (
    Transitions,
    check_fits,
    download,
    end_at_goal,
    from_arrays,
    from_minari,
    load_dataset,
    make_pointmaze_dataset,
    sources,
)
from o2o_smooth.data.dataset import array_hash
from o2o_smooth.data.installed import staged
from o2o_smooth.envs import Task, find_task
from o2o_smooth.errors import DataError
from tests.shared import shared

TASK = Task(id="test", env_id="Pendulum-v1", dataset_ids=("test/real-v0", "test/spare-v0"))
UMAZE = find_task("D4RL/pointmaze/umaze-dense-v2")
STEP = np.array([0, 1])


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's datasets, and none waits for a network."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "minari"


def shared_minari() -> Path:
    """The shared Minari folder."""
    return shared("data/minari")


def arrays(**changes: Any) -> dict[str, NDArray[Any]]:
    """Seven rows: terminated after 2, timed out after 3, terminated after 1, one that just stops.

    The observation is (episode, step), float64.
    """
    observations = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0], [3, 0], [3, 1]], np.float64)
    given = {
        "observations": observations,
        "actions": np.linspace(-1, 1, 8)[:, None],
        "rewards": np.arange(8.0),
        "terminals": np.array([0, 1, 0, 0, 0, 1, 0, 0]),
        "timeouts": np.array([0, 0, 0, 0, 1, 0, 0, 0]),
        "next_observations": observations + STEP,
    } | changes
    return {key: np.asarray(value) for key, value in given.items() if value is not None}


def write_minari(dataset_id: str, **first: Any) -> None:
    """A Minari dataset of two episodes: one of 3 steps, terminated, and one of 2 without a flag; dict observations.

    `first` replaces arrays of the first episode.
    """

    def episode(number: int, steps: int, terminated: bool, **changes: Any) -> EpisodeBuffer:
        stored: dict[str, Any] = {
            "observations": {
                "a": np.array([[number, step] for step in range(steps + 1)], np.float64),
                "b": np.array([[10.0 * step] for step in range(steps + 1)]),
            },
            "actions": np.zeros((steps, 1), np.float32),
            "rewards": np.arange(steps, dtype=np.float64),
            "terminations": np.array([False] * (steps - 1) + [terminated]),
            "truncations": np.zeros(steps, np.bool_),
            "infos": {"success": np.zeros(steps + 1, np.bool_)},
        }
        return EpisodeBuffer(**(stored | changes))

    unbounded: dict[str, gym.Space[Any]] = {
        key: gym.spaces.Box(-np.inf, np.inf, (size,), np.float64) for key, size in (("a", 2), ("b", 1))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            dataset_id,
            [episode(0, 3, True, **first), episode(1, 2, False)],
            observation_space=gym.spaces.Dict(unbounded),
            action_space=gym.spaces.Box(-1, 1, (1,), np.float32),
        )


def equal(a: Transitions, b: Transitions) -> bool:
    return array_hash(a) == array_hash(b)


# ------------------------------------------------------------------------------------------------------------- arrays


def test_given_successors_are_taken_as_they_are_and_flags_stay_apart() -> None:
    t = from_arrays(arrays()).transitions
    np.testing.assert_array_equal(t.next_obs, t.obs + STEP)
    np.testing.assert_array_equal(t.terminated, [0, 1, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(t.truncated, [0, 0, 0, 0, 1, 0, 0, 1])  # the end of the recording is a cut
    assert t.obs.dtype == np.float32


def test_successors_from_rows_never_cross_an_episode_boundary() -> None:
    t = from_arrays(arrays(next_observations=None)).transitions
    # the timed-out row (1, 2) and the last row (3, 1) have no successor and are dropped
    np.testing.assert_array_equal(t.obs, [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [3, 0]])
    cuts = t.terminated
    np.testing.assert_array_equal(t.next_obs[~cuts], t.obs[~cuts] + STEP)
    np.testing.assert_array_equal(t.next_obs[cuts], t.obs[cuts])  # a placeholder of the same episode
    np.testing.assert_array_equal(t.terminated, [0, 1, 0, 0, 1, 0])
    np.testing.assert_array_equal(t.truncated, [0, 0, 0, 1, 0, 1])
    np.testing.assert_array_equal(t.reward, [0, 1, 2, 3, 5, 6])


def test_timed_out_episode_of_one_step_leaves_no_flag_on_its_neighbour() -> None:
    t = from_arrays(
        {
            "obs": np.arange(5.0)[:, None],
            "action": np.zeros((5, 1)),
            "reward": np.arange(5.0),
            "terminated": np.array([0, 1, 0, 0, 1], np.bool_),
            "truncated": np.array([0, 0, 1, 0, 0], np.bool_),
        }
    ).transitions
    np.testing.assert_array_equal(t.reward, [0, 1, 3, 4])
    np.testing.assert_array_equal(t.truncated, [0, 0, 0, 0])


def test_boundaries_without_timeouts_are_seen_where_the_successor_is_not_the_next_row() -> None:
    assert equal(from_arrays(arrays()).transitions, from_arrays(arrays(timeouts=None)).transitions)


def test_terminated_at_the_time_limit_is_kept_without_a_successor() -> None:
    both = arrays(next_observations=None, timeouts=np.array([0, 1, 0, 0, 1, 0, 0, 0]))
    assert from_arrays(both).transitions.terminated.sum() == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qpos": np.zeros(8)}, "unknown key 'qpos'"),
        ({"obs": np.zeros((8, 2))}, "observations and obs"),
        ({"rewards": None}, "lack 'rewards'"),
        ({"timeouts": None, "next_observations": None}, "where episodes end"),
        ({"actions": np.zeros((7, 1))}, "actions have shape"),
        ({"terminals": np.full(8, 2)}, "terminals hold values other than 0 and 1"),
        ({"rewards": np.array(["a"] * 8)}, "rewards have dtype"),
        ({"next_observations": np.zeros((8, 3))}, "next_observations have shape"),
        ({"observations": np.zeros((0, 2))}, "observations have shape"),
        ({"rewards": np.array([0, 0, np.nan, 0, 0, 0, 0, 0])}, "rewards hold NaN .* 1 of 8 rows, first in row 2"),
        ({"observations": np.full((8, 2), 1e300)}, "observations hold NaN or infinity"),
    ],
)
def test_array_that_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_arrays(arrays(**changes))


def test_hash_tells_values_and_shapes_apart() -> None:
    first = from_arrays(arrays())
    other = from_arrays(arrays(rewards=np.append(np.arange(7.0), 8.0)))
    assert first.sha256 == from_arrays(arrays()).sha256
    assert first.sha256 != other.sha256
    assert first.provenance == "own"


def test_dataset_that_does_not_fit_the_env_names_both_shapes() -> None:
    dataset = from_arrays(arrays())
    check_fits(dataset, 2, 1)
    with pytest.raises(DataError, match="observations 2 and actions 1 wide, the environment has 6 and 2"):
        check_fits(dataset, 6, 2)


def test_npz_is_loaded_by_path(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **arrays())  # type: ignore[arg-type]
    lines: list[str] = []
    loaded = load_dataset(TASK, dataset=str(tmp_path / "mine.npz"), log=lines.append)
    assert equal(loaded.transitions, from_arrays(arrays()).transitions)
    assert "8 transitions, 4 episodes" in lines[-1]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"hello"])
def test_npz_that_is_absent_or_broken_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz") as error:
        load_dataset(TASK, dataset=str(path))
    assert "\n" not in str(error.value)


def test_bare_array_under_the_name_of_an_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "bare.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="one bare array"):
        load_dataset(TASK, dataset=str(tmp_path / "bare.npz"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", observations=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="plain arrays"):
        load_dataset(TASK, dataset=str(tmp_path / "evil.npz"))


# ------------------------------------------------------------------------------------------------------------- Minari


def test_minari_successors_are_exact_and_the_end_of_a_recording_is_a_cut() -> None:
    write_minari("test/real-v0")
    t = from_minari("test/real-v0", obs_keys=("b", "a")).transitions
    np.testing.assert_array_equal(t.obs, [[0, 0, 0], [10, 0, 1], [20, 0, 2], [0, 1, 0], [10, 1, 1]])
    np.testing.assert_array_equal(t.next_obs, t.obs + np.array([10, 0, 1]))
    np.testing.assert_array_equal(t.terminated, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(t.truncated, [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(t.episode_returns, [3, 1])
    default = from_minari("test/real-v0").transitions
    np.testing.assert_array_equal(default.obs, t.obs[:, [1, 2, 0]])  # the order of the space: a, b


def test_first_installed_set_of_the_task_is_taken_and_named() -> None:
    write_minari("test/spare-v0")
    lines: list[str] = []
    assert load_dataset(TASK, log=lines.append).id == "test/spare-v0"
    assert "test/spare-v0" in lines[-1]
    write_minari("test/real-v0")
    assert load_dataset(TASK).id == "test/real-v0"
    assert load_dataset(TASK, dataset="test/spare-v0").id == "test/spare-v0"


def test_provenance_is_told_from_the_id() -> None:
    for dataset_id, provenance in (("D4RL/x/y-v0", "minari"), ("o2o-smooth/x-v0", "generated")):
        write_minari(dataset_id)
        assert from_minari(dataset_id).provenance == provenance


def test_steps_at_the_goal_end_the_task() -> None:
    reward = np.array([0, 1, 1, 0, 0, 1, 1, 1, 0], np.float32)
    n = len(reward)
    t = Transitions(
        obs=np.arange(n, dtype=np.float32)[:, None],
        action=np.zeros((n, 1), np.float32),
        reward=reward,
        next_obs=np.arange(1, n + 1, dtype=np.float32)[:, None],
        terminated=np.zeros(n, np.bool_),
        truncated=np.array([0, 0, 0, 0, 0, 0, 1, 0, 1], np.bool_),
    )
    cut = end_at_goal(t, 1.0)
    # rows 2 and 3 begin at the goal, row 6 too; row 7 begins an episode and row 8 begins at the goal
    np.testing.assert_array_equal(cut.obs[:, 0], [0, 1, 4, 5, 7])
    np.testing.assert_array_equal(cut.terminated, [0, 1, 0, 1, 1])
    np.testing.assert_array_equal(cut.truncated, [0, 0, 0, 0, 0])
    np.testing.assert_array_equal(cut.episode_returns, [1, 1, 1])
    assert equal(end_at_goal(cut, 1.0), cut)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": np.zeros(2)}, "episode 0 has 2 rewards, but its observations are for"),
        ({"actions": np.zeros((4, 1), np.float32)}, "episode 0 has 3 rewards, but its actions are for"),
        ({"terminations": np.zeros(2, np.bool_)}, "episode 0 has 3 rewards, but its terminations are for"),
        ({"rewards": np.array([0.0, 0.0, np.nan])}, "reward holds NaN or infinity in 1 of 5 rows, first in row 2"),
    ],
)
def test_minari_episode_that_does_not_fit_is_named(changes: dict[str, Any], words: str) -> None:
    write_minari("test/real-v0", **changes)
    with pytest.raises(DataError, match=f"dataset test/real-v0: {words}"):
        load_dataset(TASK)


def test_observation_key_that_is_not_stored_is_named() -> None:
    write_minari("test/real-v0")
    with pytest.raises(DataError, match=r"dataset test/real-v0: .*no key 'c'"):
        from_minari("test/real-v0", obs_keys=("a", "c"))


@pytest.mark.parametrize("damage", ["truncate", "garbage", "no file", "no metadata", "bad metadata", "lying metadata"])
def test_broken_minari_set_is_one_line_that_names_it(minari_folder: Path, damage: str) -> None:
    write_minari("test/real-v0")
    data = minari_folder / "test" / "real-v0" / "data"
    file, metadata = data / "main_data.hdf5", data / "metadata.json"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "garbage":
        file.write_bytes(b"hello")
    elif damage == "no file":
        file.unlink()
    elif damage == "no metadata":
        metadata.unlink()
    elif damage == "bad metadata":
        metadata.write_text("{")
    else:
        metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"total_episodes": 7}))
    with pytest.raises(DataError, match=r"test/real-v0 .*broken or incomplete.*delete that folder") as error:
        load_dataset(TASK)
    assert "\n" not in str(error.value)


def test_absent_set_without_network_is_one_line_with_the_cures(minari_folder: Path) -> None:
    with pytest.raises(DataError, match="test/real-v0 is not installed") as error:
        load_dataset(TASK)
    for cure in ("minari download test/real-v0", "MINARI_DATASETS_PATH", "--dataset"):
        assert cure in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="--dataset ID or --dataset FILE"):
        load_dataset(find_task("hopper-random-v2"))
    assert not list(minari_folder.glob("**/data"))


def test_download_asks_first_whether_anybody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"no answer from http://127\.0\.0\.1:9"):
        load_dataset(TASK)


def test_download_that_fails_half_way_leaves_nothing(minari_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(dataset_id: str) -> None:
        write_minari(dataset_id)
        raise ConnectionError("the line\nis dead")

    monkeypatch.setattr(download, "_hindrance", lambda: None)
    monkeypatch.setattr(minari, "download_dataset", half)
    with pytest.raises(DataError, match=r"\(the line is dead\)"):
        load_dataset(TASK)
    assert list(minari_folder.iterdir()) == []
    monkeypatch.setattr(minari, "download_dataset", write_minari)
    assert load_dataset(TASK).id == "test/real-v0"


@pytest.mark.parametrize(
    ("dataset_id", "task_id", "shapes", "count"),
    [
        ("generated/hopper/medium-v0", "hopper-medium-v2", (11, 3), (100_127, 252)),
        ("generated/antmaze/umaze-v0", "antmaze-umaze-v2", (31, 8), None),
    ],
)
def test_shared_sets_load_for_their_tasks(
    monkeypatch: pytest.MonkeyPatch,
    dataset_id: str,
    task_id: str,
    shapes: tuple[int, int],
    count: tuple[int, int] | None,
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared_minari()))
    task = find_task(task_id)
    dataset = load_dataset(task, dataset=dataset_id)
    check_fits(dataset, *shapes)
    t = dataset.transitions
    inside = np.ones(len(t), np.bool_)
    inside[t.episode_ends] = False
    rows = np.flatnonzero(inside)
    np.testing.assert_array_equal(t.next_obs[rows], t.obs[rows + 1])
    assert dataset.provenance == "generated"
    if count is not None:
        assert (len(t), len(t.episode_ends)) == count
    else:
        assert set(t.episode_returns) == {0.0, 1.0}
        assert t.terminated.sum() == (t.reward == 1).sum() > 100


# ---------------------------------------------------------------------------------------------------------- made here


def test_pointmaze_data_is_made_on_the_spot_and_says_so() -> None:
    pytest.importorskip("gymnasium_robotics")
    lines: list[str] = []
    seen: list[tuple[int, int]] = []
    dataset_id = make_pointmaze_dataset(UMAZE, transitions=500, progress=lambda done, total: seen.append((done, total)))
    assert dataset_id == "o2o-smooth/pointmaze/umaze-dense-v0"
    assert seen == [(300, 500), (500, 500)]
    loaded = load_dataset(UMAZE, log=lines.append)
    assert (loaded.id, loaded.provenance) == (dataset_id, "generated")
    assert "not D4RL's file" in lines[-1]
    t = loaded.transitions
    check_fits(loaded, 6, 2)
    np.testing.assert_array_equal(t.episode_ends, [299, 599])
    assert t.truncated.sum() == 2
    assert not t.terminated.any()
    metadata = minari.load_dataset(dataset_id).storage.metadata
    assert metadata["description"].startswith("GENERATED")
    assert (metadata["ref_min_score"], metadata["ref_max_score"]) == (UMAZE.ref_random, UMAZE.ref_expert)
    assert metadata["o2o_smooth"]["seed"] == 0
    assert metadata["total_steps"] == 600
    assert dataset_id in minari.list_local_datasets()


def test_absent_real_set_is_replaced_by_one_made_here(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def make(task: Task, progress: object = None) -> str:
        made.append(task.id)
        write_minari(task.dataset_ids[1])
        return task.dataset_ids[1]

    task = Task(**{**vars(UMAZE), "obs_keys": None})
    monkeypatch.setattr(sources, "make_pointmaze_dataset", make)
    lines: list[str] = []
    assert load_dataset(task, log=lines.append).provenance == "generated"
    assert "D4RL/pointmaze/umaze-dense-v2 is not installed" in lines[0]
    write_minari("D4RL/pointmaze/umaze-dense-v2")
    assert load_dataset(task).provenance == "minari"
    assert made == [UMAZE.id]


def test_same_seed_makes_the_same_data_and_another_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics")
    hashes = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / folder))
        make_pointmaze_dataset(UMAZE, transitions=300, seed=seed)
        hashes.append(load_dataset(UMAZE).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_interrupted_making_leaves_nothing_behind(minari_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics")
    create = minari.create_dataset_from_buffers

    def interrupted(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(minari, "create_dataset_from_buffers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_pointmaze_dataset(UMAZE, transitions=1)
    assert list(minari_folder.iterdir()) == []
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_folder)


def test_set_that_another_process_made_meanwhile_is_kept(minari_folder: Path) -> None:
    with staged("test/real-v0"):
        write_minari("test/real-v0")
        (minari_folder / "test" / "real-v0" / "data").mkdir(parents=True)
        (minari_folder / "test" / "real-v0" / "data" / "theirs").touch()
    assert [file.name for file in (minari_folder / "test" / "real-v0" / "data").iterdir()] == ["theirs"]
    assert [entry.name for entry in minari_folder.iterdir()] == ["test"]


def test_data_is_made_for_pointmaze_only() -> None:
    with pytest.raises(DataError, match="hopper-medium-v2"):
        make_pointmaze_dataset(find_task("hopper-medium-v2"))
    with pytest.raises(DataError, match="transitions is 0"):
        make_pointmaze_dataset(UMAZE, transitions=0)


@pytest.mark.parametrize("timeouts", [True, False])
def test_d4rls_runs_of_terminal_steps_at_the_goal_are_one_end(timeouts: bool) -> None:
    """D4RL's AntMaze: reward and terminal in every step near the goal, and the trajectory goes on."""
    reward = np.zeros(20, np.float32)
    reward[[5, 6, 7, 8, 9, 15, 16, 17]] = 1.0
    cut = np.zeros(20, np.bool_)
    cut[[11, 19]] = timeouts
    obs = np.arange(21, dtype=np.float32)[:, None]
    given: dict[str, NDArray[Any]] = {
        "observations": obs[:-1],
        "actions": np.zeros((20, 1), np.float32),
        "rewards": reward,
        "terminals": reward > 0,
        "timeouts": cut,
        "next_observations": obs[1:],
    }
    goal = Task(id="goal", env_id="Pendulum-v1", goal_reward=1.0)
    t = from_arrays(given, task=goal).transitions
    assert t.reward.sum() == 2.0  # each run pays once
    assert t.terminated.sum() == 2
    assert max(t.episode_returns) == 1.0
    assert equal(t, end_at_goal(from_arrays(given).transitions, 1.0))


def test_kitchen_rewards_that_count_are_paid_once() -> None:
    """D4RL's Kitchen data hold the number of finished subtasks in every step."""
    task = find_task("kitchen-complete-v0")
    counts = np.array([0, 0, 1, 1, 2, 2, 0, 1, 1, 3], np.float32)
    given: dict[str, NDArray[Any]] = {
        "observations": np.arange(10 * 60, dtype=np.float32).reshape(10, 60),
        "actions": np.zeros((10, 9), np.float32),
        "rewards": counts,
        "terminals": np.zeros(10),
        "timeouts": np.array([0, 0, 0, 0, 0, 1, 0, 0, 0, 1]),
        "next_observations": np.arange(60, 11 * 60, dtype=np.float32).reshape(10, 60),
    }
    made = from_arrays(given, task=task)
    np.testing.assert_array_equal(made.transitions.reward, [0, 0, 1, 0, 1, 0, 0, 1, 0, 2])
    assert "each is paid once" in made.note
    paid = from_arrays(given | {"rewards": made.transitions.reward.copy()}, task=task)
    np.testing.assert_array_equal(paid.transitions.reward, made.transitions.reward)
