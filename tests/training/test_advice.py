"""Advice at the switch: which regime, which preset, and how it is checked against what a run did."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from o2o_smooth.envs import Task
from o2o_smooth.training.advice import PRESETS, advise, followed, outcome, run_folder, write_advice
from o2o_smooth.training.checkpoint import SwitchRecord
from o2o_smooth.training.config import SmoothingConfig

SCORED = Task(id="t", env_id="Pendulum-v1", max_episode_steps=200, ref_random=-1000.0, ref_expert=0.0, ref_source="x")
PLAIN = Task(id="t", env_id="Pendulum-v1", max_episode_steps=200)


def record(score: float, data: float, *, std: float | None = 20.0, episodes: int = 20) -> SwitchRecord:
    """Two seeds around a score of `SCORED`, with data around another."""
    noise = np.tile([-20.0, 20.0], episodes // 2)
    returns = -1000.0 + 10.0 * score + np.stack([noise, noise])
    dataset: dict[str, Any] = {"return_mean": -1000.0 + 10.0 * data, "return_std": std, "episodes": 100}
    if std is None:
        del dataset["return_std"]  # as runs wrote it before there was advice
    return SwitchRecord("t", dataset, 1.0, 0.0, 10, {}, [], returns.tolist())


@pytest.mark.parametrize(
    ("score", "data", "regime", "preset"),
    [
        (60.0, 40.0, "policy better", "policy better"),
        (40.0, 60.0, "data better", "data better"),
        (52.0, 50.0, "comparable", "comparable"),
        (4.0, 60.0, "data better", "nothing to lose"),
        (4.0, -30.0, "policy better", "nothing to lose"),
    ],
)
def test_the_preset_follows_the_regime_unless_there_is_nothing_to_lose(
    score: float, data: float, regime: str, preset: str
) -> None:
    advice = advise(record(score, data), SCORED)
    assert advice.comparison is not None
    assert (advice.comparison.regime, advice.unit) == (regime, "score")
    assert [advice.comparison.policy, advice.comparison.data] == pytest.approx([score, data])
    assert advice.preset == PRESETS[preset]
    assert advice.at_random == (preset == "nothing to lose")
    assert PRESETS[preset].flags in advice.sentence()
    assert advice.comparison.margin == 5.0


def test_returns_have_a_margin_of_their_own_size_and_no_random_policy_unless_known() -> None:
    advice = advise(record(40.0, 60.0), PLAIN)  # returns -600 and -400
    assert advice.comparison is not None
    assert advice.unit == "return"
    assert advice.comparison.margin == pytest.approx(0.05 * 600)
    assert not advice.at_random


def test_the_datas_spread_is_brought_to_scores() -> None:
    # The policy is known to 0.3 points; data of spread 400 points in 100 episodes could be anything.
    vague = advise(record(60.0, 40.0, std=4000.0), SCORED).comparison
    exact = advise(record(60.0, 40.0, std=None), SCORED).comparison
    assert vague is not None
    assert exact is not None
    assert (vague.regime, vague.certain, vague.exact_data) == ("comparable", False, False)
    assert vague.high - vague.low == pytest.approx(2 * 1.66 * 400 / 99**0.5, rel=0.01)
    assert (exact.regime, exact.certain, exact.exact_data) == ("policy better", True, True)


def test_an_older_record_is_advised_on_and_says_what_is_missing() -> None:
    assert "the data's spread is not on record" in advise(record(60.0, 40.0, std=None), SCORED).sentence()


def test_without_data_or_spread_there_is_no_advice_and_it_says_why() -> None:
    whole = record(60.0, 40.0)
    for broken, text in (
        (dataclasses.replace(whole, dataset=None), "no offline data"),
        (dataclasses.replace(whole, returns=[[1.0], [2.0]]), "--switch-episodes"),
    ):
        advice = advise(broken, SCORED)
        assert advice.comparison is None
        assert text in advice.sentence()
        assert advice.to_dict()["regime"] is None
        assert followed(advice, dataclasses.asdict(SmoothingConfig())) is None


def test_advice_is_plain_json_also_where_nothing_is_noisy() -> None:
    still = dataclasses.replace(record(60.0, 40.0, std=0.0), returns=[[-400.0, -400.0]])
    content = advise(still, SCORED).to_dict()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["df"] is None


@pytest.mark.parametrize("regime", list(PRESETS))
def test_following_the_flags_is_following_the_advice(regime: str) -> None:
    preset = PRESETS[regime]
    advice = dataclasses.replace(advise(record(60.0, 40.0), SCORED), preset=preset)
    flags = preset.flags.split()
    given = dict(zip((flag.removeprefix("--").replace("-", "_") for flag in flags[::2]), flags[1::2], strict=True))
    share = float(given["offline_fraction"]) if "offline_fraction" in given else None
    smoothing = SmoothingConfig(given["schedule"], regime=given["regime"], offline_fraction=share)  # type: ignore[arg-type]
    assert followed(advice, dataclasses.asdict(smoothing))
    assert followed(advice, dataclasses.asdict(dataclasses.replace(smoothing, offline_fraction=None)))
    if preset.schedule != "jump":
        longer = dataclasses.replace(smoothing, schedule=f"{preset.schedule}:777")
        assert followed(advice, dataclasses.asdict(longer))
    assert not followed(advice, dataclasses.asdict(dataclasses.replace(smoothing, schedule="stay")))
    other: Any = {"mixed": "retain", "retain": "mixed"}[preset.regime]
    assert not followed(advice, dataclasses.asdict(SmoothingConfig(preset.schedule, regime=other)))


def test_the_outcome_is_that_of_the_curves(tmp_path: Path) -> None:
    rows = [
        {"phase": phase, "env_steps": step, "updates": 0, "seed": seed, "return_mean": score, "score": score}
        for seed in (0, 1)
        for phase, step, score in (("switch", 0, 50.0), ("online", 50, 50.0 - 40 * seed), ("online", 100, 60.0))
    ]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = outcome(tmp_path)
    assert found is not None
    assert (found["dip_depth"], found["final"]) == (20.0, 60.0)
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert outcome(tmp_path) is None


def test_advice_appears_whole(tmp_path: Path) -> None:
    write_advice(tmp_path, {"regime": "comparable"})
    assert [p.name for p in tmp_path.iterdir()] == ["advice.json"]
    assert run_folder(tmp_path / "checkpoints" / "switch") is None
    (tmp_path / "manifest.json").write_text("{}")
    assert run_folder(tmp_path / "checkpoints" / "switch") == tmp_path
