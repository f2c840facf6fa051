from __future__ import annotations

import dataclasses
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.cql import CQLConfig
from o2o_smooth.agents.iql import IQLConfig
from o2o_smooth.agents.td3_bc import TD3BCConfig
from o2o_smooth.envs.tasks import DOMAINS
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing import ADAPTIVE_NAMES, Floor, Linear, PerformanceGate
from o2o_smooth.training.config import (
    AdaptiveConfig,
    EvaluationConfig,
    RunConfig,
    SmoothingConfig,
    apply_values,
    default_config,
    read_toml,
    unknown,
)

PRESETS = tomllib.loads(resources.files("o2o_smooth.agents").joinpath("presets.toml").read_text(encoding="utf-8"))


def config(**values: Any) -> RunConfig[IQLConfig]:
    return RunConfig(hyper=IQLConfig(), **values)


def applied(toml: str, agent: str = "iql") -> RunConfig[Any]:
    return default_config("hopper-medium-v2", agent, "mujoco", tomllib.loads(toml), "my.toml")


# Values from a file


def test_flat_and_grouped_keys_mean_the_same() -> None:
    flat = applied("schedule = 'cosine'\nramp-steps = 300\neval_episodes = 3\nexpectile = 0.8\nseeds = [1, 2]\nutd = 2")
    grouped = applied(
        "seeds = [1, 2]\nutd = 2.0\n[smoothing]\nschedule = 'cosine'\nramp_steps = 300\n"
        "[evaluation]\neval-episodes = 3\n[hyper]\nexpectile = 0.8"
    )
    assert flat == grouped
    assert (flat.smoothing.schedule, flat.smoothing.ramp_steps) == ("cosine", 300)
    assert (flat.evaluation.eval_episodes, flat.hyper.expectile, flat.seeds, flat.utd) == (3, 0.8, (1, 2), 2.0)
    assert type(flat.utd) is float


def test_nested_groups_are_reached_by_table_and_by_name() -> None:
    table = applied("[hyper.sac]\ninitial_temperature = 0.3\nlearn_temperature = false")
    mixed = applied("learn-temperature = false\n[sac]\ninitial_temperature = 0.3")
    assert table == mixed
    assert (table.hyper.sac.initial_temperature, table.hyper.sac.learn_temperature) == (0.3, False)


def test_values_not_given_keep_the_preset() -> None:
    made = applied("discount = 0.9", "cql")
    assert (made.hyper.cql_weight, made.hyper.discount) == (10.0, 0.9)
    assert applied("") == default_config("hopper-medium-v2", "iql", "mujoco")


def test_seed_may_be_a_single_number() -> None:
    assert applied("seeds = 3").seeds == (3,)
    assert applied("hidden_dims = [32, 16]").hyper.hidden_dims == (32, 16)


