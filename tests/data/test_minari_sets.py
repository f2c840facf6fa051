"""Minari's datasets: what they claim is held against what they hold, and nothing in them is executed."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer
from numpy.typing import NDArray

from o2o_smooth.data import Transitions, from_minari, hdf5, load_dataset, minari_sets
from o2o_smooth.data.dataset import array_hash
from o2o_smooth.data.installed import minari_root
from o2o_smooth.data.minari_sets import is_id
from o2o_smooth.envs import Task, find_task
from o2o_smooth.envs.compat import kitchen_goal, kitchen_positions
from o2o_smooth.errors import DataError

STEPS = (3, 1, 4)  # of the episodes
TOTAL = sum(STEPS)
NAME = "test/real-v0"


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's datasets; the reading process has its own tests."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hdf5, "survives", lambda path: None)
    return tmp_path / "minari"


def box(width: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (width,), np.float64)


def create(name: str = NAME, widths: int | dict[str, int] = 3) -> Path:
    """Episodes of `STEPS` with random observations, flat or a dict; the second terminates. Gives the data folder."""
    rng = np.random.default_rng(0)

    def observations(steps: int) -> Any:
        if isinstance(widths, int):
            return rng.normal(size=(steps + 1, widths))
        return {key: rng.normal(size=(steps + 1, width)) for key, width in widths.items()}

    episodes = [
        EpisodeBuffer(
            observations=observations(steps),
            actions=rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
            rewards=rng.normal(size=steps),
            terminations=np.array([False] * (steps - 1) + [number == 1]),
            truncations=np.zeros(steps, np.bool_),
            infos={},
        )
        for number, steps in enumerate(STEPS)
    ]
    space = box(widths) if isinstance(widths, int) else gym.spaces.Dict({k: box(w) for k, w in widths.items()})
    with warnings.catch_warnings(action="ignore"):
        minari.create_dataset_from_buffers(
            name, episodes, observation_space=space, action_space=gym.spaces.Box(-1, 1, (2,), np.float32)
        )
    folder = minari_root() / name / "data"
    assert json.loads((folder / "metadata.json").read_text())["total_steps"] == TOTAL
    return folder


def change_metadata(folder: Path, **changes: Any) -> None:
    """Overwrite entries; None deletes one."""
    metadata = json.loads((folder / "metadata.json").read_text()) | changes
    metadata = {key: value for key, value in metadata.items() if value is not None}
    (folder / "metadata.json").write_text(json.dumps(metadata))


def refused(*words: str, **options: Any) -> None:
    """Refused in one line that names the dataset and says all the words."""
    with pytest.raises(DataError) as error:
        from_minari(NAME, **options)
    text = str(error.value)
    assert "\n" not in text
    for word in (NAME, *words):
        assert word in text, text


def equal(a: Transitions, b: Transitions) -> bool:
    return array_hash(a) == array_hash(b)


# -------------------------------------------------------------------------------------------------------- id and folder


@pytest.mark.parametrize(
    "text",
    ["", "x", "x-v", "../x-v0", "a/../b-v0", "..", "a/..-v0", "/etc/x-v0", "//x-v0", "a//x-v0", ".hidden/x-v0",
     "a..b/x-v0", "a/x-v0/", "a/x-v0\n", "\na/x-v0", "~/x-v0", "a\\x-v0", "a/x-v0\0", "a b/x-v0"],
)  # fmt: skip
def test_what_is_no_id_is_refused_before_anything_is_touched(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*args: Any) -> Any:
        raise AssertionError("this looks at the disk")

    monkeypatch.setattr(minari_sets, "minari_root", touched)
    monkeypatch.setattr(minari_sets, "is_installed", touched)
    assert not is_id(text)
    with pytest.raises(DataError, match=r"is no Minari id: expected [^\n]+$"):
        from_minari(text)


@pytest.mark.parametrize("text", ["x-v0", "D4RL/door/human-v2", "a/b/c/d_e.f-g-v12", "v0/x-v0"])
def test_what_is_an_id_is_looked_for(text: str) -> None:
    assert is_id(text)
    with pytest.raises(DataError, match=f"dataset {text} is not installed"):
        from_minari(text)


def test_folder_anywhere_is_read_by_path(tmp_path: Path) -> None:
    create()
    installed = from_minari(NAME)
    shutil.move(tmp_path / "minari" / NAME, tmp_path / "elsewhere")
    for dataset in (from_minari(tmp_path / "elsewhere"), load_dataset(TASK, dataset=str(tmp_path / "elsewhere"))):
        assert equal(dataset.transitions, installed.transitions)
        assert dataset.id == str(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="cannot be read"):
        from_minari(tmp_path / "nowhere")


TASK = Task(id="test", env_id="Pendulum-v1", dataset_ids=(NAME,))


def test_progress_ends_at_all_transitions() -> None:
    create()
    calls: list[tuple[int, int]] = []
    from_minari(NAME, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(3, 8), (4, 8), (8, 8)]


# ------------------------------------------------------------------------------------------------- metadata that lies


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_steps": TOTAL + 1}, "it holds 8 steps, and its metadata name 9"),
        ({"total_steps": TOTAL - 1}, "does not fit the 7 steps that the metadata names"),
        ({"total_steps": 1}, "the metadata name 1 steps"),
        ({"total_steps": 10**12}, "1,000,000,000,000 steps, which"),
        ({"total_steps": 0}, "it has no episodes"),
        ({"total_steps": -8}, "it has no episodes"),
        ({"total_steps": 8.5}, "total_steps of its metadata is 8.5"),
        ({"total_steps": float("inf")}, "total_steps of its metadata is inf"),
        ({"total_steps": "8"}, "total_steps of its metadata is '8'"),
        ({"total_steps": None}, "total_steps of its metadata is None"),
        ({"total_episodes": 2}, "it holds 4 steps, and its metadata name 8"),
        ({"total_episodes": 4}, "episode_3 is absent"),
        ({"total_episodes": 10**10}, "10,000,000,000 episodes, which"),  # Minari would count them in an array
        ({"total_episodes": 0}, "it has no episodes"),
        ({"total_episodes": [3]}, "total_episodes of its metadata is [3]"),
        ({"data_format": "nonsense"}, "broken or incomplete"),
        ({"observation_space": "{"}, "broken or incomplete"),
        ({"observation_space": 7}, "name no observation_space"),
        ({"observation_space": '{"type": "Discrete", "n": 3, "start": 0}'}, "unsupported observation space"),
        ({"minari_version": "0.0.1"}, "does not support"),
        ({"dataset_id": None}, "dataset_id"),
    ],
)  # fmt: skip
def test_metadata_that_lie_are_refused(changes: dict[str, Any], words: str) -> None:
    change_metadata(create(), **changes)
    refused(words)


def test_steps_that_the_files_cannot_hold_are_refused_before_there_is_room_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def allocate(*args: Any) -> Any:
        raise AssertionError("this allocates")

    folder = create()
    stored = sum(file.stat().st_size for file in folder.iterdir())
    change_metadata(folder, total_steps=1000 * stored)  # one byte a step could be, three columns cannot
    monkeypatch.setattr(minari_sets, "RowStore", allocate)
    refused("steps, which", "bytes cannot hold")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_metadata_that_are_none_are_refused(content: bytes) -> None:
    (create() / "metadata.json").write_bytes(content)
    refused("metadata.json", "delete that folder")


def test_metadata_larger_than_any_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    create()
    monkeypatch.setattr(minari_sets, "_LARGEST_JSON", 100)
    refused("more than the 100 that such a file can have")


def test_what_gymnasium_thinks_of_the_spaces_is_not_said_to_the_user() -> None:
    folder = create()
    before = from_minari(NAME).transitions
    space = json.loads(json.loads((folder / "metadata.json").read_text())["action_space"])
    change_metadata(folder, action_space=json.dumps(space | {"low": [-1e300, -1.0]}))  # numpy warns of the overflow
    assert equal(from_minari(NAME).transitions, before)


@pytest.mark.parametrize("key", ["observation_space", "action_space"])
def test_environment_that_the_metadata_name_is_never_made(tmp_path: Path, key: str) -> None:
    """Without its spaces Minari makes the environment, whose entry point may be any function of any module."""
    spec = {"id": "evil-v0", "entry_point": "os:mkdir", "kwargs": {"path": str(tmp_path / "made")},
            "additional_wrappers": []}  # fmt: skip
    change_metadata(create(), **{key: None}, env_spec=json.dumps(spec))
    refused(f"name no {key}")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("dataset_id", "record", "provenance"),
    [
        ("D4RL/door/human-v2", None, "minari"),
        ("mujoco/hopper/medium-v0", None, "minari"),
        ("o2o-smooth/x-v0", None, "generated"),
        ("generated/hopper/medium-v0", None, "generated"),
        ("mine/x-v0", None, "own"),
        ("mine/x-v0", {"provenance": "d4rl"}, "d4rl"),
        ("D4RL/door/human-v2", {"provenance": "own"}, "own"),
        ("mine/x-v0", {"provenance": "nonsense"}, "own"),
        ("mine/x-v0", {"provenance": ["d4rl"]}, "own"),
        ("mine/x-v0", "d4rl", "own"),
    ],
)
def test_provenance_is_what_the_record_says_or_the_namespace(dataset_id: str, record: Any, provenance: str) -> None:
    folder = create(dataset_id)
    change_metadata(folder, o2o_smooth=record)
    assert from_minari(dataset_id).provenance == provenance
    folder.parent.rename(folder.parents[2] / "copy")  # the folder's name does not count
    assert from_minari(folder.parents[2] / "copy").provenance == provenance
    assert from_minari(folder.parents[2] / "copy", provenance="d4rl").provenance == "d4rl"


# ------------------------------------------------------------------------------------------------------------- layouts


def test_only_the_columns_that_ants_environment_has_are_read() -> None:
    ant = find_task("ant-medium-v2")
    create(widths=105)
    whole, cut = from_minari(NAME).transitions, from_minari(NAME, task=ant).transitions
    assert (whole.obs.shape, cut.obs.shape) == ((TOTAL, 105), (TOTAL, 27))
    np.testing.assert_array_equal(cut.obs, whole.obs[:, :27])
    np.testing.assert_array_equal(cut.next_obs, whole.next_obs[:, :27])
    create("test/other-v0", widths=30)  # not Ant's: it is refused when it is held against the environment
    assert from_minari("test/other-v0", task=ant).transitions.obs.shape == (TOTAL, 30)


@pytest.mark.parametrize("task_id", ["kitchen-complete-v0", "kitchen-mixed-v0"])
def test_kitchen_gets_d4rls_observation_of_60_columns(task_id: str) -> None:
    task = find_task(task_id)
    folder = create(widths={"achieved_goal": 30, "desired_goal": 30, "observation": 59})
    t = from_minari(NAME, task=task).transitions
    assert t.obs.shape == (TOTAL, 60)
    with h5py.File(folder / "main_data.hdf5") as file:
        stored = np.concatenate([file[f"episode_{i}/observations/observation"][:-1] for i in range(3)])
    np.testing.assert_array_equal(t.obs[:, :30], kitchen_positions(stored).astype(np.float32))
    np.testing.assert_array_equal(t.obs[:, :9], stored[:, :9].astype(np.float32))  # the robot's positions
    np.testing.assert_array_equal(t.obs[:, 9:30], stored[:, 18:39].astype(np.float32))  # the objects'
    goal = kitchen_goal(task.env_kwargs["tasks_to_complete"]).astype(np.float32)
    assert goal.any()
    np.testing.assert_array_equal(t.obs[:, 30:], np.tile(goal, (TOTAL, 1)))
    np.testing.assert_array_equal(t.next_obs[:2], t.obs[1:3])


def test_kitchen_of_another_width_is_refused() -> None:
    create(widths={"observation": 60})
    refused("Kitchen's observation", "(4, 60)", "59", task=find_task("kitchen-complete-v0"))


def test_dict_is_read_by_the_keys_of_the_task() -> None:
    create(widths={"a": 1, "b": 2, "c": 3})
    whole = from_minari(NAME).transitions
    chosen = from_minari(NAME, task=Task(id="t", env_id="Pendulum-v1", obs_keys=("c", "a"))).transitions
    np.testing.assert_array_equal(chosen.obs, whole.obs[:, [3, 4, 5, 0]])


# ------------------------------------------------------------------------------------------------------- hostile parts

Change = Callable[[Any], object]


def part(name: str, **options: Any) -> Change:
    """Another dataset in the place of one."""

    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def linked(name: str, value: Any) -> Change:
    def change(file: Any) -> None:
        if name in file:
            del file[name]
        file[name] = value

    return change


def without(name: str) -> Change:
    def change(file: Any) -> None:
        del file[name]

    return change


def deep(file: Any) -> None:
    del file["episode_1/observations"]
    file["episode_1/observations/a/b/c/d/e/f/g/h/i/j/k"] = np.zeros((2, 3))


def looped(file: Any) -> None:
    del file["episode_1/observations"]
    group = file.create_group("episode_1/observations")
    for i in range(30):
        group[f"again{i}"] = group


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *[(without(f"episode_1/{name}"), f"/episode_1 has no {name}")
          for name in ("observations", "actions", "rewards", "terminations", "truncations")],
        (without("episode_1"), "episode_1 is absent"),
        (linked("episode_1", np.zeros(3)), "episode_1 is no group"),
        (linked("episode_1", h5py.SoftLink("/episode_0")), "episode_1 is absent"),
        (linked("episode_1", h5py.ExternalLink("x.hdf5", "/")), "episode_1 is absent"),
        (linked("episode_1/rewards", h5py.SoftLink("/episode_0/rewards")), "episode_1/rewards is a link"),
        (part("episode_1/rewards", data=["a"]), "episode_1/rewards has dtype object"),
        (part("episode_1/rewards", shape=(2**40,), dtype="f4", chunks=(8,)), "episode_1/rewards claims shape"),
        (part("episode_1/rewards", data=1.0), "episode_1/rewards has shape ()"),
        (part("episode_1/rewards", data=np.zeros(100)), "episode_1/rewards has shape (100,)"),
        (part("episode_1/rewards", data=np.zeros((1, 2))), "broken or incomplete"),
        (part("episode_1/rewards", data=np.zeros(0)), "episode 1 has 0 rewards"),
        (part("episode_1/actions", data=np.zeros((1, 5))), "episode 1 of 1 steps, 3 observations and 5 actions"),
        (part("episode_1/observations", data=np.zeros((2, 4))), "episode 1 of 1 steps, 4 observations"),
        (part("episode_1/observations", data=np.zeros((1, 3))), "its observations are for 0 steps"),
        (part("episode_1/terminations", data=np.array([0.5])), "terminations of episode 1 hold values other than 0"),
        (part("episode_1/truncations", data=np.array([np.nan])), "truncations of episode 1 hold values other than 0"),
        (deep, "episode_1/observations is a group, expected a dataset"),
        (looped, "episode_1/observations is a group, expected a dataset"),
    ],
)  # fmt: skip
def test_part_that_does_not_fit_is_named(change: Change, words: str) -> None:
    with h5py.File(create() / "main_data.hdf5", "a") as file:
        change(file)
    begin = time.monotonic()
    refused(words)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("episode_0/observations/a"), "/episode_0/observations has no a"),
        (part("episode_0/observations", data=np.zeros((4, 2))), "observations is no group"),
        (linked("episode_0/observations/a", h5py.SoftLink("/episode_0/rewards")), "observations/a is a link"),
        (linked("episode_0/observations/a/b", np.zeros((4, 1))), "observations/a is a group, expected a dataset"),
    ],
)
def test_part_of_a_dict_that_does_not_fit_is_named(change: Change, words: str) -> None:
    with h5py.File(create(widths={"a": 1, "c": 2}) / "main_data.hdf5", "a") as file:
        if words.endswith("a is a group, expected a dataset"):
            del file["episode_0/observations/a"]
        change(file)
    refused(words)


def test_array_larger_than_memory_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(create() / "main_data.hdf5", "a") as file:
        part("episode_1/actions", shape=(1, 2**23), dtype="f8", chunks=(1, 2**17), compression="gzip")(file)
        file["episode_1/actions"][:] = 0
    monkeypatch.setattr(minari_sets, "_LARGE", 2**20)
    monkeypatch.setattr(minari_sets, "memory_limit", lambda: 2**25)
    refused("episode_1/actions", "does not fit into memory")


def test_dataset_is_first_read_by_the_reader_that_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = create()
    read: list[Path] = []

    def survives(path: Path) -> str:
        read.append(path)
        return "the HDF5 library crashes on it, signal 11"

    monkeypatch.setattr(hdf5, "survives", survives)
    refused("crashes on it, signal 11", "delete that folder")
    assert read == [folder / "main_data.hdf5"]


def test_flags_of_any_kind_of_number_are_read() -> None:
    folder = create()
    before = from_minari(NAME).transitions
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        for i, dtype in enumerate((np.int64, np.float32, np.uint8)):
            for name in ("terminations", "truncations"):
                values: NDArray[Any] = file[f"episode_{i}/{name}"][()].astype(dtype)
                part(f"episode_{i}/{name}", data=values[:, None] if i == 0 else values)(file)
    assert equal(from_minari(NAME).transitions, before)
