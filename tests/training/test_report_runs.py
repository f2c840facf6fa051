"""From run folders to the arms of a report: roles, ramps and A/A pairs come from the manifests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.smoothing.rules import ADAPTIVE_NAMES, make_rule
from o2o_smooth.smoothing.schedules import Schedule
from o2o_smooth.stability.signal_names import by_question, signal_title
from o2o_smooth.training.report_runs import ramp_length, read_runs
from o2o_smooth.training.tracking.dashboard import SECTIONS
from tests.training.test_pictures import fake_run


def made(
    folder: Path,
    seeds: int = 2,
    arm: str | None = None,
    task: str = "maze",
    provenance: str = "generated",
    **config: Any,
) -> Path:
    """A run folder whose settings are changed; names of smoothing settings go where they belong."""
    fake_run(folder, provenance, seeds=seeds)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, value in config.items():
        place = manifest["config"]["smoothing"] if name in SMOOTHING else manifest["config"]
        place[name] = value
    manifest["config"]["out"] = str(folder)
    manifest["task"]["id"] = task
    if arm is not None:
        manifest["arm"] = arm
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {"phase": "online", "env_steps": s, "seed": seed, "smoothing/actor_weight": 0.57e-3 * s, "critic/loss": 1.0}
        for s in (0, 500, 1000)
        for seed in range(seeds)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


SMOOTHING = ("schedule", "regime", "ramp_steps", "ramp_unit", "actor_schedule", "offline_fraction_end")


def test_controls_are_recognised_by_their_settings(tmp_path: Path) -> None:
    folders = [
        made(tmp_path / "a", schedule="jump"),
        made(tmp_path / "b", schedule="jump", regime="mixed"),
        made(tmp_path / "c", schedule="stay"),
        made(tmp_path / "d", schedule="floor:0.2+jump"),
        made(tmp_path / "e", schedule="linear:300"),
        made(tmp_path / "f", schedule="linear:300", online_stream=1),
        made(tmp_path / "g", schedule="performance_gate"),
        made(tmp_path / "h", schedule="jump", actor_schedule="linear:50"),
    ]
    arms = {arm.name: arm for arm in read_runs([(None, folder) for folder in folders]).arms}
    assert {name: arm.role for name, arm in arms.items()} == {
        "a": "jump",
        "b": "mixed",
        "c": "stay",
        "d": "floor",
        "e": "smoothed",
        "f": "twin",
        "g": "smoothed",
        "h": "smoothed",
    }
    assert arms["f"].twin_of == "e"
    assert [arms[name].ramp_steps for name in "abcdefgh"] == [0, 0, 0, 0, 300, 300, 500, 50]
    assert arms["g"].weight_at_end == 0.57  # it moves on signals, so its end has to be looked up
    assert arms["e"].weight_at_end is None


@pytest.mark.parametrize(
    ("smoothing", "more", "length"),
    [
        ({"schedule": "jump"}, {}, 0),
        ({"schedule": "linear"}, {}, 500),
        ({"schedule": "hold:1000+cosine:300"}, {}, 1300),
        ({"schedule": "floor:0.5+linear:1000"}, {}, 500),  # it stands still where it meets the floor
        ({"schedule": "exponential:700"}, {}, 700),
        ({"schedule": "steps:800:4"}, {}, 800),
        ({"schedule": "jump", "critic_schedule": "linear:40"}, {}, 40),
        ({"schedule": "jump", "offline_fraction_end": 0.0, "offline_fraction_schedule": "linear:90"}, {}, 90),
        ({"schedule": "performance_gate:2500"}, {}, 2500),
        ({"schedule": "kl_gate"}, {}, 500),
        ({"schedule": "linear", "ramp_unit": "updates"}, {"utd": 2.0, "update_after": 64}, 314),
    ],
)
def test_the_ramp_ends_where_every_weight_stands_still(
    smoothing: dict[str, Any], more: dict[str, Any], length: float
) -> None:
    assert ramp_length({"smoothing": {"ramp_steps": 500, **smoothing}, **more}) == pytest.approx(length, abs=0.01)


def test_names_are_the_users_or_the_runs_and_one_name_is_one_arm(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a", arm="linear"), made(tmp_path / "b")
    assert [arm.name for arm in read_runs([(None, one), ("mine", two)]).arms] == ["linear", "mine"]
    with pytest.raises(DataError, match=r"arm 'x' has seed 0 twice .runs a and b.: .*NAME=FOLDER"):
        read_runs([("x", one), ("x", two)])


def test_seeds_of_one_arm_may_lie_in_several_folders_but_not_with_several_settings(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", seeds=1), made(tmp_path / "b", seeds=1)
    shift(second, 5)
    (arm,) = read_runs([("x", first), ("x", second)]).arms
    assert arm.seeds == (0, 5)
    other = made(tmp_path / "c", seeds=1, schedule="jump")
    shift(other, 7)
    with pytest.raises(DataError, match=r"arm 'x' has runs of different settings .*NAME=FOLDER"):
        read_runs([("x", first), ("x", other)])


def shift(folder: Path, seed: int) -> None:
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        path = folder / name
        path.write_text(path.read_text().replace('"seed": 0', f'"seed": {seed}'))


def test_runs_of_two_tasks_or_without_an_online_phase_are_refused(tmp_path: Path) -> None:
    one, two = made(tmp_path / "a"), made(tmp_path / "b", task="hopper")
    with pytest.raises(DataError, match=r"different tasks cannot share a report: hopper in .*b, maze in .*a"):
        read_runs([(None, one), (None, two)])
    with pytest.raises(O2OError, match="has no evaluations after the switch"):
        read_runs([(None, fake_run(tmp_path / "c", "own", online=0))])
    with pytest.raises(O2OError, match="is not a run folder"):
        read_runs([(None, tmp_path / "nowhere")])


def test_a_run_that_never_went_online_is_left_out_with_a_note(tmp_path: Path) -> None:
    offline, online = fake_run(tmp_path / "pretrain", "own", online=0), made(tmp_path / "jump")
    runs = read_runs([(None, offline), (None, online)])
    assert [arm.name for arm in runs.arms] == ["jump"]
    assert runs.notes == [f"Left out: {offline} has no evaluations after the switch."]
    assert read_runs([(None, online)]).notes == []
    other = fake_run(tmp_path / "more", "own", online=0)
    with pytest.raises(O2OError, match=r"pretrain, .*more have no evaluations after the switch"):
        read_runs([(None, offline), (None, other)])


def test_weights_come_first_and_then_whatever_was_audited(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    rows = [{"env_steps": s, "seed": 0, "switch/kl": 0.1 * s, "alpha": 1} for s in (1, 2, 4)]
    (folder / "audit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    signals = read_runs([(None, folder), ("other", made(tmp_path / "b"))]).signals
    assert list(signals) == ["smoothing/actor_weight", "switch/kl", "alpha"]  # and no losses
    assert list(signals["switch/kl"]) == ["a"]
    assert list(signals["smoothing/actor_weight"]) == ["a", "other"]


@pytest.mark.parametrize("name", ADAPTIVE_NAMES)
def test_what_every_adaptive_rule_looks_at_is_drawn(name: str, tmp_path: Path) -> None:
    rule = make_rule(name, 100.0, random_return=0.0, reference_return=1.0)
    assert not isinstance(rule, Schedule)
    names = set(rule.signals())
    assert names
    folder = made(tmp_path / "a")
    rows = [{"env_steps": s, "updates": s, "seed": 0, **dict.fromkeys(names, 0.1 * s)} for s in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert set(read_runs([(None, folder)]).signals) == names
    charts = [chart for section in SECTIONS for chart in section.charts if chart.regex]
    for one in names:
        assert [chart.title for chart in charts if re.search(str(chart.regex), one)], one
        assert signal_title(one) != one
        assert list(by_question({one: 0})) == ["What the rule looked at"]


def test_audits_that_tell_their_updates_go_along_them(tmp_path: Path) -> None:
    folder = made(tmp_path / "a")
    rows = [{"env_steps": 8, "updates": 50 + u, "seed": 0, "switch/updates": u, "switch/kl": u} for u in (0, 1, 2, 4)]
    (folder / "audit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = read_runs([(None, folder)])
    assert "switch/kl" not in runs.signals
    assert runs.audits["switch/kl"]["a"][0][0].tolist() == [0, 1, 2, 4]


def test_the_command_that_adds_controls_names_the_checkpoint(tmp_path: Path) -> None:
    fork = made(tmp_path / "a", pretrained="runs/base", schedule="linear:300")
    assert read_runs([(None, fork)]).add_controls == (
        "o2o-smooth fork runs/base --arm linear:300 --controls --online-steps 1000"
    )
    own = made(tmp_path / "b", schedule="jump")
    assert f"fork {own} --arm jump" in read_runs([(None, own)]).add_controls