def test_whole_number_is_fine_for_a_float_and_optional_values_take_their_type() -> None:
    made = applied("reward_scale = 2\neval_every = 500\nonline = 'same'\ncompile = 'on'\noffline_fraction = 0")
    assert (made.reward_scale, made.evaluation.eval_every, made.online, made.compile) == (2.0, 500, "same", "on")
    assert made.smoothing.offline_fraction == 0.0


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("ramp_stepz = 5", ["my.toml", "'ramp_stepz'", "did you mean ramp_steps"]),
        ("[smoothing]\nschedul = 'jump'", ["my.toml", "'schedul'", "did you mean schedule"]),
        ("[hyper]\nexpectille = 0.8", ["'expectille'", "did you mean expectile"]),
        ("[hyper.sac]\ninitial_temp = 1.0", ["'initial_temp'", "initial_temperature"]),
        ("[evaluation]\nschedule = 'jump'", ["'schedule'"]),  # a setting of another group
        ("cql_weight = 5.0", ["'cql_weight'"]),  # a setting of another agent
        ("zzz = 1", ["'zzz'", "available: hyper", "ramp_steps", "eval_episodes"]),
    ],
)
def test_unknown_key_is_named_with_the_close_ones(toml: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        applied(toml)
    for word in words:
        assert word in str(error.value)


def test_unknown_without_a_close_name_lists_all() -> None:
    assert unknown("agent", "qqq", {"iql": 0, "cql": 0}) == "there is no agent 'qqq'; available: iql, cql"


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("ramp_steps = true", "ramp_steps must be an integer, got True"),
        ("ramp_steps = 5.0", "ramp_steps must be an integer, got 5.0"),
        ("ramp_steps = '5'", "ramp_steps must be an integer, got '5'"),
        ("utd = '2'", "utd must be a number, got '2'"),
        ("utd = false", "utd must be a number, got False"),
        ("discount = [0.9]", "discount must be a number"),
        ("compile = 1", "compile must be one of auto, on, off, got 1"),
        ("memory_check = 1", "memory_check must be true or false, got 1"),
        ("memory_check = 'true'", "memory_check must be true or false"),
        ("task = 5", "task must be a string"),
        ("schedule = false", "schedule must be a string"),
        ("online = 1", "online must be a string"),
        ("seeds = [0, 1.5]", "seeds must be a list of integers"),
        ("seeds = [true]", "seeds must be a list of integers"),
        ("seeds = '0'", "seeds must be a list of integers"),
        ("eval_every = 2.5", "eval_every must be an integer"),
        ("mode = 'sum'", "mode must be one of loss, target, matched, projected, got 'sum'"),
        ("regime = 'keep'", "regime must be one of retain, mixed, discard, got 'keep'"),
        ("ramp_unit = 3", "ramp_unit must be one of env_steps, updates, got 3"),
        ("vectorizer = true", "vectorizer must be .*, got True"),
        ("smoothing = 'linear'", r"'smoothing' is a group of settings, write \[smoothing\]"),
        ("sac = 0.1", r"'sac' is a group of settings, write \[sac\]"),
        ("[ramp_steps]\nx = 1", "ramp_steps must be an integer"),
    ],
)
def test_value_of_the_wrong_type_names_file_setting_and_type(toml: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"my.toml: {words}"):
        applied(toml)


def test_settings_that_depend_on_each_other_are_set_together() -> None:
    # each of these is an error on its own
    made = applied("offline_fraction_schedule = 'cosine'\noffline_fraction_end = 0.0\noffline_fraction = 0.5")
    assert made.smoothing.controller(members=1).offline_share(10**9) == 0.0
    fork = applied("offline_updates = 0\nonline_steps = 0\npretrained = 'runs/x'")
    assert fork.pretrained == "runs/x"
    base = config(smoothing=SmoothingConfig(regime="mixed", offline_fraction=0.3))
    changed = apply_values(base, {"offline_fraction": 0.0, "smoothing": {"regime": "discard"}}, "x")
    assert (changed.smoothing.regime, changed.smoothing.offline_fraction) == ("discard", 0.0)
    assert base.smoothing.regime == "mixed"


def test_names_of_settings_are_unique_so_groups_may_be_left_out() -> None:
    def names(value: Any) -> list[str]:
        found: list[str] = []
        for f in dataclasses.fields(value):
            inner = getattr(value, f.name)
            found += [f.name, *(names(inner) if dataclasses.is_dataclass(inner) else [])]
        return found

    for agent in AGENTS:
        every = names(default_config("hopper-medium-v2", agent, "mujoco"))
        assert len(every) == len(set(every))


def test_every_setting_can_be_given_in_a_file() -> None:
    def check(value: Any, base: RunConfig[Any]) -> None:
        for f in dataclasses.fields(value):
            inner = getattr(value, f.name)
            if dataclasses.is_dataclass(inner):
                check(inner, base)
            elif inner is not None:
                plain = list(inner) if isinstance(inner, tuple) else inner
                assert apply_values(base, {f.name: plain}, "x") == base

    for agent in AGENTS:
        base = default_config("hopper-medium-v2", agent, "mujoco")
        check(base, base)


