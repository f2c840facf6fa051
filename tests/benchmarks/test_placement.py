"""Where runs train: what the choice looks at, and that it adds up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from o2o_smooth.agents import IQLConfig
from o2o_smooth.benchmarks.placement import ENV_STEP_S, PREPARE_S, SPEEDS, START_S, Speed, cores, env_step_s, place
from o2o_smooth.benchmarks.speed_limit import useful_flops
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig

FAST = Speed(overhead_s=0.0, flops_per_s=1e11, second_thread=1.0, neighbour=1.0)  # threads and processes alike
OVERHEAD = Speed(overhead_s=1.0, flops_per_s=1e18, second_thread=0.0, neighbour=1.0)
SLOW_THREADS = Speed(overhead_s=0.0, flops_per_s=1e11, second_thread=0.0, neighbour=1.0)


def arms(count: int, **changes: Any) -> list[RunConfig[Any]]:
    """Forks that differ in their ramp; hardly any environment steps besides the online ones."""
    settings: dict[str, Any] = {
        "hyper": IQLConfig(hidden_dims=(512, 512)),
        "task": "Pendulum-v1",
        "pretrained": "base",
        "seeds": (0, 1),
        "online_steps": 20_000,
        "evaluation": EvaluationConfig(eval_episodes=1, eval_every=10_000),
        **changes,
    }
    return [
        RunConfig(smoothing=SmoothingConfig("linear", ramp_steps=1000 * (k + 1)), out=f"runs/{k}", **settings)
        for k in range(count)
    ]


def test_a_stack_wins_where_an_update_costs_the_same_for_all() -> None:
    chosen = place(arms(4, online_steps=1000, utd=4.0), cpus=2, speed=OVERHEAD)
    assert chosen.how == "stack"
    assert chosen.jobs == ((0, 1, 2, 3),)
    assert "stack (4 runs, 8 members in one learner): predicted" in chosen.why
    assert "as processes" in chosen.why


def test_processes_win_where_threads_do_not_help_a_stack() -> None:
    chosen = place(arms(4), cpus=2, speed=SLOW_THREADS)
    assert chosen.how == "processes"
    assert chosen.workers == 2
    assert sorted(i for job in chosen.jobs for i in job) == [0, 1, 2, 3]
    assert "processes (4 runs, 8 members on 2 single-thread processes" in chosen.why
    assert "as a stack" in chosen.why


def test_runs_share_a_process_where_rounds_would_cost_more() -> None:
    some = Speed(overhead_s=0.01, flops_per_s=1e11, second_thread=0.0, neighbour=1.0)
    chosen = place(arms(4), how="processes", cpus=2, speed=some)
    assert chosen.jobs == ((0, 1), (2, 3))
    assert "up to 2 runs in each): as asked" in chosen.why


def test_prediction_adds_up() -> None:
    configs = arms(1, utd=0.5)
    # In the ramp both objectives are computed.
    flops = 2 * useful_flops(configs[0].hyper, obs_dim=17, action_dim=6, batch=256, members=2)
    points = len(configs[0].evaluation.online_steps(20_000))
    environment = PREPARE_S + 2 * (20_000 + points * 200) * ENV_STEP_S["classic"]  # Pendulum's episodes have 200 steps
    assert place(configs, how="stack", cpus=1, speed=FAST).seconds == pytest.approx(environment + 1e4 * flops / 1e11)
    two = place(configs, how="stack", cpus=2, speed=FAST).seconds
    assert two == pytest.approx(environment + 1e4 * flops / 2e11)
    crowded = Speed(0.0, 1e11, 1.0, neighbour=0.5)
    four = place(arms(4, utd=0.5), how="processes", cpus=2, speed=crowded).seconds
    assert four == pytest.approx(START_S + 2 * (environment + 1e4 * flops / 5e10), rel=0.1)


def test_a_run_beside_one_in_its_ramp_pays_for_both_objectives() -> None:
    jumps = [dataclasses.replace(c, smoothing=SmoothingConfig("jump")) for c in arms(2)]
    mixed = [jumps[0], arms(2)[1]]
    pure, ramp = (place(runs, how="stack", cpus=1, speed=SLOW_THREADS).seconds for runs in (jumps, mixed))
    environment = place(jumps, how="stack", cpus=1, speed=Speed(0.0, 1e30, 0.0, 1.0)).seconds
    assert ramp - environment == pytest.approx(2 * (pure - environment))


def test_a_stack_pretrains_a_seed_once() -> None:
    fresh: dict[str, Any] = {"pretrained": None, "offline_updates": 100_000}
    one, four = (place(arms(n, **fresh), how="stack", cpus=2, speed=SLOW_THREADS).seconds for n in (1, 4))
    forks = place(arms(4), how="stack", cpus=2, speed=SLOW_THREADS).seconds
    single = place(arms(1), how="stack", cpus=2, speed=SLOW_THREADS).seconds
    assert four - forks == pytest.approx(one - single)


def test_a_gpu_always_takes_a_stack_and_an_order_is_an_order() -> None:
    gpu = arms(3, device="cuda")
    for how in ("auto", "stack", "processes"):
        assert place(gpu, how=how, cpus=2, speed=SLOW_THREADS).how == "stack"
    assert "on cuda members cost little" in place(gpu).why
    assert place(arms(3), how="stack", cpus=2, speed=SLOW_THREADS).how == "stack"
    assert place(arms(3), how="processes", cpus=2, speed=OVERHEAD).how == "processes"
    with pytest.raises(ConfigError, match="auto, stack or processes, got 'heap'"):
        place(arms(2), how="heap")  # type: ignore[arg-type]


def test_runs_that_cannot_share_a_learner_are_counted_one_after_the_other() -> None:
    configs = arms(3)
    configs[1] = dataclasses.replace(configs[1], batch_size=128)
    chosen = place(configs, how="stack", cpus=2, speed=FAST)
    assert chosen.jobs == ((0, 2), (1,))
    assert "2 learners, one after the other" in chosen.why
    parts = [place(part, how="stack", cpus=2, speed=FAST).seconds for part in ([configs[0], configs[2]], [configs[1]])]
    assert chosen.seconds == pytest.approx(sum(parts))


def test_the_table_is_sane_and_the_same_settings_choose_the_same_way() -> None:
    assert cores() >= 1
    for speed in SPEEDS.values():
        assert 0 < speed.overhead_s < 0.1
        assert speed.flops_per_s > 1e9
        assert 0 <= speed.second_thread <= 1
        assert 0 < speed.neighbour <= 1
    assert place(arms(4), cpus=2) == place(arms(4), cpus=2)


def test_an_environment_costs_what_computes_it() -> None:
    names = ("corridor-mixed-v0", "Pendulum-v1", "D4RL/pointmaze/umaze-dense-v2", "hopper-medium-v2", "pen-cloned-v1")
    costs = [env_step_s(name) for name in names]
    assert costs == sorted(costs) and len(set(costs[:4])) == 4 and costs[3] == costs[4]
