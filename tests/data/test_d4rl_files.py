"""D4RL's package and folder: used where they are, never needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from o2o_smooth.data import d4rl_files
from o2o_smooth.data.d4rl_files import d4rl_file, download_with_d4rl, import_d4rl
from o2o_smooth.data.hdf5 import published_name
from o2o_smooth.envs import find_task
from o2o_smooth.errors import DataError


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, init: str, **modules: str) -> None:
    """A package of the name d4rl, first on the path."""
    (folder / "d4rl").mkdir()
    for name, text in {"__init__": init, "infos": "", **modules}.items():
        (folder / "d4rl" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for name in [name for name in sys.modules if name.split(".")[0] == "d4rl"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    "init", ["raise Exception('You appear to be missing MuJoCo')", "import no_such_module", "raise SystemExit(3)"]
)
def test_package_that_does_not_import_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package(tmp_path, monkeypatch, f"print('Warning: Flow failed to import')\n{init}")
    assert import_d4rl() is None
    with pytest.raises(DataError, match=r"put hopper_medium-v2\.hdf5 into"):
        download_with_d4rl(find_task("hopper-medium-v2"))
    assert capsys.readouterr().out == ""


def test_package_that_imports_fetches_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "datasets" / "hopper_medium-v2.hdf5"
    target.parent.mkdir()
    package(
        tmp_path,
        monkeypatch,
        "from d4rl import infos",
        infos="DATASET_URLS = {'hopper-medium-v2': 'http://x/hopper_medium-v2.hdf5'}",
        offline_env=(
            f"def download_dataset_from_url(url):\n    open({str(target)!r}, 'w').close()\n    return {str(target)!r}"
        ),
    )
    assert download_with_d4rl(find_task("hopper-medium-v2")) == target
    with pytest.raises(DataError, match="knows no address for walker2d-medium-v2"):
        download_with_d4rl(find_task("walker2d-medium-v2"))


def test_file_is_found_in_d4rls_folder_by_its_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(d4rl_files.FOLDER_VARIABLE, str(tmp_path))
    task = find_task("antmaze-umaze-v2")
    assert d4rl_file(task) is None
    name = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
    (tmp_path / name).touch()
    assert d4rl_file(task) == tmp_path / name


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("hopper-medium-replay-v2", "hopper_medium_replay-v2.hdf5"),
        ("pen-cloned-v1", "pen-cloned-v1.hdf5"),
        ("kitchen-mixed-v0", "kitchen_microwave_kettle_bottomburner_light-v0.hdf5"),
        ("D4RL/antmaze/umaze-v1", None),  # Minari's, recorded in another environment
        ("D4RL/pointmaze/umaze-v2", None),
        ("Hopper-v5", None),
    ],
)
def test_published_names(task: str, name: str | None) -> None:
    assert published_name(find_task(task)) == name