def test_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml does not exist"):
        read_toml(tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.toml cannot be read.*line 1"):
        read_toml(broken)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(broken)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path)
    good = tmp_path / "good.toml"
    good.write_text("[smoothing]\nschedule = 'jump'\n", encoding="utf-8")
    assert read_toml(good) == {"smoothing": {"schedule": "jump"}}


def test_unknown_agent_is_named_with_the_close_ones() -> None:
    with pytest.raises(ConfigError, match="no agent 'iqll'; did you mean iql"):
        default_config("hopper-medium-v2", "iqll", "mujoco")


# Ranges


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"agent": "iqll"}, "no agent 'iqll'; did you mean iql"),
        ({"agent": "cql"}, "agent cql needs settings of CQLConfig"),
        ({"online": "ppo"}, "online='ppo'; it offers sac, td3, same"),
        ({"seeds": ()}, "at least one seed"),
        ({"seeds": (1, 1)}, "seeds must be distinct"),
        ({"seeds": (-1,)}, "seeds must be distinct and not negative, got -1"),
        ({"offline_updates": -1}, "offline_updates"),
        ({"online_steps": -1}, "online_steps"),
        ({"random_steps": -1}, "random_steps"),
        ({"num_envs": 0}, "num_envs"),
        ({"batch_size": 0}, "batch_size"),
        ({"update_after": 0}, "update_after"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"log_every": 0}, "log_every"),
        ({"threads": 0}, "threads"),
        ({"utd": 0.0}, "utd"),
        ({"utd": float("nan")}, "utd"),
        ({"utd": float("inf")}, "utd"),
        ({"reward_scale": 0.0}, "reward_scale"),
        ({"reward_scale": -1.0}, "reward_scale"),
        ({"reward_scale": float("nan")}, "reward_scale"),
        ({"reward_shift": float("inf")}, "reward_shift"),
        ({"offline_updates": 0, "online_steps": 0}, "nothing to do"),
    ],
)
def test_run_setting_out_of_range_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**values)


def test_deterministic_agent_cannot_go_on_with_sac() -> None:
    with pytest.raises(ConfigError, match="agent td3_bc cannot go on with online='sac'; it offers td3, same"):
        RunConfig(hyper=TD3BCConfig(), agent="td3_bc", online="sac")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule": "liner"}, "no curve 'liner'.*performance_gate"),
        ({"schedule": "linear:0"}, "linear"),
        ({"actor_schedule": "liner"}, "no curve 'liner'"),
        ({"temperature_schedule": "steps:5:0"}, "at least one stair"),
        ({"ramp_steps": 0}, "ramp_steps"),
        ({"ramp_unit": "days"}, "unit must be"),
        ({"weight_in": "log"}, "weight_in must be"),
        ({"mode": "sum"}, "mode must be"),
        ({"regime": "keep"}, "regime must be one of retain, mixed, discard"),
        ({"offline_fraction": 1.5}, "offline_fraction must"),
        ({"offline_fraction": float("nan")}, "offline_fraction must"),
        ({"offline_fraction_end": -0.1}, "offline_fraction_end must"),
        ({"offline_fraction_schedule": "cosine"}, "no effect without offline_fraction_end"),
        ({"offline_fraction_end": 0.5, "offline_fraction_schedule": "liner"}, "no curve 'liner'"),
        ({"regime": "discard", "offline_fraction": 0.5}, "discard has no offline rows"),
        ({"regime": "discard", "offline_fraction_end": 0.5}, "discard has no offline rows"),
    ],
)
def test_smoothing_setting_out_of_range_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SmoothingConfig(**values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_episodes", 0),
        ("switch_episodes", 0),
        ("eval_envs", 0),
        ("eval_every", 0),
        ("offline_eval_every", -1),
    ],
)
def test_evaluation_setting_out_of_range_is_named(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=name):
        EvaluationConfig(**{name: value})


