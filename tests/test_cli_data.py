"""The data commands, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from o2o_smooth.cli import main
from o2o_smooth.data import from_hdf5, from_minari, from_npz
from tests.shared import shared


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's datasets or waits for a network."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(episodes: int = 3, steps: int = 20) -> dict[str, NDArray[Any]]:
    """Pendulum-like rows in D4RL's layout; the first episode terminates, the others are cut."""
    rng = np.random.default_rng(0)
    n = episodes * steps
    last = np.arange(n) % steps == steps - 1
    states = rng.normal(size=(episodes, steps + 1, 3)).astype(np.float32)
    return {
        "observations": states[:, :-1].reshape(n, 3),
        "actions": rng.uniform(-1, 1, (n, 1)).astype(np.float32),
        "rewards": np.arange(n, dtype=np.float32),
        "terminals": last & (np.arange(n) < steps),
        "timeouts": last & (np.arange(n) >= steps),
        "next_observations": states[:, 1:].reshape(n, 3),
    }


def hdf5(path: Path, **changes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in {**rows(), **changes}.items():
            if array is not None:
                file[name] = array
    return path


def test_every_form_converts_to_every_other_and_back_to_the_same_arrays(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = from_hdf5([hdf5(folder / "a.hdf5")])
    assert main(["data", "convert", "a.hdf5", "--to", "mine/pendulum/test-v0", "--task", "Pendulum-v1"]) == 0
    assert main(["data", "convert", "mine/pendulum/test-v0", "--to", "b.npz"]) == 0
    assert main(["data", "convert", "b.npz", "--to", "c.hdf5"]) == 0
    assert capsys.readouterr().out.count("written: ") == 3
    forms = [from_minari("mine/pendulum/test-v0"), from_npz(Path("b.npz")), from_hdf5([Path("c.hdf5")])]
    assert {form.sha256 for form in forms} == {first.sha256}
    assert {form.provenance for form in forms} == {"own"}


def test_successor_that_is_not_the_next_row_is_a_cut_and_never_changed_in_silence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jump = rows()["next_observations"]
    jump[5] += 1.0
    hdf5(folder / "a.hdf5", next_observations=jump)
    read = from_hdf5([folder / "a.hdf5"])
    assert "1 steps without a flag, first row 5" in read.note
    assert read.transitions.truncated[5]
    np.testing.assert_array_equal(read.transitions.next_obs, jump)
    assert main(["data", "convert", "a.hdf5", "--to", "mine/pendulum/test-v0"]) == 0
    np.testing.assert_array_equal(from_minari("mine/pendulum/test-v0").transitions.next_obs, jump)


def test_npz_keeps_its_provenance(folder: Path) -> None:
    assert main(["data", "make", "--task", "Pendulum-v1", "--tier", "random", "--transitions", "300"]) == 0
    made = next(p.parent for p in (folder / "minari").glob("**/data")).relative_to(folder / "minari").as_posix()
    assert main(["data", "convert", made, "--to", "b.npz"]) == 0
    assert from_npz(Path("b.npz")).provenance == "generated"


def test_check_exits_0_on_a_sound_set_and_2_with_one_line_on_a_broken_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hdf5(folder / "good.hdf5")
    assert main(["data", "check", "good.hdf5", "--task", "Pendulum-v1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("sound: good.hdf5")
    assert "60 transitions, 3 episodes" in out
    assert "fits task Pendulum-v1" in out
    broken = rows()["observations"]
    broken[7, 1] = np.nan
    hdf5(folder / "nan.hdf5", observations=broken)
    (folder / "cut.hdf5").write_bytes((folder / "good.hdf5").read_bytes()[:3000])
    for name, words in (("nan.hdf5", "observations hold NaN or infinity in 1 of 60 rows, first in row 7"),
                        ("cut.hdf5", "broken or incomplete")):  # fmt: skip
        assert main(["data", "check", name]) == 2
        error = capsys.readouterr().err
        assert name in error
        assert words in error
        assert error.count("\n") == 1
    assert main(["data", "check", "good.hdf5", "--task", "hopper-medium-v2"]) == 2
    assert "does not fit the environment" in capsys.readouterr().err


def test_info_prints_statistics_and_draws_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hdf5(folder / "a.hdf5")
    assert main(["data", "info", "a.hdf5"]) == 0
    out = capsys.readouterr().out
    for words in ("60", "3 (1 terminated, 2 cut off)", "mean 590.00", "the user's own", "picture: a.png"):
        assert words in out
    with Image.open(folder / "a.png") as picture:
        assert picture.width > 800
        assert np.asarray(picture.convert("L")).std() > 10  # not blank
    assert main(["data", "info", "a.hdf5", "--picture", "sub/b.png"]) == 0
    assert (folder / "sub" / "b.png").is_file()
    assert main(["data", "info", "a.hdf5", "--no-picture"]) == 0
    assert {p.name for p in folder.glob("*.png")} == {"a.png"}


def test_info_of_a_maze_shows_where_the_data_went(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(shared("data/minari")))
    assert main(["data", "info", "generated/antmaze/umaze-v0"]) == 0
    out = capsys.readouterr().out
    assert "score, to the goal" in out
    with Image.open("generated-antmaze-umaze-v0.png") as picture:
        assert picture.width > 1300  # the third panel


def test_list_names_what_is_installed_and_what_is_broken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hdf5(folder / "a.hdf5")
    assert main(["data", "convert", "a.hdf5", "--to", "mine/pendulum/test-v0", "--task", "Pendulum-v1"]) == 0
    (folder / "minari" / "bad" / "set-v0" / "data").mkdir(parents=True)
    capsys.readouterr()
    assert main(["data", "list"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["bad/set-v0", "broken"]
    assert lines[1] == ["mine/pendulum/test-v0", "own", "60", "3", "Pendulum-v1"]


def test_what_is_there_is_not_written_over(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hdf5(folder / "a.hdf5")
    (folder / "b.hdf5").write_text("precious")
    assert main(["data", "convert", "a.hdf5", "--to", "b.hdf5"]) == 2
    assert "b.hdf5 exists" in capsys.readouterr().err
    assert (folder / "b.hdf5").read_text() == "precious"
    assert main(["data", "convert", "a.hdf5", "--to", "b.hdf5", "--overwrite"]) == 0
    assert from_hdf5([folder / "b.hdf5"]).transitions.obs.shape == (60, 3)
    for _ in range(2):
        code = main(["data", "convert", "a.hdf5", "--to", "mine/a-v0"])
    assert code == 2
    assert "installed already" in capsys.readouterr().err


def test_converted_file_keeps_its_provenance_and_task(folder: Path) -> None:
    hdf5(folder / "a.hdf5")
    assert main(["data", "convert", "a.hdf5", "--to", "o2o-smooth/x/test-v0", "--task", "Pendulum-v1"]) == 0
    metadata = json.loads((folder / "minari/o2o-smooth/x/test-v0/data/metadata.json").read_text())
    assert metadata["o2o_smooth"]["provenance"] == "own"  # not "generated", whatever the id says
    assert metadata["o2o_smooth"]["task"] == "Pendulum-v1"
    assert from_minari("o2o-smooth/x/test-v0").provenance == "own"


def test_d4rl_file_in_d4rls_folder_is_found_by_the_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mujoco")
    (folder / "d4rl").mkdir()
    n = 40
    rng = np.random.default_rng(0)
    hdf5(
        folder / "d4rl" / "hopper_medium-v2.hdf5",
        observations=rng.normal(size=(n, 11)).astype(np.float32),
        actions=rng.uniform(-1, 1, (n, 3)).astype(np.float32),
        rewards=np.ones(n, np.float32),
        terminals=np.zeros(n, np.bool_),
        timeouts=np.arange(n) % 20 == 19,
        next_observations=None,
    )
    small = ["--hidden-dims", "8", "--offline-updates", "4", "--online-steps", "0", "--batch-size", "8"]
    quick = ["--switch-episodes", "1", "--eval-envs", "1", "--offline-eval-every", "0"]
    assert main(["run", "--task", "hopper-medium-v2", *small, *quick, "--out", "run"]) == 0
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["dataset"]["provenance"] == "d4rl"
    assert manifest["dataset"]["transitions"] == 38  # the two cut-off ends have no successor
    assert "D4RL's file" in capsys.readouterr().err


def test_download_without_a_network_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "download", "D4RL/door/human-v2"]) == 2
    error = capsys.readouterr().err
    assert "cannot be downloaded" in error
    assert error.count("\n") == 1


def test_make_writes_a_dataset_that_check_finds_sound(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "Pendulum-v1", "--tier", "random", "--transitions", "400", "--num-envs", "2"]
    assert main(["data", "make", *arguments]) == 0
    made = capsys.readouterr().out.split()[1]
    assert made.startswith("o2o-smooth/")
    assert main(["data", "check", made, "--task", "Pendulum-v1"]) == 0
    assert "generated" in capsys.readouterr().out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    usage = capsys.readouterr().out
    for command in ("list", "info X", "check X", "download X", "convert X", "make", "--to"):
        assert command in usage
    assert max(map(len, usage.splitlines())) <= 120
    with pytest.raises(SystemExit):
        main(["data", "make", "--help"])
    text = capsys.readouterr().out
    assert "--train-steps" in text
    assert "examples:" in text


SMALL = """--hidden-dims 8 --offline-updates 4 --online-steps 40 --batch-size 8 --switch-episodes 1 --eval-episodes 1
    --eval-envs 1 --offline-eval-every 0 --eval-every 40 --log-every 20""".split()  # noqa: SIM905


def test_run_trains_on_what_another_run_collected_and_is_forked_from_another_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Path, task file and reward scale of the pretraining are found again by its forks."""
    hdf5(folder / "a.hdf5")
    (folder / "mine.toml").write_text('id = "mine"\nenv_id = "Pendulum-v1"\nmax_episode_steps = 20\n')
    assert main(["run", "--task", "mine.toml", "--dataset", "a.hdf5", *SMALL, "--out", "one"]) == 0
    assert main(["run", "--task", "mine.toml", "--dataset", "one", *SMALL, "--out", "two"]) == 0
    manifest = json.loads(Path("two/manifest.json").read_text())
    assert (manifest["dataset"]["provenance"], manifest["dataset"]["transitions"]) == ("generated", 40)
    assert manifest["task"]["max_episode_steps"] == 20
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    for name in ("one", "two"):
        arguments = ["run", "--pretrained", f"../{name}", "--online-steps", "40", "--schedule", "linear"]
        assert main([*arguments, "--out", f"fork-{name}"]) == 0
        fork = json.loads(Path(f"fork-{name}/manifest.json").read_text())
        assert (
            fork["dataset"]["sha256"] == json.loads((folder / name / "manifest.json").read_text())["dataset"]["sha256"]
        )
    capsys.readouterr()
    assert main([*arguments, "--provenance", "d4rl", "--out", "laundered"]) == 2
    assert "leave --provenance out" in capsys.readouterr().err
    assert main(["data", "info", "../two", "--no-picture"]) == 0
