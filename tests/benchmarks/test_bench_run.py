"""Real studies of seconds: what is killed, what fails, what is stopped, and what is never done twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks.study import Study
from o2o_smooth.cli import main
from tests.benchmarks.study_cases import TEXT, dataset

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="a keeper forks")]
PATIENCE_S = 200.0


@dataclass
class Made:
    """A study that was made once for all tests."""

    root: Path
    suite: Path
    out: Path
    killed: list[str]
    code: int


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _kill_once(out: Path, killed: list[str], stop: threading.Event) -> None:
    """Kill the worker of the first job with arms as soon as it says that it is at work."""
    while not stop.wait(0.01):
        for file in out.glob("jobs/arms-*/state.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                state = _json(file)
                if state["attempt"] == 1:
                    os.kill(int(state["pid"]), signal.SIGKILL)
                    killed.append(file.parent.name)
                    return


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One task whose job with arms is killed once, one task whose data are not there."""
    root = tmp_path_factory.mktemp("bench")
    suite, out, killed = root / "tiny.toml", root / "study", list[str]()
    dataset(root)
    bad = '[[tasks]]\ntask = "corridor-narrow-v0"\ndataset = "./not-there.npz"\n\n[[agents]]'
    suite.write_text(TEXT.replace("DATA", "rows.npz").replace("[[agents]]", bad, 1), encoding="utf-8")
    stop = threading.Event()
    thread = threading.Thread(target=_kill_once, args=(out, killed, stop))
    thread.start()
    try:
        code = main(["bench", str(suite), "--out", str(out), "--cache", str(root / "cache"), "--workers", "2"])
    finally:
        stop.set()
        thread.join()
    return Made(root, suite, out, killed, code)


def test_a_killed_job_starts_again_and_ends_once(made: Made) -> None:
    assert len(made.killed) == 1
    done = _json(made.out / "jobs" / made.killed[0] / "done.json")
    assert done["attempt"] == 2
    for folder in done["runs"]:
        manifest = _json(made.out / folder / "manifest.json")
        assert manifest["status"] == "completed" and manifest["seeds"] == [0, 1]
        lines = (made.out / folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        points = [(row["seed"], row["phase"], row["env_steps"]) for row in rows]
        assert len(points) == len(set(points)) == 2 * 3  # the switch, 60 and 90 steps
    text = (made.out / "jobs" / made.killed[0] / "log.txt").read_text(encoding="utf-8")
    assert "attempt 1" in text and "attempt 2" in text


def test_a_failure_leaves_the_others_going_and_is_told(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert made.code == 1
    study = Study.read(made.out)
    states = {job.id: study.progress(job.id).state for job in study.jobs.values()}
    assert sorted(states.values()) == ["done", "done", "failed", "waiting", "waiting"]  # data, pretraining, arms
    failed = next(job for job, state in states.items() if state == "failed")
    assert study.blocked() == {job: failed for job, state in states.items() if state == "waiting"}
    assert main(["bench", "status", str(made.out)]) == 0
    assert f"{failed}\tfailed\t\t" in capsys.readouterr().out
    assert main(["bench", "logs", str(made.out)]) == 0
    assert "not-there.npz" in capsys.readouterr().out


def test_the_study_says_what_is_paired(made: Made) -> None:
    content = _json(made.out / "study.json")
    runs = {(run["task"], run["arm"]): run for run in content["runs"]}
    jump, linear = runs["corridor-mixed-v0", "jump"], runs["corridor-mixed-v0", "linear, mixed"]
    assert jump["pretraining"] == linear["pretraining"] and jump["seeds"] == [0, 1]
    pretrained = made.out / "pretrained" / jump["pretraining"]
    assert (pretrained / "seed-1" / "pretraining.json").is_file()
    assert jump["settings"] == {"schedule": "jump", "regime": "mixed"} and content["suite"] == "tiny"
    assert content["command"].startswith("o2o-smooth bench") and "torch" in content["versions"]
    first = [row["score"] for row in map(json.loads, _switch(made.out / jump["folder"]))]
    assert first == [row["score"] for row in map(json.loads, _switch(made.out / linear["folder"]))]


def _switch(folder: Path) -> list[str]:
    lines = (folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if '"switch"' in line]


def test_ctrl_c_stops_everything_and_the_command_on_the_screen_goes_on(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second study has what the first has and an arm more; its pretrainings are the first's."""
    suite, out = made.root / "more.toml", made.root / "second"
    text = made.suite.read_text(encoding="utf-8")
    text = text.replace("corridor-narrow-v0", "corridor-medium-v0").replace("./not-there.npz", "rows.npz")
    suite.write_text(text + '[[arms]]\nname = "stay"\nschedule = "stay"\n', encoding="utf-8")
    command = [sys.executable, "-m", "o2o_smooth", "bench"]
    options = ["--cache", str(made.root / "cache"), "--workers", "1"]
    with subprocess.Popen(
        [*command, str(suite), "--out", str(out), *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not list(out.glob("jobs/*/state.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 130, text
    assert f"o2o-smooth bench resume {out} --workers 1 --cache {made.root / 'cache'}" in text
    study = Study.read(out)
    assert all(study.progress(job).state != "running" for job in study.jobs)
    assert main(["bench", "resume", str(out), *options]) == 0
    assert f"{len(study.jobs)} of {len(study.jobs)} jobs done" in capsys.readouterr().out
    shared = [job for job in study.jobs.values() if job.kind == "pretrain" and "corridor-mixed" in job.id]
    content = [_json(study.job_folder(job.id) / "done.json") for job in shared]
    assert [seed for c in content for seed in c["cached"]] == [0, 1] and not any(c["trained"] for c in content)
    for arm in ("jump", "linear-mixed"):
        folder = Path("runs") / "corridor-mixed-v0" / "td3_bc" / arm / "evaluations.jsonl"
        assert (out / folder).read_bytes() == (made.out / folder).read_bytes()
    finished = {file: file.stat().st_mtime_ns for file in out.glob("jobs/*/done.json")}
    assert main(["bench", str(suite), "--out", str(out), *options]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.glob("jobs/*/done.json")} == finished
