"""A disk that is really full, and one that is really read-only: a small tmpfs of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.storage import load_agent, save_agent
from o2o_smooth.cli import main
from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.data.corridor_sets import make_corridor_dataset
from o2o_smooth.data.hdf5 import write_hdf5
from o2o_smooth.data.replay_files import Replay
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError, O2OError
from o2o_smooth.training.advice import write_advice
from o2o_smooth.training.config import CheckpointConfig
from o2o_smooth.training.keeping import Keeper, read_newest
from o2o_smooth.training.pictures import draw_run
from o2o_smooth.training.prepare import prepare
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.resume import resume
from o2o_smooth.training.run import run
from o2o_smooth.training.tracking import LocalFiles
from tests.training.test_pictures import fake_run
from tests.training.test_rollback import config as rollback_config

OPENED: list[LocalFiles] = []  # closed when the disk goes
FULL = r"the disk is full; free some space \(df -h .*\) or choose another folder"


def mounted(place: Path, *options: str) -> None:
    """Mount a tmpfs, or skip where that is not allowed."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except OSError as error:
        pytest.skip(f"there is no mount command: {error}")
    if done.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here (needs root): {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two MiB."""
    place = tmp_path / "disk"
    mounted(place, "-o", "size=2m")
    try:
        yield place
    finally:
        while OPENED:
            OPENED.pop().close("failed")
        subprocess.run(["umount", "-l", str(place)], check=False, timeout=20)


def fill(disk: Path, leave: int = 0) -> Path:
    """Take all of a disk but so many bytes."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        size = max(0, shutil.disk_usage(disk).free - leave)
        file.write(b"\0" * size)
    return filler


def transitions(n: int = 4000) -> Transitions:
    rng = np.random.default_rng(0)
    return Transitions(
        rng.normal(size=(n, 3)).astype(np.float32),
        rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        rng.normal(size=n).astype(np.float32),
        rng.normal(size=(n, 3)).astype(np.float32),
        np.zeros(n, bool),
        np.arange(n) % 100 == 99,
    )


def agent() -> Any:
    cls = AGENTS["td3"]
    box = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    return cls(box, box, cls.config_class(hidden_dims=(32, 32)))


def opened(folder: Path) -> LocalFiles:
    OPENED.append(LocalFiles(folder))
    return OPENED[-1]


def rows_of(folder: Path, kind: str) -> Callable[[], Any]:
    files = opened(folder)
    row = {"text": "x" * 3000}

    def write() -> None:
        for _ in range(3):
            files.log(kind, row)

    return write


def checkpoint(folder: Path) -> Callable[[], Any]:
    keeper = Keeper(folder / "resume", CheckpointConfig())
    buffer = ReplayBuffer(1, 1000, 3, 2)
    t = transitions(1000)
    buffer.add(pack(t.obs, t.action, t.reward, t.next_obs, t.terminated, t.truncated)[None])
    return lambda: keeper.write({"phase": "online", "x": np.zeros(100)}, {}, Replay(buffer, 1000, 0))


def command(*arguments: str) -> Callable[[], Any]:
    """A command, whose one line is the error."""

    def call() -> None:
        if main(list(arguments)) != 0:
            raise O2OError("the line is on stderr")

    return call


def without_metrics(folder: Path) -> Path:
    (folder / "metrics.jsonl").unlink()
    return folder


def corridor_set(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        make_corridor_dataset(find_task("corridor-mixed-v0"), transitions=2000)


WRITERS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "evaluations.jsonl": lambda folder: rows_of(folder, "evaluation"),
    "metrics.jsonl": lambda folder: rows_of(folder, "metrics"),
    "audit.jsonl": lambda folder: rows_of(folder, "audit"),
    "manifest.json": lambda folder: (lambda files: lambda: files.write_manifest({"x": "y" * 9000}))(opened(folder)),
    "switch": lambda folder: (lambda one: lambda: save_agent(one, folder / "switch"))(agent()),
    "resume": checkpoint,
    "stability.png": lambda folder: (lambda made: lambda: draw_run(made))(fake_run(folder / "run", None)),
    "data.hdf5": lambda folder: lambda: write_hdf5(folder / "data.hdf5", transitions(), {}),
    "o2o-smooth/corridor": lambda folder: lambda: corridor_set(folder),
    "advice.json": lambda folder: lambda: write_advice(folder, {"x": "y" * 9000}),
    "report": lambda folder: (
        lambda made: command("report", str(made), "--out", str(folder / "report"))
    )(without_metrics(fake_run(folder / "run", None))),
    "comparison.png": lambda folder: (
        lambda made: command("compare", str(made), "--out", str(folder / "comparison.png"))
    )(fake_run(folder / "run", None)),
}  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_says_what_is_full_and_leaves_nothing_half_written(
    name: str, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = disk / "folder"
    folder.mkdir()
    write = WRITERS[name](folder)
    filler = fill(disk, leave=4096)
    before = tree(folder)
    with pytest.raises(O2OError) as caught:
        write()
    text = str(caught.value) if "on stderr" not in str(caught.value) else capsys.readouterr().err
    assert "disk is full" in text
    assert name in text
    after = tree(folder)
    assert {k: v for k, v in after.items() if k in before and not k.endswith(".jsonl")} == {
        k: v for k, v in before.items() if not k.endswith(".jsonl")
    }
    assert not [path for path in after if ".tmp" in path or Path(path).name.startswith(".o2o")]
    for path, content in after.items():
        if path.endswith(".jsonl"):  # whole rows, or none
            assert content == b"" or content.endswith(b"}\n")
            assert all(json.loads(line) for line in content.splitlines())
    filler.unlink()
    write()


def test_the_last_good_checkpoint_stays_usable(disk: Path) -> None:
    (disk / "folder").mkdir()
    write = checkpoint(disk / "folder")
    write()
    one = agent()
    save_agent(one, disk / "agent")
    fill(disk, leave=20_000)
    for attempt in (write, lambda: save_agent(one, disk / "agent")):
        with pytest.raises(O2OError, match=FULL):
            attempt()
    kept = read_newest(disk / "folder" / "resume", pytest.fail)
    assert kept is not None
    assert kept.serial == 1
    again = load_agent(disk / "agent")
    assert all(torch.equal(a, b) for a, b in zip(again.networks.parameters(), one.networks.parameters(), strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    t = transitions(2000)
    np.savez(
        path,
        observations=t.obs,
        actions=t.action[:, :1],
        rewards=t.reward,
        next_observations=t.next_obs,
        terminated=t.terminated,
        truncated=t.truncated,
    )
    return path


@pytest.mark.parametrize("room", [20_000, 120_000])
def test_a_run_on_a_disk_that_fills_up_ends_in_words_and_goes_on_when_there_is_room(
    room: int, data: Path, disk: Path, tmp_path: Path
) -> None:
    whole = run(rollback_config(data, tmp_path / "whole"))
    out = disk / "run"
    filler = fill(disk, leave=room)
    with pytest.raises(O2OError, match=rf"({disk}.* (be written|write)|cannot write {disk}.*): {FULL}"):
        run(rollback_config(data, out))
    for line in (out / "evaluations.jsonl").read_text().splitlines():
        json.loads(line)
    with pytest.raises(O2OError, match="disk is full"):  # it still is
        resume(out)
    filler.unlink()
    resume(out)
    assert (out / "evaluations.jsonl").read_bytes() == (whole / "evaluations.jsonl").read_bytes()
    assert json.loads((out / "manifest.json").read_text())["status"] == "completed"


def test_a_read_only_folder_is_refused_before_anything_is_loaded(data: Path, tmp_path: Path) -> None:
    place = tmp_path / "fixed"
    mounted(place, "-o", "ro,size=1m")
    try:
        with pytest.raises(ConfigError, match=r"fixed/run cannot be written: .*fixed is read-only; choose another"):
            prepare(rollback_config(data.with_name("not there.npz"), place / "run"), Silent())
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False, timeout=20)


def test_a_folder_of_somebody_else_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access

    def access(path: Any, mode: int, **more: Any) -> bool:  # permissions mean nothing to root
        return False if Path(path) == tmp_path else real(path, mode, **more)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(ConfigError, match=r"cannot be written: this user may not write to .*; change its permissions"):
        prepare(rollback_config(data, tmp_path / "run"), Silent())
    assert not (tmp_path / "run").exists()


def test_too_little_room_is_said_before_training(data: Path, disk: Path) -> None:
    notes: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    fill(disk, leave=500_000)
    prepare(rollback_config(data, disk / "run"), Listener())
    assert [n for n in notes if n.startswith("warning: the run will write about") and "KiB" not in n], notes
    notes.clear()
    (disk / "filler").unlink()
    prepare(rollback_config(data, disk.parent / "run"), Listener())
    assert not [n for n in notes if n.startswith("warning: the run")]