@pytest.mark.parametrize(
    ("key", "value", "agent"),
    [
        ("discount", 1.1, "iql"),
        ("discount", float("nan"), "iql"),
        ("tau", 0.0, "iql"),
        ("hidden_dims", [], "iql"),
        ("hidden_dims", [0], "iql"),
        ("num_critics", 0, "iql"),
        ("actor_lr", -1e-4, "iql"),
        ("critic_lr", 2.0, "iql"),
        ("expectile", 0.0, "iql"),
        ("expectile", 1.5, "iql"),
        ("beta", -1.0, "iql"),
        ("initial_temperature", 0.0, "iql"),
        ("cql_weight", -1.0, "cql"),
        ("cql_actions", 0, "cql"),
        ("bc_alpha", 0.0, "td3_bc"),
        ("actor_delay", 0, "td3_bc"),
        ("target_noise", -0.1, "td3"),
        ("noise_clip", -0.1, "td3"),
        ("exploration_noise", -0.1, "td3"),
        ("initial_temperature", -1.0, "sac"),
    ],
)
def test_agent_setting_out_of_range_is_named(key: str, value: object, agent: str) -> None:
    with pytest.raises(ConfigError, match=key):
        default_config("hopper-medium-v2", agent, "mujoco", {key: value})


# What the settings describe


def test_controller_is_the_one_described() -> None:
    made = SmoothingConfig(
        schedule="floor:0.2+linear",
        ramp_steps=300,
        ramp_unit="updates",
        critic_schedule="jump",
        mode="target",
        weight_in="effective",
        regime="mixed",
        offline_fraction_end=0.0,
        offline_fraction_schedule="linear:600",
    ).controller(members=2)
    assert made.rule == Floor(0.2, Linear(300))
    assert (made.members, made.unit, made.mode, made.weight_in) == (2, "updates", "target", "effective")
    made.start()
    assert made.mix().offline_fraction == 0.5
    made.advance(updates=150)
    assert {name: float(w[0]) for name, w in made.weights().items()} == {
        "actor": 0.5,
        "critic": 1.0,
        "value": 1.0,
        "temperature": 0.5,
    }
    assert made.mix().offline_fraction == 0.375


@pytest.mark.parametrize(("regime", "share"), [("retain", 0.0), ("mixed", 0.5), ("discard", 0.0)])
def test_offline_share_of_a_regime(regime: Any, share: float) -> None:
    assert SmoothingConfig(regime=regime).controller(members=1).offline_share(0) == share


def test_gate_gets_members_ramp_and_random_return() -> None:
    made = SmoothingConfig(schedule="performance_gate", ramp_steps=700).controller(members=3, random_return=-4.0)
    assert isinstance(made.rule, PerformanceGate)
    assert (made.rule.members, made.rule.config.ramp_steps, made.rule.random_return) == (3, 700, -4.0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("gate_share", 0.0, "gate_share must be in"),
        ("gate_retreat", -1.0, "gate_retreat must not"),
        ("gate_confidence", 1.0, "gate_confidence must be"),
        ("gate_window", 0, "gate_window must be"),
        ("gate_yardstick", 3, "gate_yardstick must be at least 4"),
        ("gate_ramp_episodes", 0, "gate_ramp_episodes must"),
        ("pd_kp", -1.0, "pd_kp must not"),
        ("pd_kd", float("nan"), "pd_kd must not"),
        ("pd_target", float("inf"), "pd_target must be"),
        ("pd_start", 0.0, "pd_start must be"),
        ("kl_limit", 0.0, "kl_limit must be positive"),
        ("kl_retreat", -1.0, "kl_retreat must not"),
        ("td_factor", 0.0, "td_factor must be positive"),
        ("agreement_decay", 1.0, "agreement_decay must be"),
        ("signal_every", 0.0, "signal_every must be positive"),
    ],
)
def test_adaptive_setting_out_of_range_is_named(name: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}"):
        AdaptiveConfig(**{name: value})


