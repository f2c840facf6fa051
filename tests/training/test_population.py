"""Runs that share a population: each is what it would have been alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents import AGENTS, SACObjectiveConfig, TD3ObjectiveConfig, load_agent
from o2o_smooth.data import from_hdf5
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.learner import Learner
from o2o_smooth.training.output import Diverged
from o2o_smooth.training.population import run_population
from o2o_smooth.training.prepare import prepare_population
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.run import run
from o2o_smooth.training.sharing import groups, make_members


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five made-up Pendulum episodes."""
    rng = np.random.default_rng(0)
    n = 1000
    path = tmp_path_factory.mktemp("data") / "pendulum.npz"
    np.savez(
        path,
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % 200 == 199,
    )
    return path


def small(data: Path, out: Path, agent: str = "iql", **changes: Any) -> RunConfig[Any]:
    """A run of a second or two."""
    hyper = changes.pop("hyper", {})
    settings: dict[str, Any] = {
        "smoothing": SmoothingConfig("linear", ramp_steps=150),
        "evaluation": EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, eval_every=150),
        "task": "Pendulum-v1",
        "agent": agent,
        "dataset": str(data),
        "seeds": (3, 5),
        "offline_updates": 20,
        "online_steps": 300,
        "num_envs": 2,
        "batch_size": 16,
        "log_every": 50,
        "utd": 0.2,
        "out": str(out),
        **changes,
    }
    return RunConfig(hyper=AGENTS[agent].config_class(**{"hidden_dims": (8, 8), **hyper}), **settings)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def assert_same_run(a: Path, b: Path, *, rtol: float = 1e-3) -> None:
    """Two folders hold the same run, up to float rounding and what the clock says."""
    # A curve in effective weight has its gradients measured outside of its ramp too, and shows their cosine if alone.
    config = json.loads((a / "manifest.json").read_text())["config"]
    passing = "cosine" if config["smoothing"]["weight_in"] == "effective" else "time/"
    for name in ("evaluations.jsonl", "metrics.jsonl"):
        for x, y in zip(lines(a, name), lines(b, name), strict=True):
            x, y = ({k: v for k, v in row.items() if passing not in k and k != "time/updates_per_s"} for row in (x, y))
            assert x.keys() == y.keys(), name
            for key, value in x.items():
                if isinstance(value, float):
                    assert y[key] == pytest.approx(value, rel=rtol, abs=1e-3), (name, key, x["env_steps"])
                else:
                    assert y[key] == value, (name, key)
    assert {p.relative_to(a) for p in a.rglob("*")} == {p.relative_to(b) for p in b.rglob("*")}
    for file in (a / "online").iterdir():
        one, two = (from_hdf5([p / "online" / file.name]).transitions for p in (a, b))
        for name in ("obs", "action", "reward"):
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=rtol, atol=1e-3, err_msg=name)
    for folder in ("switch", "final"):
        first, second = (load_agent(p / "checkpoints" / folder) for p in (a, b))
        assert (first.config, first.seeds, first.updates) == (second.config, second.seeds, second.updates)
        assert first.overrides == second.overrides
        for key, tensor in first.networks.state_dict().items():
            torch.testing.assert_close(second.networks.state_dict()[key], tensor, rtol=rtol, atol=1e-3, msg=key)
    state = [json.loads((p / "checkpoints" / "final" / "controller.json").read_text()) for p in (a, b)]
    assert state[0].keys() == state[1].keys()
    assert state[0]["rule"] == state[1]["rule"]
    clock = {"command", "config", "started", "finished", "wall_s", "population", "threads"}
    manifests = [json.loads((p / "manifest.json").read_text()) for p in (a, b)]
    assert {k: v for k, v in manifests[0].items() if k not in clock} == {
        k: v for k, v in manifests[1].items() if k not in clock
    }


