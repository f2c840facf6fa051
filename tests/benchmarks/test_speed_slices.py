"""Slices: the line protocol, who else used the CPU, and what is kept of what was timed."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks.speed_slices import CpuWatch, Slices, SpeedError, Worker, build, interleave
from o2o_smooth.benchmarks.speed_worker import SMALLEST_SLICE, Bench, load, serve

TARGET = """
import os, sys
made = []
def make(configuration):
    if "refuse" in configuration:
        raise ValueError(configuration["refuse"])
    if "die" in configuration:
        print("first line", file=sys.stderr)
        print("out of luck", file=sys.stderr)
        sys.stderr.flush()
        os._exit(7)
    print("a library that talks")
    block = configuration["block"]
    def advance(n):
        return -(-n // block) * block
    return advance
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "target.py"
    path.write_text(TARGET)
    return str(path)


def test_requests_are_answered_line_by_line(target: str) -> None:
    requests = [
        {"do": "build", "name": "a", "configuration": {"block": 4}},
        {"do": "slice", "name": "a", "seconds": 1e-9},
        {"do": "build", "name": "b", "configuration": {"refuse": "no such agent"}},
        {"do": "slice", "name": "b", "seconds": 1e-9},
        {"do": "drop", "name": "a"},
        {"do": "slice", "name": "a", "seconds": 1e-9},
        {"do": "sing", "name": "a"},
    ]
    answers = io.StringIO()
    serve(load(target), io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), answers)
    got = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(got) == len(requests)
    assert set(got[0]) == {"first_update_s"}
    assert got[1]["updates"] >= 4
    assert got[1]["updates"] % 4 == 0
    assert got[2] == {"error": "ValueError: no such agent"}
    assert "error" in got[3]
    assert got[4] == {}
    assert "error" in got[5]
    assert got[6] == {"error": "ValueError: there is no request 'sing'"}


def test_a_slice_is_never_below_the_smallest() -> None:
    asked: list[int] = []

    def advance(n: int) -> int:
        asked.append(n)
        return n

    bench = Bench(lambda configuration: advance)
    bench.build("a", {})
    bench._rate["a"] = 1e-9
    asked.clear()
    assert bench.slice("a", 1e-9)["updates"] == sum(asked[1:])  # the first warms up
    assert min(asked) == SMALLEST_SLICE and len(asked) > 1


def test_a_worker_is_a_process_whose_library_may_print(target: str) -> None:
    with Worker(target, threads=1) as worker:
        slices = build(worker, "a", {"block": 3})
        assert slices.first_update_s >= 0
        assert worker.ask({"do": "slice", "name": "a", "seconds": 1e-9})["updates"] % 3 == 0
        with pytest.raises(SpeedError, match="ValueError: wrong size"):
            build(worker, "b", {"refuse": "wrong size"})
        assert worker.ask({"do": "slice", "name": "a", "seconds": 1e-9})["updates"] > 0  # the others go on


def test_a_worker_that_dies_says_why(target: str) -> None:
    with Worker(target, threads=1) as worker, pytest.raises(SpeedError, match="code 7: out of luck"):
        build(worker, "a", {"die": True})


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(SpeedError, match="cannot be started"):
        Worker("x.py", threads=1, python=str(tmp_path / "no-python"))
    with pytest.raises(SpeedError, match=r"ended with code 1: .*absent_module"):
        Worker("absent_module", threads=1, python=sys.executable)


def stat(folder: Path, machine: str, processes: Mapping[int, tuple[int, int, str]]) -> Path:
    """A process file system: the machine's line, and for each process its parent, its ticks and its name."""
    folder.mkdir(exist_ok=True)
    (folder / "stat").write_text(f"cpu  {machine}\ncpu0 1 2 3\n")
    for pid, (parent, ticks, name) in processes.items():
        (folder / str(pid)).mkdir(exist_ok=True)
        line = f"{pid} ({name}) S {parent} 1 1 0 -1 0 0 0 0 0 {ticks} 1 2 3 20 0\n"
        (folder / str(pid) / "stat").write_text(line)
    return folder


def test_the_cpu_time_of_others_is_the_machines_without_ours(tmp_path: Path) -> None:
    me = os.getpid()
    odd = "a ) S (b"  # a process may be called anything
    family = {me: (1, 100, "me"), 70001: (me, 10, odd), 70002: (70001, 20, "grandchild"), 70003: (1, 999, "other")}
    watch = CpuWatch(stat(tmp_path / "proc", "1000 20 30 5000 700 4 5 6 0 0", family))
    assert watch.works
    # user nice system irq softirq steal; ours with 1 + 2 + 3 ticks each of system time and ended children
    ours = 100 + 10 + 20 + 3 * (1 + 2 + 3)
    assert watch.others() == pytest.approx((1000 + 20 + 30 + 4 + 5 + 6 - ours) * watch.tick_s)


