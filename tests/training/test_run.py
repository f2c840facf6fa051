"""Whole runs, small: what they write, that they repeat, fork, and count as they say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents import AGENTS
from o2o_smooth.data import from_npz
from o2o_smooth.data.batch import Drawn
from o2o_smooth.errors import CheckpointError, ConfigError, DataError, EnvError
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.learner import Learner
from o2o_smooth.training.prepare import prepare
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.run import Diverged, Run, run
from o2o_smooth.training.threads import default_threads

EVALUATION_FIELDS = {
    "phase", "env_steps", "updates", "seed", "return_mean", "return_std", "episodes", "score", "length_mean", "success",
    "provenance",
}  # fmt: skip
OFFLINE_REWARD = 7.0  # no step of Pendulum earns this: it marks offline rows


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
        rewards=np.full(n, OFFLINE_REWARD, np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % 200 == 199,
    )
    return path


def small(data: Path, out: Path, agent: str = "iql", **changes: Any) -> RunConfig[Any]:
    """A run of a second or two."""
    smoothing = changes.pop("smoothing", SmoothingConfig("linear", ramp_steps=150))
    evaluation = changes.pop(
        "evaluation", EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, eval_every=150)
    )
    hyper = changes.pop("hyper", None) or AGENTS[agent].config_class(hidden_dims=(8, 8))
    settings: dict[str, Any] = {
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
    }
    return RunConfig(hyper=hyper, smoothing=smoothing, evaluation=evaluation, **{**settings, **changes})


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_run_writes_what_other_tools_read(data: Path, tmp_path: Path) -> None:
    out = run(small(data, tmp_path / "run"))
    assert {p.name for p in out.iterdir()} == {
        "manifest.json", "evaluations.jsonl", "metrics.jsonl", "audit.jsonl", "checkpoints", "stability.png", "online",
    }  # fmt: skip
    rows = lines(out, "evaluations.jsonl")
    assert all(set(row) == EVALUATION_FIELDS for row in rows)
    assert {row["phase"] for row in rows} == {"offline", "switch", "online"}
    assert {row["seed"] for row in rows} == {3, 5}
    assert all(row["score"] is None and row["episodes"] == 2 for row in rows)  # Pendulum has no reference scores
    online = [row["env_steps"] for row in rows if row["phase"] == "online" and row["seed"] == 3]
    assert online == [150, 300]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "completed"
    assert manifest["seeds"] == [3, 5]
    assert manifest["dataset"]["sha256"]
    assert manifest["dataset"]["transitions"] == 1000
    assert manifest["config"]["smoothing"]["schedule"] == "linear"
    assert manifest["versions"]["torch"]
    assert manifest["device"] == "cpu"
    metrics = lines(out, "metrics.jsonl")
    mixed = [m for m in metrics if m["phase"] == "online" and 0 < m["smoothing/actor_weight"] < 1]
    assert mixed
    assert all(0 < m["smoothing/actor_effective_weight"] < 1 for m in mixed)
    assert (out / "stability.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "checkpoints" / "switch" / "run.json").is_file()
    assert (out / "checkpoints" / "final" / "controller.json").is_file()


def test_same_seed_twice_gives_identical_evaluations_and_another_does_not(data: Path, tmp_path: Path) -> None:
    first, again = (run(small(data, tmp_path / name)) / "evaluations.jsonl" for name in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()
    other = run(small(data, tmp_path / "c", seeds=(3, 6)))
    a = [r for r in lines(first.parent, "evaluations.jsonl") if r["seed"] == 5]
    c = [r for r in lines(other, "evaluations.jsonl") if r["seed"] == 6]
    assert all(x["return_mean"] != y["return_mean"] for x, y in zip(a, c, strict=True))
    # A seed's numbers do not depend on which other seeds train beside it, to float tolerance.
    shared = [
        [r["return_mean"] for r in lines(folder, "evaluations.jsonl") if r["seed"] == 3 and r["env_steps"] == 0]
        for folder in (first.parent, other)
    ]
    np.testing.assert_allclose(shared[0], shared[1], rtol=1e-3)


def test_arms_fork_from_one_checkpoint(data: Path, tmp_path: Path) -> None:
    base = run(small(data, tmp_path / "base", online_steps=0))
    assert not [r for r in lines(base, "evaluations.jsonl") if r["phase"] == "online"]
    arms = {}
    for name in ("jump", "stay"):
        config = small(data, tmp_path / name, pretrained=str(base), smoothing=SmoothingConfig(name))
        arms[name] = lines(run(config), "evaluations.jsonl")
    switch = [r for r in lines(base, "evaluations.jsonl") if r["phase"] == "switch"]
    for rows in arms.values():
        assert [r for r in rows if r["phase"] == "switch"] == switch
        assert not [r for r in rows if r["phase"] == "offline"]
    assert arms["jump"] != arms["stay"]
    # A fork equals the run that went straight through.
    straight = lines(run(small(data, tmp_path / "straight", smoothing=SmoothingConfig("jump"))), "evaluations.jsonl")
    assert [r for r in straight if r["phase"] != "offline"] == arms["jump"]


def test_fork_refuses_what_does_not_belong_together(data: Path, tmp_path: Path) -> None:
    base = str(run(small(data, tmp_path / "base", online_steps=0)))
    arm = small(data, tmp_path / "arm", pretrained=base)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seeds": (1,)}, "use --seeds 3 5"),
        ({"task": "MountainCarContinuous-v0"}, "pretrained on Pendulum-v1"),
        ({"reward_scale": 2.0}, "rewards"),
        ({"hyper": AGENTS["iql"].config_class(hidden_dims=(9, 8))}, "widths"),
        ({"pretrained": str(tmp_path)}, "no checkpoint"),
    ]
    for change, text in cases:
        with pytest.raises(CheckpointError, match=text):
            run(dataclasses.replace(arm, **change))
    other = tmp_path / "other.npz"
    arrays = dict(np.load(data))
    arrays["rewards"] = arrays["rewards"] + 1
    np.savez(other, **arrays)
    with pytest.raises(CheckpointError, match="other contents"):
        run(dataclasses.replace(arm, dataset=str(other)))
    assert not (tmp_path / "arm").exists()


def test_changed_settings_of_a_fork_take_effect(data: Path, tmp_path: Path) -> None:
    base = str(run(small(data, tmp_path / "base", online_steps=0)))
    hyper = AGENTS["iql"].config_class(hidden_dims=(8, 8), actor_lr=0.0)
    out = run(small(data, tmp_path / "arm", pretrained=base, hyper=hyper, smoothing=SmoothingConfig("jump")))
    rows = [r["return_mean"] for r in lines(out, "evaluations.jsonl") if r["seed"] == 3]
    agent_before = AGENTS["iql"].load(Path(base) / "checkpoints" / "switch")
    agent_after = AGENTS["iql"].load(out / "checkpoints" / "final")
    for a, b in zip(agent_before.networks.actor.parameters(), agent_after.networks.actor.parameters(), strict=True):
        assert torch.equal(a, b)  # a learning rate of 0
    assert rows


@pytest.mark.parametrize("agent", list(AGENTS))
@pytest.mark.parametrize("regime", ["retain", "mixed", "discard"])
def test_every_agent_runs_in_every_regime(agent: str, regime: Any, data: Path, tmp_path: Path) -> None:
    smoothing = SmoothingConfig("linear", ramp_steps=60, regime=regime)
    config = small(data, tmp_path / "run", agent, smoothing=smoothing, online_steps=120, offline_updates=4)
    assert lines(run(config), "evaluations.jsonl")


@pytest.mark.parametrize(
    "smoothing",
    [
        SmoothingConfig("performance_gate", ramp_steps=100),
        SmoothingConfig("cosine", ramp_steps=100, mode="target"),
        SmoothingConfig("steps:100:2", mode="matched"),
        SmoothingConfig("linear", ramp_steps=100, mode="projected"),
        SmoothingConfig("kl_gate", ramp_steps=100),
        SmoothingConfig("td_gate", ramp_steps=100),
        SmoothingConfig("gradient_agreement", ramp_steps=100, ramp_unit="updates"),
        SmoothingConfig("linear", ramp_steps=100, weight_in="effective"),
        SmoothingConfig("linear", ramp_steps=100, ramp_unit="updates", actor_schedule="hold:50+linear"),
        SmoothingConfig("linear", ramp_steps=100, offline_fraction=0.5, offline_fraction_end=0.0),
        SmoothingConfig("jump", regime="mixed", offline_fraction=1.0),
    ],
    ids=lambda s: f"{s.schedule}-{s.mode}-{s.weight_in}-{s.ramp_unit}-{s.offline_fraction}",
)
def test_every_way_to_smooth_runs(smoothing: SmoothingConfig, data: Path, tmp_path: Path) -> None:
    out = run(small(data, tmp_path / "run", smoothing=smoothing, online_steps=200))
    rows = [m for m in lines(out, "metrics.jsonl") if m["phase"] == "online"]
    assert all(0 <= m["smoothing/actor_weight"] <= 1 for m in rows)


@pytest.mark.parametrize("weight_in", ["raw", "effective"])
def test_runs_are_the_same_whoever_steps_the_environments(weight_in: Any, data: Path, tmp_path: Path) -> None:
    smoothing = SmoothingConfig("linear", ramp_steps=150, weight_in=weight_in)
    runs = [
        run(small(data, tmp_path / f"{v}-{o}", vectorizer=v, overlap=o, online_steps=100, smoothing=smoothing))
        for v, o in (("sync", "off"), ("sync", "on"), ("async", "off"), ("async", "on"))
    ]
    assert len({(out / "evaluations.jsonl").read_bytes() for out in runs}) == 1
    rows = [
        [{k: v for k, v in row.items() if k != "time/updates_per_s"} for row in lines(out, "metrics.jsonl")]
        for out in runs
    ]
    assert rows[0] == rows[1] == rows[2] == rows[3]


def test_what_cannot_step_the_task_is_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="envpool does not step task Pendulum-v1"):
        run(small(data, tmp_path / "run", vectorizer="envpool"))
    assert not (tmp_path / "run").exists()
    assert run(small(data, tmp_path / "offline", vectorizer="envpool", online_steps=0)).is_dir()  # nothing is stepped
    with pytest.raises(ConfigError, match="overlap must be auto, on or off"):
        small(data, tmp_path / "run", overlap="perhaps")


def _started(config: RunConfig[Any]) -> Run:
    """A run with offline rows and some online rows, before any update."""
    from o2o_smooth.data.buffer import ReplayBuffer

    run_ = Run(prepare(config, Silent()), Silent(), "test")
    assert run_.dataset is not None
    run_.learner.offline_rows = ReplayBuffer.from_transitions(run_.dataset.transitions, 2, discount=0.99)
    run_.learner.online_rows = run_.online_rows = ReplayBuffer(2, 50, 3, 1)
    run_.online_rows.add(np.zeros((2, 50, run_.online_rows._rows.shape[1]), np.float32))
    return run_


@pytest.mark.parametrize(
    ("regime", "share", "expected"),
    [("retain", None, 0.0), ("retain", 0.25, 0.25), ("mixed", None, 0.5), ("mixed", 1.0, 1.0), ("discard", None, 0.0)],
)
def test_online_batch_has_the_wanted_share_of_offline_rows(
    regime: Any, share: float | None, expected: float, data: Path, tmp_path: Path
) -> None:
    smoothing = SmoothingConfig("linear", regime=regime, offline_fraction=share)
    config = small(data, tmp_path / "run", smoothing=smoothing, batch_size=40)
    state = _started(config)
    controller = smoothing.controller(members=2)
    controller.start()
    batch = state.learner._online_batch(controller.mix())
    offline = (batch.reward == OFFLINE_REWARD).float().mean(-1)
    assert offline.tolist() == [expected, expected]
    assert batch.obs.shape == (2, 40, 3)


def test_regimes_feed_each_objective_the_right_rows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """retain: offline rows to one side and online rows to the other; mixed and discard: one batch for both."""
    seen: list[tuple[float, float | None]] = []

    def spy(self: Any, batch: Any, online_batch: Any = None, *, mix: Any = None) -> dict[str, Any]:
        batch, online_batch = (one.batch() if isinstance(one, Drawn) else one for one in (batch, online_batch))
        share = (batch.reward == OFFLINE_REWARD).float().mean().item()
        other = None if online_batch is None else (online_batch.reward == OFFLINE_REWARD).float().mean().item()
        seen.append((share, other))
        return {}

    monkeypatch.setattr("o2o_smooth.agents.base.Agent.update", spy)
    expected = {
        ("retain", 0.5): (1.0, 0.0),
        ("retain", 0.0): (1.0, None),  # online rows are not even drawn
        ("retain", 1.0): (0.0, None),
        ("mixed", 0.5): (0.5, None),
        ("mixed", 0.0): (0.5, None),
        ("discard", 0.5): (0.0, None),
    }
    for (regime, w), shares in expected.items():
        smoothing = SmoothingConfig("linear", regime=regime)  # type: ignore[arg-type]
        state = _started(small(data, tmp_path / f"{regime}{w}", smoothing=smoothing, batch_size=40))
        fraction = 0.5 if regime == "mixed" else 0.0
        state.learner.online_update(dataclasses.replace(Mix.uniform(w, 2), offline_fraction=fraction))
        assert seen[-1] == shares, (regime, w)


@pytest.mark.parametrize(("utd", "expected"), [(1.0, 100 - 64), (0.25, 9), (2.0, 72)])
def test_updates_are_counted_per_environment_step(utd: float, expected: int, data: Path, tmp_path: Path) -> None:
    out = run(small(data, tmp_path / "run", utd=utd, online_steps=100, offline_updates=10, num_envs=4))
    final = json.loads((out / "checkpoints" / "final" / "agent.json").read_text())
    assert final["updates"] == 10 + expected


def test_agents_without_pretraining_explore_at_random_first(tmp_path: Path) -> None:
    config = RunConfig(
        hyper=AGENTS["sac"].config_class(hidden_dims=(8, 8)),
        smoothing=SmoothingConfig("jump", regime="discard"),
        evaluation=EvaluationConfig(eval_episodes=1, switch_episodes=1, eval_every=100),
        task="Pendulum-v1",
        agent="sac",
        offline_updates=0,
        online_steps=100,
        random_steps=50,
        batch_size=8,
        out=str(tmp_path / "run"),
    )
    out = run(config)
    assert json.loads((out / "manifest.json").read_text())["dataset"] is None
    with pytest.raises(ConfigError, match="no offline data"):
        run(dataclasses.replace(config, smoothing=SmoothingConfig("linear"), out=str(tmp_path / "b")))


def test_one_reward_map_for_dataset_and_collector_and_raw_returns_in_evaluations(data: Path, tmp_path: Path) -> None:
    plain = small(data, tmp_path / "a", online_steps=100, offline_updates=0)
    scaled = dataclasses.replace(plain, reward_scale=0.1, reward_shift=-1.0, out=str(tmp_path / "b"))
    state = Run(prepare(scaled, Silent()), Silent(), "x")
    assert state.dataset is not None
    np.testing.assert_allclose(state.reward_map(state.dataset.transitions.reward), OFFLINE_REWARD * 0.1 - 1.0)
    switch = [
        [r["return_mean"] for r in lines(run(c), "evaluations.jsonl") if r["phase"] == "switch"]
        for c in (plain, scaled)
    ]
    assert switch[0] == switch[1]
    final = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert final["task"]["reward_scale"] == 0.1


def test_divergence_stops_the_run_and_names_component_and_seed(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", reward_scale=1e30)
    with pytest.raises(Diverged, match=r"(critic|value)/.* of seed 3 is (inf|nan)"):
        run(config)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"
    assert not (tmp_path / "run" / "checkpoints" / "switch").exists()


def test_nothing_is_written_before_everything_is_checked(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    broken = tmp_path / "broken.npz"
    arrays = dict(np.load(data))
    arrays["observations"][17, 1] = np.nan
    np.savez(broken, **arrays)
    with pytest.raises(DataError, match="row 17"):
        run(small(broken, out))
    narrow = tmp_path / "narrow.npz"
    np.savez(narrow, **{**dict(np.load(data)), "actions": np.zeros((1000, 2), np.float32)})
    with pytest.raises(DataError, match="actions 2 wide"):
        run(small(narrow, out))
    assert not out.exists()


def test_a_finished_run_is_replaced_only_when_asked(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", online_steps=0, offline_updates=2)
    run(config)
    with pytest.raises(ConfigError, match="not empty"):
        run(config)
    run(dataclasses.replace(config, overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="not a run"):
        run(dataclasses.replace(config, overwrite=True, out=str(tmp_path / "mine")))
    with pytest.raises(ConfigError, match="would replace the checkpoint"):
        run(dataclasses.replace(config, overwrite=True, pretrained=str(tmp_path / "run"), online_steps=10))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_sinks_follow_a_run(data: Path, tmp_path: Path) -> None:
    out = run(small(data, tmp_path / "run", tensorboard=True, online_steps=100))
    assert list(out.rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("agent", "width", "seeds", "expected"),
    [
        ("iql", 128, (0,), 1),
        ("iql", 128, (0, 1, 2, 3), None),
        ("iql", 256, (0,), None),
        ("cql", 128, (0,), None),
        ("td3_bc", 64, (0,), 1),
    ],
)
def test_small_networks_train_on_one_thread(
    agent: str, width: int, seeds: tuple[int, ...], expected: int | None
) -> None:
    hyper = AGENTS[agent].config_class(hidden_dims=(width, width))
    batch = 128 if width < 256 else 256
    assert default_threads(RunConfig(hyper=hyper, agent=agent, seeds=seeds, batch_size=batch)) == expected


def test_actions_in_another_unit_are_warned_about(data: Path, tmp_path: Path) -> None:
    arrays = dict(np.load(data))
    arrays["actions"] = arrays["actions"] * 50
    np.savez(tmp_path / "wide.npz", **arrays)
    notes: list[str] = []

    class Listener(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    prepare(small(tmp_path / "wide.npz", tmp_path / "run"), Listener())
    assert any("outside the task's action box" in note for note in notes)
    notes.clear()
    prepare(small(data, tmp_path / "run"), Listener())
    assert not any("action box" in note for note in notes)


def test_interrupted_run_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Learner, "online_update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(small(data, tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "interrupted"
    assert (tmp_path / "run" / "checkpoints" / "switch" / "run.json").is_file()


def test_rewards_are_scaled_by_the_range_of_returns_and_forks_keep_the_scale(data: Path, tmp_path: Path) -> None:
    hyper = AGENTS["iql"].config_class(hidden_dims=(8, 8), normalize_rewards=True)
    with np.load(data) as archive:
        arrays = {key: archive[key] for key in archive.files}
    (rewards,) = [key for key in arrays if key.startswith("reward")]
    arrays[rewards][0] -= 100.0  # else all episodes earn the same
    data = tmp_path / "uneven.npz"
    np.savez(data, **arrays)
    out = run(small(data, tmp_path / "run", hyper=hyper))
    manifest = json.loads((out / "manifest.json").read_text())
    returns = from_npz(data).transitions.episode_returns
    scale = 1000.0 / (returns.max() - returns.min())
    assert manifest["task"]["reward_scale"] == pytest.approx(scale)
    fork = run(small(data, tmp_path / "fork", hyper=hyper, pretrained=str(out)))
    assert json.loads((fork / "manifest.json").read_text())["task"]["reward_scale"] == manifest["task"]["reward_scale"]
    told = run(small(data, tmp_path / "told", hyper=hyper, reward_scale=0.5))
    assert json.loads((told / "manifest.json").read_text())["task"]["reward_scale"] == 0.5


def test_rule_that_needs_reference_scores_is_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    config = small(data, tmp_path / "run", smoothing=SmoothingConfig("return_pd"), online_steps=50)
    with pytest.raises(ConfigError, match=r"the task has none: .*choose performance_gate"):
        run(config)
    assert not (tmp_path / "run").exists()