@pytest.mark.parametrize(
    ("agent", "arms"),
    [
        (
            "iql",
            [
                {"smoothing": SmoothingConfig("jump")},
                {"smoothing": SmoothingConfig("linear", ramp_steps=150), "hyper": {"expectile": 0.9, "tau": 0.01}},
                {"smoothing": SmoothingConfig("performance_gate", ramp_steps=100)},
                {"smoothing": SmoothingConfig("stay"), "hyper": {"actor_lr": 1e-3, "discount": 0.9}},
            ],
        ),
        (
            "cql",
            [
                {"hyper": {"cql_weight": 1.0, "cql_actions": 2}},
                {"hyper": {"cql_actions": 2, "sac": SACObjectiveConfig(target_entropy=-3.0)}},
            ],
        ),
        (
            "td3_bc",
            [
                {"smoothing": SmoothingConfig("jump"), "hyper": {"bc_alpha": 1.0}},
                {"hyper": {"td3": TD3ObjectiveConfig(target_noise=0.4, exploration_noise=0.3)}},
            ],
        ),
    ],
    ids=["iql", "cql", "td3_bc"],
)
def test_each_run_of_a_population_is_what_it_would_be_alone(
    agent: str, arms: list[dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    together = [small(data, tmp_path / "together" / str(i), agent, **arm) for i, arm in enumerate(arms)]
    folders = run_population(together)
    assert folders == [tmp_path / "together" / str(i) for i in range(len(arms))]
    for config, folder in zip(together, folders, strict=True):
        alone = run(dataclasses.replace(config, out=str(tmp_path / "alone" / folder.name)))
        assert_same_run(alone, folder)
    assert len({(folder / "evaluations.jsonl").read_bytes() for folder in folders}) == len(arms)  # they do differ


@pytest.mark.parametrize(
    "shared",
    [
        {"weight_in": "effective"},
        {"ramp_unit": "updates", "offline_fraction": 0.5},
        pytest.param({"mode": "matched"}, marks=pytest.mark.slow),
        pytest.param({"mode": "target"}, marks=pytest.mark.slow),
        pytest.param(
            {"regime": "mixed", "offline_fraction": 0.5, "offline_fraction_end": 0.0, "ramp_steps": 150},
            marks=pytest.mark.slow,
        ),
        pytest.param({"regime": "discard"}, marks=pytest.mark.slow),
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_arms_in_and_out_of_their_ramp_do_not_disturb_each_other(
    shared: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    schedules = ["jump", "hold:100+linear:150", "steps:80:2"]
    base = str(run(small(data, tmp_path / "base", online_steps=0)))
    configs = [
        small(
            data,
            tmp_path / "together" / str(i),
            pretrained=base,
            smoothing=SmoothingConfig(schedule, actor_schedule="linear:50" if i == 2 else None, **shared),
        )
        for i, schedule in enumerate(schedules)
    ]
    for config, folder in zip(configs, run_population(configs), strict=True):
        alone = run(dataclasses.replace(config, out=str(tmp_path / "alone" / folder.name)))
        assert_same_run(alone, folder)


def test_a_seed_is_pretrained_once_for_runs_that_differ_online_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    update = Learner.offline_update

    def spy(self: Learner) -> Any:
        seen.append(self.agent.members)
        return update(self)

    monkeypatch.setattr(Learner, "offline_update", spy)
    arms: list[dict[str, Any]] = [
        {"smoothing": SmoothingConfig("jump")},
        {"hyper": {"sac": SACObjectiveConfig(target_entropy=-0.5)}},
        {"hyper": {"beta": 1.0}},
    ]
    run_population([small(data, tmp_path / str(i), online_steps=20, **arm) for i, arm in enumerate(arms)])
    assert seen == [4] * 20  # two seeds, with two values of beta
    switch = [load_agent(tmp_path / str(i) / "checkpoints" / "switch") for i in range(3)]
    first, same, other = (agent.networks.actor.net.weights[0] for agent in switch)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert [agent.settings.sac.target_entropy for agent in switch] == [-1.0, -0.5, -1.0]


def test_runs_that_cannot_share_are_sorted_and_the_reason_is_told(data: Path, tmp_path: Path) -> None:
    base = small(data, tmp_path / "a")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"seeds": (7,), "out": "b"}, ""),
        ({"smoothing": SmoothingConfig("jump", regime="mixed")}, "regime (retain and mixed)"),
        ({"batch_size": 17}, "batch_size (16 and 17)"),
        ({"hyper": dataclasses.replace(base.hyper, hidden_dims=(9, 8))}, "hidden_dims"),
        (
            {"hyper": dataclasses.replace(base.hyper, td3=TD3ObjectiveConfig(actor_delay=3))},
            "td3.actor_delay (2 and 3)",
        ),
        ({"reward_scale": 2.0}, "reward_scale (None and 2.0)"),
        ({"evaluation": EvaluationConfig(eval_episodes=3)}, "eval_episodes (2 and 3)"),
    ]
    for change, text in changes:
        other = dataclasses.replace(base, **change)
        found = groups([base, other, base], ["a", "b", "c"])
        assert found[0].indices == ((0, 2) if text else (0, 1, 2))
        assert found[0].reason == ""
        if text:
            assert found[1].reason.startswith("'b' cannot share a learner with 'a'")
            assert text in found[1].reason
            with pytest.raises(ConfigError, match="run them apart"):
                prepare_population([base, other], Silent())
    lagrange = [small(data, tmp_path, "cql", hyper={"cql_target_gap": gap}) for gap in (None, 1.0, 2.0)]
    assert [g.indices for g in groups(lagrange)] == [(0,), (1, 2)]
    calibrated = [small(data, tmp_path, "cql", hyper={"calibrated": True, "discount": d}) for d in (0.9, 0.99)]
    assert "discount (0.9 and 0.99)" in groups(calibrated)[1].reason


def test_groups_run_one_after_the_other(data: Path, tmp_path: Path) -> None:
    notes: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    quick: dict[str, Any] = {"online_steps": 20, "offline_updates": 2}
    configs = [
        small(data, tmp_path / "a", **quick),
        small(data, tmp_path / "b", batch_size=8, **quick),
        small(data, tmp_path / "c", smoothing=SmoothingConfig("jump"), **quick),
    ]
    folders = run_population(configs, Listener(), names=["a", "b", "c"])
    assert folders == [tmp_path / name for name in "abc"]
    population = [json.loads((folder / "manifest.json").read_text())["population"] for folder in folders]
    assert population == [{"members": 4, "runs": 2}, {"members": 2, "runs": 1}, {"members": 4, "runs": 2}]
    assert ["'b' cannot share" in note for note in notes].count(True) == 1, notes


def test_members_of_one_seed_draw_the_same_and_runs_may_have_seeds_of_their_own(data: Path, tmp_path: Path) -> None:
    configs = [small(data, tmp_path / "a"), small(data, tmp_path / "b", seeds=(5, 9))]
    members = make_members(configs)
    assert members.seeds == (3, 5, 5, 9)
    assert members.pretrained_as == (0, 1, 1, 2)
    prepared = prepare_population(configs, Silent())
    assert prepared.agent.seeds == (3, 5, 9)
    assert [arm.members for arm in prepared.arms] == [range(2), range(2, 4)]


def test_what_does_not_belong_into_one_population_is_refused(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "a")
    with pytest.raises(ConfigError, match="two runs would write to"):
        run_population([config, config])
    base = str(run(small(data, tmp_path / "base", online_steps=0, offline_updates=2)))
    fork = small(data, tmp_path / "fork", pretrained=base)
    with pytest.raises(CheckpointError, match="use --seeds 3 5"):
        run_population([fork, dataclasses.replace(fork, seeds=(3, 6), out=str(tmp_path / "b"))])
    assert not (tmp_path / "fork").exists()


def test_a_diverging_run_is_named_and_the_others_end_as_interrupted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["fine", "wild"]
    configs = [small(data, tmp_path / n, hyper={"beta": b}) for n, b in zip(names, (1.0, 3.0), strict=True)]
    update = Learner.online_update

    def break_one(self: Learner, mix: Any) -> Any:
        self.agent.networks.critic.weights[0].data[2] = float("nan")
        return update(self, mix)

    monkeypatch.setattr(Learner, "online_update", break_one)
    with pytest.raises(Diverged, match=r"wild: training diverged: .* of seed 3 is (inf|nan)"):
        run_population(configs, names=names)
    status = [json.loads((tmp_path / n / "manifest.json").read_text())["status"] for n in ("fine", "wild")]
    assert status == ["interrupted", "failed"]


def test_a_checkpoint_of_a_population_forks_like_any_other(data: Path, tmp_path: Path) -> None:
    configs = [
        small(data, tmp_path / "a", hyper={"expectile": 0.6}, offline_updates=5, online_steps=20),
        small(data, tmp_path / "b", hyper={"expectile": 0.9}, offline_updates=5, online_steps=20),
    ]
    _, b = run_population(configs)
    agent = load_agent(b / "checkpoints" / "final")
    assert agent.config.to_dict()["expectile"] == 0.9
    assert agent.overrides == ({}, {})
    fork = small(data, tmp_path / "fork", pretrained=str(b), hyper={"expectile": 0.9}, online_steps=20)
    assert run(fork).is_dir()
