"""The load test: it sees growth, it sees none where there is none, and it is the real loop that it watches."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks import load as benchmark
from o2o_smooth.benchmarks.load import MIB, LoadConfig, Watch, growth, load
from o2o_smooth.data.collect import Collector
from o2o_smooth.errors import ConfigError, O2OError

TINY: dict[str, Any] = {"envs": 8, "members": 2, "width": 8, "batch_size": 16, "buffer_size": 400}


def test_growth_is_that_of_the_last_half_and_outliers_do_not_count() -> None:
    filling = [(i, min(i, 40) * MIB) for i in range(1, 101)]  # a ring that is full before the middle
    assert growth(filling) == 0
    leaking = [(i, i * MIB) for i in range(1, 101)]
    assert growth(leaking) == pytest.approx(40 * MIB, abs=2 * MIB)
    spike = [(i, 900 * MIB if i == 97 else 5 * MIB) for i in range(1, 101)]
    assert growth(spike) == 0
    with pytest.raises(O2OError, match="too few"):
        growth(filling[:5])


def test_the_watch_keeps_a_bounded_number_of_samples() -> None:
    watch = Watch()
    for step in range(0, 100_000, 4):
        watch.update("online", step, 100_000)
        watch.update("online", step, 100_000, "evaluating")
        watch.update("offline", step, 100_000)
    assert 500 <= len(watch.samples) <= 2001
    assert watch.samples[-1][0] > 99_000


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ({"envs": 0}, "envs must be positive"),
        ({"agent": "iql"}, "td3 or sac"),
        ({"env_steps": 1000}, "--buffer-size 333 or less"),
    ],
)
def test_what_cannot_be_judged_is_refused(bad: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        load(LoadConfig(str(tmp_path / "run"), **{**TINY, **bad}))


@pytest.mark.slow
def test_a_short_load_is_bounded_and_a_leak_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = load(LoadConfig(str(tmp_path / "run"), env_steps=4000, bound_mib=6.0, **TINY))
    assert report["bounded"], report["growth_mib"]
    assert report["transitions"] == 8_000
    assert json.loads((tmp_path / "run" / "load.json").read_text())["bounded"] is True
    kept: list[mmap.mmap] = []  # memory of the system's: what the process has freed before would hide a leak
    finish = Collector.finish

    def leaking(self: Collector) -> Any:
        kept.append(mmap.mmap(-1, 1 << 18))
        kept[-1].write(b"x" * (1 << 18))
        return finish(self)

    monkeypatch.setattr(Collector, "finish", leaking)
    report = load(LoadConfig(str(tmp_path / "leak"), env_steps=4000, bound_mib=6.0, **TINY))
    assert not report["bounded"]
    assert report["growth_mib"] > 20


@pytest.mark.slow
def test_the_hour_is_measured_with_the_full_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoadConfig(str(tmp_path / "run"), measure_s=0.2, full_width=16, **TINY)
    rate = benchmark.measure(config)
    assert rate > 0
    assert not (tmp_path / "run").exists()
