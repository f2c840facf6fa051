"""A tracker that dies or falls silent never holds a run up."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.training.tracking import LocalFiles, Tracker, open_sinks
from o2o_smooth.training.tracking.timed import TimedSink
from tests.training.wandb_files import offline_wandb


class Silent:
    """Takes the first row and then nothing more until it is let."""

    def __init__(self) -> None:
        self.let, self.closed = threading.Event(), ""
        self.rows: list[int] = []

    def log(self, kind: str, row: Mapping[str, Any]) -> None:
        if row["env_steps"]:
            self.let.wait(60)
        self.rows.append(row["env_steps"])

    def close(self, status: str) -> None:
        self.let.wait(60)
        self.closed = status


def row(step: int) -> dict[str, Any]:
    return {"phase": "online", "env_steps": step, "updates": step, "seed": 0, "return_mean": 1.0, "score": 1.0}


def test_rows_come_in_order_and_the_end_waits_for_them() -> None:
    sink = Silent()
    sink.let.set()
    timed = TimedSink(sink)
    changing = row(0)
    for i in range(100):
        changing["env_steps"] = i
        timed.log("evaluation", changing)
    timed.close("completed")
    assert sink.rows == list(range(100))
    assert sink.closed == "completed"


def test_a_silent_sink_is_dropped_with_one_line_and_the_rows_are_in_the_files(tmp_path: Path) -> None:
    sink, notes = Silent(), list[str]()
    tracker = Tracker(LocalFiles(tmp_path), [TimedSink(sink, log_s=0.05)], warn=notes.append)
    for i in range(20):
        tracker.evaluation(row(i))
    tracker.close("completed")
    sink.let.set()
    assert len((tmp_path / "evaluations.jsonl").read_text().splitlines()) == 20
    (note,) = notes
    assert note.startswith("Silent is dropped, the run goes on with its local files: TimeoutError: no answer for 0.05")


def test_a_sink_that_never_ends_is_left_behind(tmp_path: Path) -> None:
    sink, notes = Silent(), list[str]()
    tracker = Tracker(LocalFiles(tmp_path), [TimedSink(sink, close_s=0.05)], warn=notes.append)
    tracker.evaluation(row(0))
    tracker.close("completed")
    sink.let.set()
    assert len(notes) == 1
    assert "no answer for 0.05 s" in notes[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")  # its process is gone, not waited for
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
def test_a_killed_wandb_costs_one_line(tmp_path: Path) -> None:
    """Its service process is killed as the system kills for memory."""
    notes: list[str] = []
    with offline_wandb(tmp_path):
        options: dict[str, Any] = {"name": "x", "config": {}, "seeds": [0], "wandb": True, "warn": notes.append}
        tracker = Tracker(LocalFiles(tmp_path / "run"), open_sinks(tmp_path / "run", **options), warn=notes.append)
        tracker.evaluation(row(0))
        killed = [pid for pid in children(os.getpid()) if "wandb-core" in commandline(pid)]
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        for i in range(1, 200):
            tracker.evaluation(row(i))
        tracker.close("completed")
        with contextlib.suppress(Exception):  # its own farewell to the service
            __import__("wandb").teardown()
        gc.collect()
    assert len(notes) == 1, notes
    assert notes[0].startswith("WandbSink is dropped, the run goes on with its local files: ")
    assert len((tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()) == 200


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def commandline(pid: int) -> str:
    return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