def test_what_is_spoiled(tmp_path: Path) -> None:
    watch = CpuWatch(stat(tmp_path / "proc", "1 1 1 1 1 1 1 1", {}))
    assert watch.spoiled(5.0, 5.05, 1.0) is None
    assert watch.spoiled(5.0, 5.5, 1.0) == pytest.approx(0.5)
    assert watch.spoiled(5.0, 5.0 + 2.5 * watch.tick_s, 0.01) is None  # less than the clock can tell
    assert watch.spoiled(None, 5.0, 1.0) is None


@pytest.mark.parametrize("text", ["", "intr 1 2 3\n", "cpu  0 0 0 0 0 0 0 0\n"])
def test_a_system_that_tells_nothing_drops_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "stat").write_text(text)
    watch = CpuWatch(tmp_path)
    assert not watch.works
    assert watch.others() is None
    assert not CpuWatch(tmp_path / "absent").works


class Scripted(CpuWatch):
    """Reports that others used so many seconds during each slice."""

    def __init__(self, used: list[float]) -> None:
        self.tick_s, self.works = 0.0, True
        self.readings = [0.0]
        for seconds in used:
            self.readings += [self.readings[-1] + seconds] * 2

    def others(self) -> float | None:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]


class Recorded(Worker):
    """Answers with a rate of its own and keeps the order of the questions."""

    def __init__(self, log: list[str], rate: float) -> None:
        self.log, self.rate = log, rate

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self.log.append(str(request["name"]))
        return {"updates": self.rate, "seconds": 1.0}


def test_rounds_alternate_and_repeat_what_others_spoiled() -> None:
    log: list[str] = []
    a, b = Slices("a", Recorded(log, 10.0), 0.0), Slices("b", Recorded(log, 20.0), 0.0)
    told: list[tuple[int, int]] = []
    watch = Scripted([0.0, 99.0, 0.0, 0.0, 0.0])  # the second slice, b's first, is spoiled
    interleave(
        [a, b], rounds=2, slice_s=0.1, limit_s=1e9, watch=watch, on_round=lambda done, total: told.append((done, total))
    )
    assert "".join(log) == "ababb"
    assert (a.clean, b.clean) == ([10.0] * 2, [20.0] * 2)
    assert b.summary()["dropped"] == 1
    assert told == [(1, 2), (2, 2), (3, 3)]


def test_a_configuration_that_breaks_does_not_stop_the_others() -> None:
    class Broken(Recorded):
        def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
            super().ask(request)
            raise SpeedError("FloatingPointError: diverged")

    log: list[str] = []
    a, b = Slices("a", Recorded(log, 10.0), 0.0), Slices("b", Broken(log, 20.0), 0.0)
    interleave([a, b], rounds=2, slice_s=0.1, limit_s=1e9, watch=Scripted([0.0] * 9))
    assert "".join(log) == "aba"
    assert (a.failed, b.failed) == (None, "FloatingPointError: diverged")


def test_no_round_begins_after_the_limit() -> None:
    log: list[str] = []
    a = Slices("a", Recorded(log, 1.0), 0.0)
    interleave([a], rounds=5, slice_s=0.1, limit_s=0.0, watch=Scripted([9.0] * 9))
    assert log == ["a"]
    assert a.contended
    assert a.summary()["updates_per_s"] == 1.0


def test_the_median_and_range_are_of_clean_slices() -> None:
    slices = Slices("a", Recorded([], 1.0), 0.5, rates=[4.0, 1.0, 9.0, 5.0], others=[None, 0.7, None, None])
    assert slices.summary() == {
        "updates_per_s": 5.0,
        "lowest": 4.0,
        "highest": 9.0,
        "slices": 3,
        "dropped": 1,
        "contended": False,
        "first_update_s": 0.5,
    }


def test_where_none_is_clean_the_least_spoiled_third_counts() -> None:
    slices = Slices("a", Recorded([], 1.0), 0.5, rates=[4.0, 1.0, 9.0, 5.0], others=[0.2, 0.9, 0.4, 0.8])
    assert slices.kept == [4.0, 9.0]
    assert slices.summary()["contended"]
