"""Suites: what their files may say, and what comes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from o2o_smooth.benchmarks.cells import Cell, Filters, from_dict, make_cells
from o2o_smooth.benchmarks.suite import load_suite, read_suite, shipped
from o2o_smooth.errors import ConfigError, O2OError
from tests.benchmarks.study_cases import TEXT, suite


def _cells(text: str = TEXT, **filters: Any) -> list[Cell]:
    return make_cells(suite(text), Filters(**filters))


def test_every_shipped_suite_can_be_planned() -> None:
    assert {"smoke", "cpu-study", "d4rl-antmaze", "d4rl-adroit", "d4rl-kitchen", "d4rl-mujoco"} <= set(shipped())
    assert {"retention-grid", "schedules"} <= set(shipped())
    for name in shipped():
        found = load_suite(name)
        assert found.name == name and found.description
        for cell in make_cells(found):
            assert from_dict(json.loads(json.dumps(cell.config.to_dict()))) == cell.config
            ramp = cell.config.smoothing.ramp_steps
            assert cell.config.online_steps >= 2 * ramp, "a drop that is only postponed would not be seen"


def test_later_layers_go_first() -> None:
    text = TEXT.replace('agent = "td3_bc"', 'agent = "td3_bc"\nbatch_size = 16\ntau = 0.5').replace(
        'dataset = "DATA"', "batch_size = 12\ndiscount = 0.5\n[tasks.smoothing]\nramp_steps = 30\n"
    )
    text += '[[overrides]]\nagent = "td3_bc"\ntau = 0.25\n[[overrides]]\narm = "jump"\nactor_lr = 0.5\n'
    jump, linear = _cells(text)
    assert jump.config.batch_size == jump.base.batch_size == 16  # the agent's, not the task's or the protocol's
    assert (jump.config.hyper.discount, jump.config.hyper.tau) == (0.5, 0.25)
    assert linear.config.smoothing.ramp_steps == 30 and linear.config.smoothing.regime == "mixed"
    assert jump.config.hyper.actor_lr == 0.5 and jump.base.hyper.actor_lr != 0.5  # an arm's: from the switch on
    assert linear.config.hyper.actor_lr == linear.base.hyper.actor_lr
    assert jump.config.save_online is False


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "tiny"', "", "a suite needs a name"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds must be"),
        ("seeds = [0, 1]", "seed = 0", "seed"),
        ("ramp_steps = 40", "ramp_step = 40", "ramp_steps"),
        ("ramp_steps = 40", 'ramp_steps = "many"', "ramp_steps must be an integer"),
        ("ramp_steps = 40", "ramp_steps = 0", "ramp_steps must be at least 1"),
        ("[protocol]", "[protocols]", "protocol"),
        ("[protocol]", '[protocol]\nout = "x"', "'out' cannot be set here"),
        ('task = "corridor-mixed-v0"', 'task = "corridor-mixd-v0"', "corridor-mixed-v0"),
        ('task = "corridor-mixed-v0"', 'name = "x"', "task"),
        ('agent = "td3_bc"', 'agent = "td3bc"', "td3_bc"),
        ('agent = "td3_bc"', 'agent = "td3_bc"\ncql_weight = 5.0', "cql_weight"),
        ('name = "jump"', 'name = "linear; mixed"', "share the folder"),
        ('name = "jump"', 'name = "!!"', "no letter or number"),
        ('schedule = "jump"', 'schedule = "jmp"', "jmp"),
        ('schedule = "jump"', 'schedule = "jump"\nonline_steps = 5', "shared by all arms"),
        ('schedule = "jump"', 'schedule = "jump"\nhidden_dims = [4]', "pretraining = {hidden_dims"),
        ('schedule = "jump"', 'schedule = "jump"\nonly_agents = ["iql"]', "iql"),
        ('schedule = "jump"', 'schedule = "linear"', "the same run"),
        ("online_steps = 90", "online_steps = 0", "nothing to compare"),
    ],
)
def test_what_cannot_be_is_named(old: str, new: str, named: str) -> None:
    assert old in TEXT
    with pytest.raises(O2OError) as caught:
        _cells(TEXT.replace(old, new, 1))
    assert named in str(caught.value)
    assert "tiny.toml" in str(caught.value) or "corridor-mixd" in str(caught.value)


def test_filters_choose_by_name_and_refuse_others() -> None:
    assert [c.arm for c in _cells(arms=("linear, mixed",))] == ["linear, mixed"]
    assert {c.config.seeds for c in _cells(seeds=(5, 3))} == {(5, 3)}
    with pytest.raises(ConfigError, match=r"--arms.*jump"):
        _cells(arms=("jmp",))
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        _cells(scale=0.0)


def test_an_arm_can_be_meant_for_some_agents() -> None:
    text = TEXT + 'only_agents = ["iql"]\n[[agents]]\nagent = "iql"\n'
    assert [(c.agent, c.arm) for c in _cells(text)] == [
        ("td3_bc", "jump"),
        ("iql", "jump"),
        ("iql", "linear, mixed"),
    ]


def test_scale_shortens_everything_that_counts_steps() -> None:
    text = TEXT.replace('schedule = "jump"', 'schedule = "floor:0.2+hold:20+power:40:2"\nwarm_up_steps = 30')
    whole, part = _cells(text)[0].config, _cells(text, scale=0.5)[0].config
    assert (part.offline_updates, part.online_steps, part.evaluation.eval_every) == (2, 45, 30)
    assert part.smoothing.schedule == "floor:0.2+hold:10+power:20:2"
    assert (part.smoothing.ramp_steps, part.hygiene.warm_up_steps) == (20, 15)
    assert part.adaptive.signal_every == whole.adaptive.signal_every / 2
    assert part.batch_size == whole.batch_size and part.evaluation.eval_episodes == whole.evaluation.eval_episodes
    assert _cells(TEXT, scale=0.001)[0].config.online_steps >= 1


def test_a_sweep_is_more_arms() -> None:
    text = TEXT + (
        '[[sweep]]\narm = "linear, mixed"\nramp_steps = [10, 20]\noffline_fraction = [0.25, 0.75]\n'
        "[[sweep]]\ncount = 3\nseed = 7\nactor_lr = {log_uniform = [1e-5, 1e-3]}\n"
        '[[sweep]]\narm = "jump"\npretraining = {tau = [0.1]}\n'
    )
    cells = _cells(text)
    grid = [c for c in cells if c.arm.startswith("linear, mixed ")]
    assert [(c.config.smoothing.ramp_steps, c.config.smoothing.offline_fraction) for c in grid] == [
        (10, 0.25),
        (10, 0.75),
        (20, 0.25),
        (20, 0.75),
    ]
    assert grid[0].arm == "linear, mixed ramp-steps=10 offline-fraction=0.25"
    assert grid[0].settings["ramp_steps"] == 10
    sampled = [c for c in cells if "actor-lr" in c.arm]
    rates = [c.config.hyper.actor_lr for c in sampled]
    assert len(set(rates)) == 3 and all(1e-5 <= rate <= 1e-3 for rate in rates)
    assert rates == [c.config.hyper.actor_lr for c in _cells(text) if "actor-lr" in c.arm]  # seeded
    assert [c.base.hyper.tau for c in cells if "tau=" in c.arm] == [0.1]
    assert sampled[0].base.hyper.actor_lr not in rates


@pytest.mark.parametrize(
    ("sweep", "named"),
    [
        ("[sweep]\n", "nothing is varied"),
        ("[sweep]\nramp_steps = 5\n", "list of values or a distribution"),
        ("[sweep]\nactor_lr = {log_uniform = [1e-5, 1e-3]}\n", "how many samples"),
        ("[sweep]\ncount = 2\nramp_steps = [5, 6]\n", "nothing is sampled"),
        ("[sweep]\ncount = 2\nactor_lr = {log_normal = [1e-5, 1e-3]}\n", "log_normal"),
        ("[sweep]\ncount = 2\nactor_lr = {uniform = [1.0, 0.5]}\n", "low below high"),
        ("[sweep]\ncount = 2\nactor_lr = {log_uniform = [0, 0.5]}\n", "positive"),
        ("[sweep]\ncount = 2\nramp_steps = {int_uniform = [0.5, 2]}\n", "integers"),
        ('[sweep]\narm = "linaer"\nramp_steps = [5]\n', "linear, mixed"),
        ("[sweep]\nramp_stepz = [5]\n", "ramp_steps"),
    ],
)
def test_a_sweep_that_cannot_be_is_named(sweep: str, named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _cells(TEXT + sweep)
    assert named in str(caught.value) and "tiny.toml" in str(caught.value)


def test_a_suite_needs_its_tables() -> None:
    with pytest.raises(ConfigError, match=r"\[\[tasks\]\]"):
        read_suite({"name": "x"})
    with pytest.raises(ConfigError, match="cpu-study"):
        load_suite("cpu-studdy")
