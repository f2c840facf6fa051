"""A job's worker: what it shares, what it skips, and what an arm's failure costs the others."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from o2o_smooth.agents.storage import read_json, read_tensors
from o2o_smooth.benchmarks.cells import make_cells
from o2o_smooth.benchmarks.opening import open_study
from o2o_smooth.benchmarks.study import Study
from o2o_smooth.benchmarks.worker import work
from o2o_smooth.data import sources
from o2o_smooth.errors import CheckpointError
from o2o_smooth.training.keeping import read_newest
from o2o_smooth.training.output import Diverged, Output
from tests.benchmarks.study_cases import TEXT, dataset, suite

pytestmark = pytest.mark.slow
DIVERGES = '[[arms]]\nname = "diverges"\nschedule = "stay"\nregime = "mixed"\n'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("O2O_SMOOTH_CACHE", str(tmp_path / "cache"))
    before, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, before)
    torch.set_num_threads(threads)


def _study(folder: Path, text: str) -> Study:
    found = suite(text, data=dataset(folder.parent))
    return open_study(folder, found, make_cells(found), "a command", workers=1)[0]


def _work(study: Study, kind: str) -> list[tuple[int, dict[str, Any]]]:
    ended = []
    for job in study.jobs.values():
        if job.kind == kind:
            code = work(study.job_folder(job.id))
            ended.append((code, dict(study.progress(job.id).content)))
    return ended


def _status(study: Study) -> dict[str, str]:
    files = {run.arm: study.folder / run.folder / "manifest.json" for run in study.runs}
    return {arm: json.loads(file.read_text(encoding="utf-8"))["status"] for arm, file in files.items()}


def test_an_arm_that_diverges_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Output.metrics

    def diverging(self: Output, phase: str, env_steps: int, *rest: Any) -> None:
        metrics(self, phase, env_steps, *rest)
        if self.label == "diverges: " and env_steps > 64:
            raise Diverged("training diverged: critic/loss of seed 1 is nan")

    monkeypatch.setattr(Output, "metrics", diverging)
    study = _study(tmp_path / "study", TEXT + DIVERGES)
    ((code, _),) = _work(study, "pretrain")
    assert code == 0
    ((code, content),) = _work(study, "arms")
    assert code == 1 and list(content["runs"]) == ["runs/corridor-mixed-v0/td3_bc/diverges"]
    assert "1 of 3 runs failed, the others are done" in content["error"] and "diverged" in content["error"]
    assert _status(study) == {"jump": "completed", "linear, mixed": "completed", "diverges": "failed"}
    assert _work(study, "arms")[0][0] == 1  # told again, not tried again


def test_a_pretraining_reads_its_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look into the cache it has to; the run then takes what was read, and nothing is left lying about."""
    reads: list[Path] = []
    read = sources.read_path

    def counted(path: Path, *rest: Any, **named: Any) -> sources.Dataset:
        reads.append(path)
        return read(path, *rest, **named)

    monkeypatch.setattr(sources, "read_path", counted)
    for name in ("first", "second"):  # trained, and from the cache
        _work(_study(tmp_path / name, TEXT), "pretrain")
    assert len(reads) == 2 and not sources._ahead


def test_seeds_of_a_pretraining_are_found_one_by_one_and_put_together(tmp_path: Path) -> None:
    """A second study with a seed more trains that one alone; what is put together is what was trained together."""
    first = _study(tmp_path / "first", TEXT)
    ((_, content),) = _work(first, "pretrain")
    assert content["trained"] == [0, 1] and content["cached"] == []
    second = _study(tmp_path / "second", TEXT.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    ((_, more),) = _work(second, "pretrain")
    assert more["trained"] == [2] and more["cached"] == [0, 1] and more["pretraining"] == content["pretraining"]
    assert more["seeds"]["1"] == content["seeds"]["1"]
    _work(first, "arms")
    run = first.job_folder(next(job.id for job in first.jobs.values() if job.kind == "pretrain")) / "run"
    trained = run / "checkpoints" / "switch"
    together = first.folder / "pretrained" / content["pretraining"] / "seeds-0-1"
    mine, theirs = read_tensors(together / "agent.safetensors"), read_tensors(trained / "agent.safetensors")
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    for file in ("agent.json", "run.json"):
        assert read_json(together / file) == read_json(trained / file)


def test_a_broken_entry_of_the_cache_is_trained_again(tmp_path: Path) -> None:
    first = _study(tmp_path / "first", TEXT)
    ((_, content),) = _work(first, "pretrain")
    file = tmp_path / "cache" / "pretrained" / content["seeds"]["1"] / "agent.safetensors"
    file.unlink()
    file.write_bytes(b"nothing")
    ((code, again),) = _work(_study(tmp_path / "second", TEXT), "pretrain")
    assert code == 0 and again["trained"] == [1] and again["cached"] == [0]


def test_a_worker_asked_to_stop_ends_with_75_and_goes_on_later(tmp_path: Path) -> None:
    study = _study(tmp_path / "study", TEXT.replace("offline_updates = 4", "offline_updates = 100000"))
    job = next(job for job in study.jobs.values() if job.kind == "pretrain")
    folder = study.job_folder(job.id)
    command = [sys.executable, "-m", "o2o_smooth.benchmarks.worker", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "offline:" in line:
                break
        process.terminate()
        rest = process.stdout.read()
        assert process.wait(60.0) == 75, rest
    assert not (folder / "done.json").exists() and not (folder / "failed.json").exists()
    assert not (folder / "lock").exists() and study.progress(job.id).state == "broken"
    assert read_json(folder / "state.json")["state"] == "interrupted"


def test_a_worker_killed_in_fine_tuning_goes_on_from_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And comes to what an undisturbed one comes to."""
    text = TEXT.replace("online_steps = 90", "online_steps = 600").replace("eval_every = 60", "eval_every = 200")
    text = text.replace("[protocol]", "[protocol]\ncheckpoint_every = 0.1")
    killed, whole = _study(tmp_path / "killed", text), _study(tmp_path / "whole", text)
    for study in (killed, whole):
        _work(study, "pretrain")
    (job,) = [job for job in killed.jobs.values() if job.kind == "arms"]
    kept = killed.folder / job.folders[0] / "resume"
    command = [sys.executable, "-m", "o2o_smooth.benchmarks.worker", str(killed.job_folder(job.id))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 100.0
        while not _online_steps(kept):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    capsys.readouterr()
    assert [code for study in (killed, whole) for code, _ in _work(study, "arms")] == [0, 0]
    told = re.search(r"goes on from fine-tuning, [0-9,]+ updates and ([0-9,]+) online steps", capsys.readouterr().out)
    assert told is not None and 0 < int(told[1].replace(",", "")) < 600
    assert killed.progress(job.id).content["attempt"] == 2
    for folder in job.folders:
        mine, theirs = (study.folder / folder / "evaluations.jsonl" for study in (killed, whole))
        assert mine.read_bytes() == theirs.read_bytes()


def _online_steps(kept: Path) -> int:
    """Of the newest checkpoint that is whole."""
    with contextlib.suppress(CheckpointError, KeyError):  # being replaced; not online yet
        found = read_newest(kept, lambda _: None)
        return 0 if found is None else int(found.state["at"]["env_steps"])
    return 0