def test_adaptive_settings_reach_the_rule() -> None:
    adaptive = AdaptiveConfig(
        gate_window=3, kl_limit=0.3, td_factor=7.0, agreement_decay=0.1, signal_every=40.0, pd_kp=1.0
    )
    for name in ADAPTIVE_NAMES:
        smoothing = SmoothingConfig(schedule=name, ramp_steps=700)
        made = smoothing.controller(members=2, random_return=0.0, reference_return=1.0, rules=adaptive.rules())
        expected: Any = {
            "performance_gate": adaptive.rules().gate,
            "return_pd": adaptive.rules().pd,
            "kl_gate": adaptive.rules().kl,
            "td_gate": adaptive.rules().td,
            "gradient_agreement": adaptive.rules().agreement,
        }[name]
        if name != "return_pd":
            expected = dataclasses.replace(expected, ramp_steps=700.0)
        assert getattr(made.rule, "config", None) == expected


def test_rules_that_cannot_work_are_refused_before_anything_is_done() -> None:
    for name in ("performance_gate", "return_pd"):
        with pytest.raises(ConfigError, match=f"random_steps .*{name}"):
            config(smoothing=SmoothingConfig(schedule=name), random_steps=5)
    config(smoothing=SmoothingConfig(schedule="kl_gate"), random_steps=5)
    with pytest.raises(ConfigError, match="td_gate compares with offline rows"):
        config(smoothing=SmoothingConfig(schedule="td_gate", regime="discard"))
    with pytest.raises(ConfigError, match="choose performance_gate"):
        SmoothingConfig(schedule="return_pd").controller(members=1)


@pytest.mark.parametrize(
    ("budget", "every", "points"),
    [
        (100_000, 5000, [250, 500, 1000, 2000, 4000, *range(5000, 100_001, 5000)]),
        (20_000, None, [250, 500, *range(1000, 20_001, 1000)]),
        (2000, 300, [250, 300, 600, 900, 1200, 1500, 1800, 2000]),
        (1000, 5000, [250, 500, 1000]),
        (100, None, [*range(5, 101, 5)]),
        (7, None, [1, 2, 3, 4, 5, 6, 7]),
        (1, None, [1]),
        (250, 250, [250]),
    ],
)
def test_evaluations_are_log_spaced_then_regular_and_end_with_the_budget(
    budget: int, every: int | None, points: list[int]
) -> None:
    assert EvaluationConfig(eval_every=every).online_steps(budget) == points


def test_settings_are_plain_values_for_the_manifest() -> None:
    plain = json.loads(json.dumps(applied("seeds = [0, 1]").to_dict()))
    assert plain["seeds"] == [0, 1]
    assert plain["smoothing"]["schedule"] == "linear"
    assert plain["hyper"]["sac"]["learn_temperature"] is True


# Presets


def test_presets_name_agents_that_exist() -> None:
    assert set(PRESETS) <= set(AGENTS)
    for tables in PRESETS.values():
        assert set(tables) <= {*DOMAINS, "adroit", "default"}


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("domain", [*DOMAINS, "adroit"])
def test_preset_loads_for_every_agent_and_domain(agent: str, domain: str) -> None:
    cls = AGENTS[agent].config_class
    preset = cls.preset(domain)
    table = PRESETS.get(agent, {}).get(domain, PRESETS.get(agent, {}).get("default", {}))
    assert set(table) <= {f.name for f in dataclasses.fields(cls)}
    plain = preset.to_dict()
    default = cls().to_dict()
    for key, value in table.items():
        assert plain[key] == (tuple(value) if isinstance(value, list) else value)
    assert {key: value for key, value in plain.items() if key not in table} == {
        key: value for key, value in default.items() if key not in table
    }


def test_presets_are_the_papers() -> None:
    iql = {domain: IQLConfig.preset(domain) for domain in ("mujoco", "antmaze", "adroit")}
    assert {domain: (c.expectile, c.beta) for domain, c in iql.items()} == {
        "mujoco": (0.7, 3.0),
        "antmaze": (0.9, 10.0),
        "adroit": (0.7, 0.5),
    }
    assert CQLConfig.preset("antmaze").cql_weight == 5.0
    assert CQLConfig.preset("mujoco").cql_weight in (5.0, 10.0)
    td3_bc = TD3BCConfig.preset("mujoco")
    assert (td3_bc.bc_alpha, td3_bc.normalize_observations, td3_bc.td3.actor_delay) == (2.5, True, 2)
