"""Switch hygiene in whole runs: off costs nothing, populations, checkpoints, flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents import load_agent
from o2o_smooth.agents.iql import IQLConfig
from o2o_smooth.agents.storage import read_json, read_tensors
from o2o_smooth.cli_options import parse
from o2o_smooth.data import from_hdf5
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.training import run as run_module
from o2o_smooth.training.config import (
    AnchorConfig,
    AveragingConfig,
    EvaluationConfig,
    HygieneConfig,
    RunConfig,
    SmoothingConfig,
    default_config,
)
from o2o_smooth.training.graphed import GraphedLearner
from o2o_smooth.training.guard import GuardedLearner
from o2o_smooth.training.hygiene import acting_agent
from o2o_smooth.training.population import run_population
from o2o_smooth.training.prepare import prepare
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.run import ONLINE_EVALUATIONS, Run, run
from o2o_smooth.training.sharing import groups
from tests.training.test_population import assert_same_run, data, lines, small

__all__ = ["data"]

EVERYTHING: dict[str, Any] = {
    "hygiene": HygieneConfig(40, 6, "actor", 10, "interpolate"),
    "anchors": AnchorConfig(
        anchor_kl=0.5, anchor_kl_decay=0.99, anchor_bc=0.1, anchor_ewc=5.0, anchor_ewc_rows=64, anchor_parts="all"
    ),
    "averaging": AveragingConfig(sfa_period=0.3, sfa_share=0.2, ema_decay=0.9),
}


def files(folder: Path) -> dict[str, Any]:
    """All that a run wrote and no clock went into."""
    found: dict[str, Any] = {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors") if p.is_file()
    }
    found |= {f"{p.parent.name}/{p.name}": p.read_bytes() for p in folder.rglob("*.json") if p.name != "manifest.json"}
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = lines(folder, name)
        found[name] = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]
    return found


@pytest.mark.parametrize("agent", ["iql", "td3_bc"])
def test_a_run_without_any_of_it_is_bit_for_bit_one_that_does_not_know_of_it(
    agent: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(small(data, tmp_path / "a", agent))

    class Unaware(GraphedLearner):
        def tend(self, *groups: Any, updates: int) -> None:
            return None

    monkeypatch.setattr(run_module, "GuardedLearner", Unaware)
    second = run(small(data, tmp_path / "b", agent))
    assert files(first) == files(second)
    assert {p.name for p in (first / "checkpoints" / "final").iterdir()} == {
        "agent.json", "agent.safetensors", "run.json", "controller.json", "checksums.json",
    }  # fmt: skip


def test_arms_are_one_until_the_warm_up_ends_and_ramps_begin_there(data: Path, tmp_path: Path) -> None:
    base = run(small(data, tmp_path / "base", online_steps=0))
    warm = HygieneConfig(warm_up_steps=100)
    common: dict[str, Any] = {"pretrained": str(base), "hygiene": warm, "utd": 1.0, "log_every": 2}
    folders = [
        run(small(data, tmp_path / name, smoothing=SmoothingConfig(schedule), **common))
        for name, schedule in (("a", "jump"), ("b", "linear:100"), ("c", "performance_gate:50"))
    ]
    collected = [from_hdf5([folder / "online" / "seed-3.hdf5"]).transitions for folder in folders]
    # Two lanes of 150 steps each; the policy of the first update acts at 104.
    lane = [np.stack([c.obs[:150], c.obs[150:]], 1).reshape(300, -1) for c in collected]
    for other in lane[1:]:
        np.testing.assert_array_equal(lane[0][:104], other[:104])
    assert not np.array_equal(lane[0], lane[1])
    weights = {
        row["env_steps"]: row["smoothing/actor_weight"]
        for row in lines(folders[1], "metrics.jsonl")
        if row["phase"] == "online" and row["seed"] == 3
    }
    assert min(weights) == 102
    assert all(weight == pytest.approx(min(1.0, (t - 100) / 100)) for t, weight in weights.items())


def hygiene_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "checkpoints" / "final" / "hygiene.safetensors")


@pytest.mark.parametrize("agent", ["iql", pytest.param("td3_bc", marks=pytest.mark.slow)])
def test_each_run_of_a_population_is_what_it_would_be_alone(agent: str, data: Path, tmp_path: Path) -> None:
    together: dict[str, Any] = {**EVERYTHING, "utd": 0.5}
    if agent == "td3_bc":  # which has no temperature
        together["hygiene"] = dataclasses.replace(EVERYTHING["hygiene"], switch_temperature="carry")
    schedules = ["jump", "linear:60", "stay"]
    configs = [
        small(data, tmp_path / "together" / str(i), agent, smoothing=SmoothingConfig(schedule), **together)
        for i, schedule in enumerate(schedules)
    ]
    for config, folder in zip(configs, run_population(configs), strict=True):
        alone = run(dataclasses.replace(config, out=str(tmp_path / "alone" / folder.name)))
        assert_same_run(alone, folder)
        mine, theirs = hygiene_tensors(folder), hygiene_tensors(alone)
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-3, msg=name)
        state = [read_json(p / "checkpoints" / "final" / "hygiene.json") for p in (folder, alone)]
        assert state[0] == state[1] == {"updates": 118}  # every second of 300 - 64 steps


def test_evaluations_show_the_running_mean_and_it_can_be_had_back(data: Path, tmp_path: Path) -> None:
    evaluation = EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, eval_every=300)
    config = small(
        data, tmp_path / "run", averaging=AveragingConfig(ema_decay=0.999), evaluation=evaluation, utd=1.0,
        hyper={"actor_lr": 0.05},
    )  # fmt: skip
    folder = run(config)
    final = folder / "checkpoints" / "final"
    mean, raw = acting_agent(final), load_agent(final)
    again = Run(prepare(dataclasses.replace(config, out=str(tmp_path / "again")), Silent()), Silent())
    rows = [row for row in lines(folder, "evaluations.jsonl") if row["env_steps"] == 300]
    for agent, same in ((mean, True), (raw, False)):
        again.agent = agent
        returns = again._run_evaluation(ONLINE_EVALUATIONS + 300, 2).returns.mean(1)
        assert np.allclose(returns, [row["return_mean"] for row in rows], rtol=1e-6) == same
    assert again._evaluator is not None
    again._evaluator.close()
    switch = load_agent(folder / "checkpoints" / "switch")
    assert torch.equal(
        acting_agent(folder / "checkpoints" / "switch").networks.actor.net.weights[0],
        switch.networks.actor.net.weights[0],
    )
    tensors = hygiene_tensors(folder)
    for kept, parameter in zip(range(len(tensors)), mean.networks.actor.parameters(), strict=True):
        assert torch.equal(tensors[f"ema.mean.{kept}"], parameter.detach())
    torch.save({}, final / "hygiene.safetensors")
    with pytest.raises(CheckpointError, match=r"hygiene\.safetensors"):
        acting_agent(final)


def test_the_running_mean_collects(data: Path, tmp_path: Path) -> None:
    """A mean that never moves collects the same whatever is trained; the raw actor does not."""
    seen = {}
    for decay in (0.0, 1.0 - 1e-12):
        for schedule in ("jump", "stay"):
            config = small(
                data,
                tmp_path / f"{schedule}-{decay}",
                smoothing=SmoothingConfig(schedule),
                averaging=AveragingConfig(ema_decay=decay),
                utd=1.0,
                hyper={"actor_lr": 0.01},
            )
            seen[decay, schedule] = from_hdf5([run(config) / "online" / "seed-5.hdf5"]).transitions.obs
    (raw, mean) = ((seen[d, "jump"], seen[d, "stay"]) for d in (0.0, 1.0 - 1e-12))
    assert not np.array_equal(*raw)
    np.testing.assert_array_equal(*mean)


def test_a_fork_reads_the_rows_that_its_anchors_need(data: Path, tmp_path: Path) -> None:
    base = str(run(small(data, tmp_path / "base", online_steps=0)))
    fork: dict[str, Any] = {"pretrained": base, "online_steps": 80, "smoothing": SmoothingConfig("jump")}
    fork["dataset"] = None
    for name, anchors, smoothing in (
        ("bc", AnchorConfig(anchor_bc=1.0), SmoothingConfig("jump")),
        ("ewc", AnchorConfig(anchor_ewc=1.0, anchor_ewc_rows=8), SmoothingConfig("jump", regime="discard")),
    ):
        config = small(data, tmp_path / name, anchors=anchors, **{**fork, "smoothing": smoothing, "dataset": str(data)})
        rows = lines(run(config), "metrics.jsonl")
        assert any(f"actor/anchor_{name}" in row for row in rows if row["phase"] == "online")
    assert prepare(small(data, tmp_path / "kl", anchors=AnchorConfig(anchor_kl=1.0), **fork), Silent()).dataset is None
    scratch: dict[str, Any] = {"offline_updates": 0, "dataset": None, "smoothing": SmoothingConfig("jump")}
    with pytest.raises(ConfigError, match="anchor_ewc needs offline rows"):
        prepare(small(data, tmp_path / "none", "sac", anchors=AnchorConfig(anchor_ewc=1.0), **scratch), Silent())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hygiene": HygieneConfig(warm_up_steps=300)}, r"warm_up_steps \(300\) leaves no update"),
        ({"hygiene": HygieneConfig(warm_up_steps=5), "random_steps": 5}, "warm_up_steps collects .* random_steps"),
        (
            {"hygiene": HygieneConfig(critic_first_updates=47)},
            r"critic_first_updates \(47\) leaves .* 47 online updates",
        ),
        (
            {"anchors": AnchorConfig(anchor_bc=1.0), "smoothing": SmoothingConfig(regime="discard")},
            "anchor_bc needs offline rows, which regime discard drops",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], words: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        small(data, Path("nowhere"), **changes)
    small(
        data, Path("nowhere"), online_steps=0, hygiene=HygieneConfig(warm_up_steps=300)
    )  # there is nothing to warm up


def test_flags_and_files_reach_every_setting(data: Path) -> None:
    base: RunConfig[Any] = RunConfig(hyper=IQLConfig())
    chosen: dict[str, dict[str, Any]] = {
        group: {f.name: getattr(EVERYTHING[group], f.name) for f in dataclasses.fields(EVERYTHING[group])}
        for group in EVERYTHING
    }
    flags = [f"--{k.replace('_', '-')}={v}" for values in chosen.values() for k, v in values.items()]
    assert parse(RunConfig[IQLConfig], base, flags, "o2o-smooth run") == dataclasses.replace(base, **EVERYTHING)
    flat = {k.replace("_", "-"): v for values in chosen.values() for k, v in values.items()}
    for values in (flat, chosen):
        made = default_config("hopper-medium-v2", "iql", "mujoco", values)
        assert {name: getattr(made, name) for name in EVERYTHING} == EVERYTHING
    with pytest.raises(ConfigError, match="switch_temperature must be one of carry, reset, interpolate, got 'cary'"):
        default_config("hopper-medium-v2", "iql", "mujoco", {"switch_temperature": "cary"})


def test_runs_that_differ_in_it_do_not_share_a_learner(data: Path, tmp_path: Path) -> None:
    base = small(data, tmp_path / "a")
    for group, setting, value in (
        ("hygiene", "warm_up_steps", 10),
        ("anchors", "anchor_kl", 0.5),
        ("averaging", "ema_decay", 0.9),
    ):
        other = dataclasses.replace(base, **{group: dataclasses.replace(getattr(base, group), **{setting: value})})
        assert f"they differ in {setting} (" in groups([base, other])[1].reason
        assert len(groups([other, dataclasses.replace(other, seeds=(9,))])) == 1


def test_a_gpu_is_told_why_its_graphs_rest(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    class Grouped(GuardedLearner):
        def tend(self, *groups: Any, updates: int) -> Any:
            made = super().tend(*groups, updates=updates)
            self.grouped = True  # for the note alone
            return made

        def online_updates(self, mixes: Any) -> Any:
            self.grouped = False
            return super().online_updates(mixes)

    monkeypatch.setattr(run_module, "GuardedLearner", Grouped)
    run(small(data, tmp_path / "a", online_steps=80, anchors=AnchorConfig(anchor_l2=1.0)), Listener())
    assert "updates go one by one, without CUDA graphs, while anchors acts on them" in notes
