"""A name in a file imports no module; the user's own --task may."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from o2o_smooth.cli import main, parse_run
from o2o_smooth.data.convert import task_of
from o2o_smooth.envs import find_task
from o2o_smooth.errors import DataError, EnvError

MODULE = """
from pathlib import Path
Path(__file__).with_name("canary").touch()
import gymnasium
gymnasium.register("Evil-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=200)
"""


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module that leaves a file behind when it is imported, which is the current one."""
    (tmp_path / "evil_module_of_this_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("evil_module_of_this_test", None)
    import gymnasium

    gymnasium.registry.pop("Evil-v0", None)


NAME = "evil_module_of_this_test:Evil-v0"


def test_only_a_task_that_the_user_names_is_imported(evil: Path) -> None:
    with pytest.raises(EnvError, match=f"would run its code: .*--task {NAME}"):
        find_task(NAME, imports=False)
    (evil / "t.toml").write_text(f'id = "innocent"\nenv_id = "{NAME}"\n')
    with pytest.raises(EnvError, match="would run its code"):
        find_task(str(evil / "t.toml"), imports=False)
    assert not (evil / "canary").exists()
    find_task(NAME)
    assert (evil / "canary").exists()
    assert find_task(NAME, imports=False).env_id == NAME  # it is there already


@pytest.mark.parametrize("where", ["settings", "task"])
def test_a_checkpoint_imports_nothing(evil: Path, victim: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = victim / "checkpoints" / "switch" / "run.json"
    content = json.loads(file.read_text())
    content["settings"]["task"] = NAME if where == "settings" else ""
    content["task"] = NAME
    file.write_text(json.dumps(content))
    for command in (["run", "--pretrained"], ["fork"], ["probe"], ["advise"]):
        rest = ["--arm", "jump"] if command == ["fork"] else []
        main([*command, str(victim), *rest])
        assert not (evil / "canary").exists(), f"{command[0]} imported it"
    assert "--task evil_module_of_this_test:Evil-v0" in capsys.readouterr().err
    config = parse_run(["--pretrained", str(victim), "--task", NAME])
    assert config.task == NAME and (evil / "canary").exists()


def test_a_dataset_imports_nothing(evil: Path) -> None:
    folder = evil / "set-v0"
    (folder / "data").mkdir(parents=True)
    for record in ({"o2o_smooth": {"task": NAME}}, {"env_spec": json.dumps({"id": NAME})}, {"dataset_id": NAME}):
        (folder / "data" / "metadata.json").write_text(json.dumps(record))
        assert task_of(str(folder)) is None
    run = evil / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps({"task": {"id": NAME}}))
    (run / "online").mkdir()
    assert task_of(str(run)) is None
    assert not (evil / "canary").exists()


@pytest.mark.parametrize(
    "name", ["../../etc/x-v0", "/etc/x-v0", "a/../../b-v0", "~/x-v0", "a//b-v0", "..-v0/x-v0", "a\0b-v0", "a\nb-v0"]
)
def test_dataset_ids_do_not_leave_the_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from o2o_smooth.data.minari_sets import can_be_written, from_minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError):
        from_minari(name)
    assert not can_be_written(name)
    assert main(["run", "--task", "hopper-medium-v2", "--dataset", name.replace("\0", "")]) == 2
