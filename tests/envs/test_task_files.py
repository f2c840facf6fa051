"""A user's own tasks: rows in TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o_smooth.envs import find_task, known_tasks, make_env, tasks, tasks_from_toml
from o2o_smooth.errors import EnvError

ROW = """
id = "short-pendulum"
env_id = "Pendulum-v1"
max_episode_steps = 50
ref_random = -400
ref_expert = -30.5
ref_source = "measured by me"
dataset_ids = ["mine/pendulum/medium-v0"]
reward_scale = 0.1
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_single_row_is_a_task_by_its_file(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", ROW)
    task = find_task(str(file))
    assert (task.id, task.ref_random, task.dataset_ids) == ("short-pendulum", -400.0, ("mine/pendulum/medium-v0",))
    env = make_env(task)
    env.reset(seed=0)
    steps = 1
    while not env.step(env.action_space.sample())[3]:
        steps += 1
    assert steps == 50


def test_file_of_several_tasks_names_them(tmp_path: Path) -> None:
    rows = "".join(f'[[task]]\nid = "task-{i}"\nenv_id = "Pendulum-v1"\n' for i in (1, 2))
    file = write(tmp_path / "mine.toml", rows)
    assert find_task(f"{file}#task-2").id == "task-2"
    with pytest.raises(EnvError, match=r"#task-1.*#task-2"):
        find_task(str(file))
    with pytest.raises(EnvError, match="no task 'task-3'"):
        find_task(f"{file}#task-3")


def test_files_of_the_environment_variable_are_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_TASKS", "_NAMES", "_DATASETS"):
        monkeypatch.setattr(tasks, table, dict(getattr(tasks, table)))
    monkeypatch.setattr(tasks, "_FILES", set())
    monkeypatch.setenv("O2O_SMOOTH_TASKS", str(write(tmp_path / "mine.toml", ROW)))
    assert find_task("short-pendulum").ref_expert == -30.5
    assert find_task("mine/pendulum/medium-v0").id == "short-pendulum"
    assert known_tasks()[-1].id == "short-pendulum"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('id = "x"', "lacks 'env_id'"),
        ('id = "x"\nenv_id = "Pendulum-v1"\nref_randm = 1', "did you mean ref_random"),
        ('id = "x"\nenv_id = "Pendulum-v1"\nmax_episode_steps = "many"', "max_episode_steps must be an integer"),
        ('id = "x"\nenv_id = "Pendulum-v1"\nref_random = true\nref_expert = 1', "ref_random must be a number"),
        ('id = "x"\nenv_id = "Pendulum-v1"\naliases = [1]', "aliases must be a list of strings"),
        ('id = "x"\nenv_id = "Pendulum-v1"\nref_random = 1.0', "come together"),
        ('id = "x"\nenv_id = "Pendulum-v1"\ncompat = "atari"', "expected adroit or kitchen"),
        ("id = ", "cannot be read"),
        ("task = 3", "must be a table"),
        ("task = []", "holds no"),
    ],
)
def test_bad_row_is_one_line_with_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "mine.toml", text)
    with pytest.raises(EnvError, match=said) as error:
        tasks_from_toml(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="does not exist"):
        find_task(str(tmp_path / "none.toml"))
