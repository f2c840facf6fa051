"""The gate's error rates in simulation, old rule against new; the table in docs/smoothing.md is of the same code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from o2o_smooth.benchmarks.gate_simulation import GATES, NOISE, NewGate, main, row, simulate


@pytest.mark.parametrize("noise", ["Gaussian, 30 %", "success, 0.8"])
@pytest.mark.parametrize("length", [250, 1000])
def test_gate_is_wrong_far_less_often_than_its_former_rule(noise: str, length: int) -> None:
    shares = {}
    for name, make in GATES.items():
        rng = np.random.default_rng(7)
        calm = [simulate(make(), NOISE[noise], length, rng, budget=20_000) for _ in range(25)]
        shares[name] = np.mean([c.retreating for c in calm])
    assert shares["new"] < 0.1
    assert shares["new"] < shares["old"] / 2


def test_quiet_returns_make_an_undisturbed_ramp_and_a_drop_shows_with_the_next_episode() -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        calm = simulate(NewGate(), NOISE["Gaussian, 5 %"], 250, rng, budget=10_000)
        assert calm.full <= 7500  # four to ten episodes for the yardstick, then the ramp
        fallen = simulate(NewGate(), NOISE["Gaussian, 5 %"], 250, rng, drop=0.6, budget=10_000)
        assert fallen.delay <= 500
        assert fallen.beyond <= 0.6


def test_collapse_under_noise_is_seen_before_w_is_far_beyond_it() -> None:
    rng = np.random.default_rng(1)
    courses = [simulate(NewGate(), NOISE["Gaussian, 30 %"], 250, rng, drop=0.6) for _ in range(25)]
    fallen = [c for c in courses if np.isfinite(c.onset)]
    assert len(fallen) > 20
    assert np.median([c.delay for c in fallen]) <= 1000
    assert np.quantile([c.beyond for c in fallen], 0.9) < 0.9


def test_long_episodes_do_not_let_w_run_ahead_of_what_is_known() -> None:
    rng = np.random.default_rng(2)
    old, new = (simulate(make(), NOISE["Gaussian, 5 %"], 1000, rng, drop=0.6) for make in GATES.values())
    assert old.beyond > 0.75
    assert new.beyond <= 0.6


def test_same_seed_same_row() -> None:
    first, second = (row("new", "success, 0.8", 250, runs=3, seed=5, drops=(0.6,)) for _ in range(2))
    assert first == second
    assert first != row("new", "success, 0.8", 250, runs=3, seed=6, drops=(0.6,))


def test_command_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("o2o_smooth.benchmarks.gate_simulation.NOISE", {"Gaussian, 5 %": NOISE["Gaussian, 5 %"]})
    main(["--runs", "2", "--lengths", "1000", "--out", str(tmp_path / "table.md")])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0].startswith("| returns | episode | gate | false retreat |")
    assert len(lines) == 4
    assert lines[3] in capsys.readouterr().out
