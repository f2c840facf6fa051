"""From run folders to the arms of a report: roles, ramps and A/A pairs come from the manifests."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.agents import AGENTS
from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.smoothing.rules import ADAPTIVE_NAMES, make_rule
from o2o_smooth.smoothing.schedules import Schedule
from o2o_smooth.stability.comparison import choose_baseline
from o2o_smooth.stability.signal_names import by_question, signal_title
from o2o_smooth.training.config import RunConfig, default_config
from o2o_smooth.training.forking import parse_arm
from o2o_smooth.training.ramps import ramp_length
from o2o_smooth.training.report_runs import read_runs
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


GROUPS = ("adaptive", "hygiene", "anchors", "averaging", "evaluation")
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
    "treatment",
    [{"anchors": {"anchor_kl": 1.0}}, {"averaging": {"ema_decay": 0.9}}, {"hygiene": {"reset_optimizer": "all"}}],
)
def test_an_arm_that_something_else_eases_is_no_control_and_no_baseline(
    tmp_path: Path, treatment: dict[str, Any]
) -> None:
    off: dict[str, Any] = {"anchors": {"anchor_kl": 0.0}, "averaging": {}, "hygiene": {"reset_optimizer": None}}
    folders = [
        made(tmp_path / "held", schedule="jump", **{**off, **treatment}),
        made(tmp_path / "jump", schedule="jump"),  # before these groups were there
        made(tmp_path / "control", schedule="stay", **off),
        made(tmp_path / "stays", schedule="stay", **treatment),
        made(tmp_path / "floor", schedule="floor:0.2+jump", **treatment),
        made(tmp_path / "mixed", schedule="jump", regime="mixed", **treatment),
    ]
    arms = read_runs([(None, folder) for folder in folders]).arms
    assert {arm.name: arm.role for arm in arms} == {
        "held": "smoothed",
        "jump": "jump",
        "control": "stay",
        "stays": "smoothed",
        "floor": "smoothed",
        "mixed": "smoothed",
    }
    assert choose_baseline(arms, None).name == "jump"
    (alone,) = read_runs([(None, folders[0])]).arms
    assert alone.role == "smoothed"


def test_an_aa_pair_may_be_audited_differently_and_be_older_than_a_setting(tmp_path: Path) -> None:
    """What is checked and watched changes nothing in a run, and a group that was not there was not changed."""
    plain = made(tmp_path / "a", schedule="linear:300")
    newer: dict[str, Any] = {
        **{group: asdict(getattr(RunConfig(hyper=AGENTS["iql"].config_class()), group)) for group in GROUPS},
        "precision": "fp32",
        "switch": {"parity_check": False, "audit": False, "audit_every": 50, "audit_rows": 128},
    }
    again = made(tmp_path / "b", schedule="linear:300", online_stream=1, **newer)
    held = made(tmp_path / "c", schedule="linear:300", online_stream=2, anchors={"anchor_kl": 1.0})
    gate = made(tmp_path / "d", schedule="linear:300", online_stream=3, adaptive={"gate_share": 0.5})
    arms = read_runs([(None, folder) for folder in (plain, again, held, gate)]).arms
    assert [(arm.role, arm.twin_of) for arm in arms] == [
        ("smoothed", None),
        ("twin", "a"),
        ("smoothed", None),
        ("smoothed", None),
    ]


def test_what_all_arms_share_sets_none_apart(tmp_path: Path) -> None:
    warm: dict[str, Any] = {"hygiene": {"warm_up_steps": 100}}
    folders = [
        made(tmp_path / "a", schedule="jump", **warm),
        made(tmp_path / "b", schedule="stay", **warm),
        made(tmp_path / "c", schedule="jump", **warm, anchors={"anchor_l2": 0.1}),
    ]
    assert [arm.role for arm in read_runs([(None, folder) for folder in folders]).arms] == ["jump", "stay", "smoothed"]


WARM = {"hygiene": {"warm_up_steps": 1000}}


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
        ({"schedule": "performance_gate:1e4"}, {}, 10_000),
        ({"schedule": "performance_gate: 2.5e3"}, {}, 2500),
        ({"schedule": "linear", "ramp_unit": "updates"}, {"utd": 2.0, "update_after": 64}, 314),
        # The clock of ramps begins when the warm-up ends, and jumps and floors jump there.
        ({"schedule": "linear"}, WARM, 1500),
        ({"schedule": "jump"}, WARM, 1000),
        ({"schedule": "jump", "regime": "mixed"}, WARM, 1000),
        ({"schedule": "floor:0.2+jump"}, WARM, 1000),
        ({"schedule": "stay"}, WARM, 0),
        ({"schedule": "stay", "critic_schedule": "jump"}, WARM, 1000),
        ({"schedule": "kl_gate:700"}, WARM, 1700),
        ({"schedule": "linear", "ramp_unit": "updates"}, {"utd": 2.0, "update_after": 64, **WARM}, 1250),
        ({"schedule": "linear", "ramp_unit": "updates"}, {"utd": 2.0, "update_after": 4000, **WARM}, 4250),
        ({"schedule": "linear:5000000"}, {}, 5_000_000),
    ],
)
def test_the_ramp_ends_where_every_weight_stands_still(
    smoothing: dict[str, Any], more: dict[str, Any], length: float
) -> None:
    assert ramp_length({"smoothing": {"ramp_steps": 500, **smoothing}, **more}) == pytest.approx(length, abs=0.01)


@pytest.mark.parametrize("smoothing", [{"schedule": "return_pd"}, {"schedule": "a rule of tomorrow"}])
def test_a_rule_without_a_length_has_a_ramp_that_nobody_knows(smoothing: dict[str, Any]) -> None:
    assert ramp_length({"smoothing": {"ramp_steps": 500, **smoothing}}) is None


def test_a_ramp_that_is_not_known_is_no_ramp_of_0(tmp_path: Path) -> None:
    (arm,) = read_runs([(None, made(tmp_path / "a", schedule="return_pd"))]).arms
    assert arm.ramp_steps is None
    assert arm.weight_at_end == 0.57


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
    other = made(tmp_path / "c", pretrained="runs/base", schedule="linear")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["config"]["smoothing"] |= {"ramp_steps": 500, "regime": "mixed", "actor_schedule": "cosine:100"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    command = read_runs([(None, other)]).add_controls.split()
    arm = parse_arm(command[command.index("--arm") + 1], default_config("Pendulum-v1", "iql", "other"))
    smoothing = arm.config.smoothing
    assert (smoothing.schedule, smoothing.ramp_steps, smoothing.regime) == ("linear", 500, "mixed")
    assert smoothing.actor_schedule == "cosine:100"
    own = made(tmp_path / "b", schedule="jump")
    assert f"fork {own} --arm jump" in read_runs([(None, own)]).add_controls
