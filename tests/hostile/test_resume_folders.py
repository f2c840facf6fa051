"""Stopped runs whose folders were made to harm whoever goes on with them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.agents.storage import CHECKSUMS
from o2o_smooth.cli import main
from o2o_smooth.errors import CheckpointError
from o2o_smooth.files import describe_file
from o2o_smooth.training import continued
from o2o_smooth.training.keeping import serials
from o2o_smooth.training.population import run_population
from o2o_smooth.training.resume import resume, resume_command
from o2o_smooth.training.run import run
from o2o_smooth.training.stopping import Interrupted
from tests.hostile.attacks import pendulum, small
from tests.training.stopped_runs import StopAt

MODULE = """
from pathlib import Path
Path(__file__).with_name("canary").touch()
import gymnasium
gymnasium.register("Evil-v1", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=200)
"""
NAME = "evil_module_of_a_stopped_run:Evil-v1"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped run, and two that share a learner."""
    folder = tmp_path_factory.mktemp("begun")
    data = pendulum(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continued, "StopRequest", StopAt)
        patch.setattr(StopAt, "limit", 40)
        with pytest.raises(Interrupted):
            run(small(data, folder / "alone"))
        with pytest.raises(Interrupted):
            run_population([small(data, folder / name) for name in ("a", "b")])
    return folder


@pytest.fixture
def stopped(begun: Path, tmp_path: Path) -> Path:
    """The same in a copy."""
    return Path(shutil.copytree(begun, tmp_path / "begun"))


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file that the runs have nothing to do with."""
    file = tmp_path / "precious"
    file.write_text("mine\n")
    return file


def edit(file: Path, change: Any) -> None:
    """Change a JSON file."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "evil_module_of_a_stopped_run.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop(NAME.partition(":")[0], None)
    import gymnasium

    gymnasium.registry.pop("Evil-v1", None)


def test_a_stopped_run_imports_nothing_that_the_user_does_not_name(
    evil: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def name_it(content: Any) -> None:
        content["runs"][0]["config"]["task"] = NAME
        content["task"]["env_id"] = NAME

    out = stopped / "alone"
    edit(out / "resume" / "run.json", name_it)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["resume", str(out)]) == 2
    told = capsys.readouterr().err
    assert f"--task {NAME}" in told and told.count("\n") == 1
    assert not (evil / "canary").exists()
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert resume_command(out) == f"o2o-smooth resume {out} --task {NAME}"
    assert main(["resume", str(out), "--task", NAME]) == 2  # now it is the task that is another one
    assert (evil / "canary").exists()
    assert "no longer what it was" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["evaluations.jsonl", "manifest.json", "env_faults.log", "resume/lock", "faults/x"])
def test_nothing_is_written_through_a_link(stopped: Path, precious: Path, name: str) -> None:
    link = stopped / "alone" / name
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(precious)
    with pytest.raises(CheckpointError, match=f"{link.name} is a link out of"):
        resume(stopped / "alone")
    assert precious.read_text() == "mine\n"


@pytest.mark.parametrize("name", ["resume", "checkpoints", "online", "faults"])
def test_no_folder_is_replaced_through_a_link(stopped: Path, tmp_path: Path, name: str) -> None:
    out, there = stopped / "alone", tmp_path / "there"
    if (out / name).exists():
        (out / name).rename(there)
    else:
        there.mkdir()
    (out / name).symlink_to(there)
    with pytest.raises(CheckpointError, match=f"{name} is a link out of"):
        resume(out)


def test_links_of_a_tracker_are_its_own_business(stopped: Path, precious: Path) -> None:
    (stopped / "alone" / "wandb").mkdir()
    (stopped / "alone" / "wandb" / "debug.log").symlink_to(precious)
    resume(stopped / "alone")
    assert precious.read_text() == "mine\n"


def test_a_folder_that_does_not_know_of_it_is_left_alone(stopped: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(stopped / "alone", other)
    shutil.rmtree(other / "resume")
    (other / "evaluations.jsonl").write_text("mine\n")

    def name_it(content: Any) -> None:
        content["runs"][1]["folder"] = str(other)

    home = stopped / "a"
    edit(home / "resume" / "run.json", name_it)
    with pytest.raises(CheckpointError, match=f"names {other}, which does not know"):
        resume(home)
    shutil.copytree(stopped / "alone" / "resume", other / "resume")  # a run of its own
    with pytest.raises(CheckpointError, match=f"names {other}, which does not know"):
        resume(home)
    assert (other / "evaluations.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("outputs"),
        lambda state: state.update(outputs=[{"positions": {"../../x": 1}}]),
        lambda state: state.update(outputs=[{"positions": 3}]),
        lambda state: state.update(outputs=7),
    ],
)
def test_a_state_that_was_edited_with_its_checksums_is_refused(stopped: Path, change: Any) -> None:
    out = stopped / "alone"
    for serial in serials(out / "resume"):
        folder = out / "resume" / f"{serial:06d}"
        edit(folder / "state.json", change)
        edit(
            folder / CHECKSUMS,
            lambda sums, folder=folder: sums["files"].update({"state.json": describe_file(folder / "state.json")}),
        )
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used"):
        resume(out)
