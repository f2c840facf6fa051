"""Where a run's time goes: the clock's own arithmetic, and a real run's calls."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from o2o_smooth.agents import Agent
from o2o_smooth.benchmarks import speed_run
from o2o_smooth.benchmarks.speed import SpeedConfig
from o2o_smooth.benchmarks.speed_run import (
    LOOP,
    PartClock,
    default_task,
    measure_run,
    part_clock,
    record_random,
    run_settings,
    split,
    split_runs,
)
from o2o_smooth.training.progress import Silent


class Hand:
    """A clock that is moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_a_parts_time_is_without_the_parts_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    hand, clock = Hand(monkeypatch), PartClock()
    step = clock.wrap("step", lambda: hand.wait(3.0))

    def write() -> str:
        hand.wait(1.0)
        step()
        hand.wait(0.5)
        return "kept"

    assert clock.wrap("write", write)() == "kept"
    hand.wait(2.0)  # in no part
    assert dict(clock.seconds) == {"step": 3.0, "write": 1.5}
    assert clock.main_s == 4.5
    result = split(clock, hand.now)
    assert (result["loop_s"], result["seconds"]["other"]) == (6.5, 2.0)
    assert result["shares"]["step"] == pytest.approx(3.0 / 6.5)
    assert result["calls"]["write"] == 1


def test_all_of_an_evaluation_is_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    hand, clock = Hand(monkeypatch), PartClock()
    act = clock.wrap("act", lambda: hand.wait(1.0))
    clock.wrap("evaluate", lambda: [act() for _ in range(3)])()
    act()
    assert dict(clock.seconds) == {"evaluate": 3.0, "act": 1.0}
    clock.wrap("set up", act)()
    assert split(clock, 10.0)["loop_s"] == 9.0


def test_an_error_does_not_confuse_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    hand, clock = Hand(monkeypatch), PartClock()

    def fail() -> None:
        hand.wait(1.0)
        raise ValueError

    failing = clock.wrap("act", fail)
    for _ in range(2):
        with pytest.raises(ValueError):
            failing()
    assert clock.seconds["act"] == clock.main_s == 2.0


def test_another_threads_parts_do_not_count_as_the_main_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    hand, clock = Hand(monkeypatch), PartClock()
    step = clock.wrap("step", lambda: hand.wait(5.0))
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert clock.seconds["step"] == 5.0
    assert clock.main_s == 0.0


def test_everything_that_is_clocked_exists_and_is_put_back() -> None:
    before = Agent.update
    with part_clock():
        assert Agent.update is not before
    assert Agent.update is before


def test_random_steps_are_recorded_as_they_were(tmp_path: Path) -> None:
    path = record_random("Pendulum-v1", 450, tmp_path / "random.npz")
    columns = np.load(path)
    assert columns["observations"].shape == (450, 3)
    assert columns["actions"].shape == (450, 1)
    assert np.flatnonzero(columns["timeouts"]).tolist() == [199, 399, 449]


def test_a_real_run_is_split_into_its_parts(tmp_path: Path) -> None:
    data = record_random("Pendulum-v1", 210, tmp_path / "random.npz")
    settings = run_settings("Pendulum-v1", "iql", data, members=2, threads=1, device="cpu")
    offline, online = measure_run(settings, offline_updates=5, online_steps=80, folder=tmp_path)
    assert offline["calls"]["update"] == 5
    assert offline["calls"]["step"] == 0
    assert online["calls"]["act"] == online["calls"]["step"] == 80
    gradients = online["calls"]["update"] - (80 - settings.update_after)  # measured now and then, counted as updates
    assert 0 <= gradients < 80
    for half in (offline, online):
        assert set(half["seconds"]) == {*LOOP, "other"}
        assert half["calls"]["evaluate"] >= 1
        assert half["seconds"]["sample"] > 0
        assert half["seconds"]["log"] > 0
        assert sum(half["shares"].values()) == pytest.approx(1.0, abs=0.2)
    assert online["seconds"]["write"] > 0
    assert offline["calls"]["audit"] == 0
    assert online["calls"]["audit"] == 2 + 2 * 2  # before the first update and at the end, a row per seed
    assert online["env_steps_per_s"] == pytest.approx(2 * 80 / online["loop_s"])
    assert (tmp_path / "online" / "evaluations.jsonl").is_file()


def test_every_population_size_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_run, "WARM_UPDATES", 3)
    monkeypatch.setattr(speed_run, "RUN_S", 0.0)
    config = SpeedConfig(agents=("td3_bc",), members=(1, 2), threads=(1,), task="Pendulum-v1", picture=None)
    found = split_runs(config, tmp_path, Silent())
    assert [(f["members"], f["phase"]) for f in found] == [(m, p) for m in (1, 2) for p in ("offline", "online")]
    assert all(f["agent"] == "td3_bc" for f in found)
    assert found[0]["calls"]["update"] == 3  # the fewest
    assert found[1]["env_steps"] == 64 + 20


def test_the_default_task_is_one_that_can_be_made(tmp_path: Path) -> None:
    assert record_random(default_task(), 5, tmp_path / "x.npz").is_file()
