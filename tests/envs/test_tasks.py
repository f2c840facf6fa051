from __future__ import annotations

import ast
import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from o2o_smooth.envs import Task, find_task, known_tasks, register_task, tasks
from o2o_smooth.errors import EnvError
from tests.shared import shared


def expand(names: str) -> list[str]:
    """`a-{x;y}-v0` as the names that it stands for."""
    match = re.search(r"\{(.*)\}", names)
    if match is None:
        return [names]
    return [names[: match.start()] + choice + names[match.end() :] for choice in match.group(1).split(";")]


@pytest.mark.parametrize(
    ("name", "task_id"),
    [
        ("hopper-medium-v2", "hopper-medium-v2"),
        ("mujoco/hopper/medium-v0", "hopper-medium-v2"),
        ("maze2d-umaze-dense-v1", "D4RL/pointmaze/umaze-dense-v2"),
        ("D4RL/pointmaze/umaze-dense-v2", "D4RL/pointmaze/umaze-dense-v2"),
        ("o2o-smooth/pointmaze/umaze-dense-v0", "D4RL/pointmaze/umaze-dense-v2"),
        ("PointMaze_UMazeDense-v3", "D4RL/pointmaze/umaze-dense-v2"),
        ("antmaze-umaze-v2", "antmaze-umaze-v2"),
        ("D4RL/antmaze/umaze-v1", "D4RL/antmaze/umaze-v1"),
    ],
)
def test_task_is_found_by_d4rl_id_minari_id_and_env_id(name: str, task_id: str) -> None:
    assert find_task(name).id == task_id


def test_env_of_several_tasks_has_references_but_no_dataset() -> None:
    task = find_task("Hopper-v5")
    assert (task.id, task.dataset_ids) == ("Hopper-v5", ())
    assert task.ref_expert == find_task("hopper-medium-v2").ref_expert


def test_any_registered_env_is_a_task_with_its_own_time_limit() -> None:
    task = find_task("Pendulum-v1")
    assert (task.env_id, task.domain, task.max_episode_steps) == ("Pendulum-v1", "other", 200)
    assert task.score(np.zeros(3)) is None


def test_robotics_env_outside_the_table_is_found() -> None:
    pytest.importorskip("gymnasium_robotics")
    assert find_task("AntMaze_Open-v4").domain == "antmaze"


def test_unknown_task_is_one_line_with_close_matches() -> None:
    with pytest.raises(EnvError, match="hopper-medium-v2") as error:
        find_task("hoper-medium-v2")
    assert "\n" not in str(error.value)
    assert "o2o-smooth tasks" in str(error.value)


def test_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(EnvError, match="no_such_module"):
        find_task("no_such_module:Env-v0")


def test_score_is_0_at_random_and_100_at_reference() -> None:
    task = find_task("hopper-medium-v2")
    score = task.score(np.array([[-20.272305, 3234.3]]))
    assert score is not None
    np.testing.assert_allclose(score, [[0.0, 100.0]], atol=1e-12)


def test_every_row_of_the_shared_table_agrees_with_ours() -> None:
    checked = 0
    for row in csv.DictReader(io.StringIO(shared("tasks.csv").read_text())):
        for d4rl_id in expand(row["d4rl_id"]):
            task = find_task(d4rl_id)
            checked += 1
            steps = 280 if d4rl_id.startswith("kitchen") else int(row["max_steps"])  # D4RL's; the row has Minari's
            assert (task.env_id, task.max_episode_steps) == (row["env_id"], steps)
            if not d4rl_id.startswith("maze2d"):  # D4RL's maze2d scores do not transfer
                assert (task.ref_random, task.ref_expert) == (float(row["ref_min"]), float(row["ref_max"]))
        for minari_id in expand(row["minari_id"]):
            task = find_task(minari_id)
            assert minari_id in task.dataset_ids
            assert task.max_episode_steps == int(row["max_steps"])
    assert checked == 24 + 6 + 12 + 3 + 8


def test_pointmaze_references_are_measured_not_d4rls() -> None:
    d4rl = {"umaze": 161.86, "medium": 277.39, "large": 273.99, "open": 20.66}
    for name, ref_max in d4rl.items():
        task = find_task(f"D4RL/pointmaze/{name}-v2")
        assert task.ref_expert is not None
        assert task.ref_expert > 1.4 * ref_max
        assert task.ref_source is not None
        assert task.ref_source.startswith("measured")


def test_antmaze_ends_at_the_goal_and_subtracts_one() -> None:
    rows = [task for task in known_tasks() if task.domain == "antmaze"]
    assert len(rows) == 12
    for task in rows:
        assert task.env_kwargs["continuing_task"] is False
        assert (task.reward_shift, task.goal_reward) == (-1.0, 1.0)
        d4rl = task.id.startswith("antmaze")
        assert task.action_scale == (0.2 if d4rl else 1.0)
        cells = [cell for row in task.env_kwargs["maze_map"] for cell in row]
        assert (cells.count("r"), cells.count("g")) == (1, 1)


def test_antmaze_maps_are_those_of_their_environments() -> None:
    pytest.importorskip("gymnasium_robotics")
    tasks.register_robotics()
    for task in known_tasks():
        if task.domain == "antmaze":
            theirs = np.array(gym.spec(task.env_id).kwargs["maze_map"], dtype=object) == 1
            np.testing.assert_array_equal(np.array(task.env_kwargs["maze_map"], dtype=object) == 1, theirs)


def test_own_task_is_registered_under_all_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    monkeypatch.setattr(tasks, "_NAMES", dict(tasks._NAMES))
    mine = Task(id="mine", env_id="Pendulum-v1", dataset_ids=("mine/data-v0",), aliases=("my-task",))
    register_task(mine)
    assert find_task("mine") is find_task("my-task") is find_task("mine/data-v0") is mine
    assert mine in known_tasks()
    with pytest.raises(EnvError, match="'my-task' already names task mine"):
        register_task(Task(id="other", env_id="Pendulum-v1", aliases=("my-task",)))


@pytest.mark.parametrize(
    ("field", "value"), [("domain", "atari"), ("ref_random", 1.0), ("action_scale", 0.0), ("max_episode_steps", 0)]
)
def test_task_field_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(EnvError, match=field):
        Task(**{"id": "x", "env_id": "y", field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("room", "forbidden"), [("envs", ("torch", "agents", "training", "data")), ("data", ("agents", "training"))]
)
def test_room_does_not_know_the_rooms_above(room: str, forbidden: tuple[str, ...]) -> None:
    folder = Path(tasks.__file__).parents[1] / room
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.removeprefix("o2o_smooth.").split(".")[0] not in forbidden, f"{file.name} imports {name}"


def test_robotics_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys; from o2o_smooth.envs import find_task, make_env; make_env(find_task('Pendulum-v1'))\n"
        "assert 'gymnasium_robotics' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
