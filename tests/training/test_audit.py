"""The audit of the switch: its numbers against float64 references, its rhythm, and that it changes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.data.batch import Batch
from o2o_smooth.data.buffer import ReplayBuffer, pack
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.smoothing.objective import Mix
from o2o_smooth.training.audit import Audit, Rhythm, offline_audit_rows, rhythm, saved_audit_rows
from o2o_smooth.training.audit_rates import rate_warnings
from o2o_smooth.training.config import EvaluationConfig, SmoothingConfig, SwitchConfig
from o2o_smooth.training.learner import Learner
from o2o_smooth.training.population import run_population
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.run import run
from tests.training.test_run import data, lines, small  # noqa: F401

Array = NDArray[np.float64]
OFTEN = SwitchConfig(audit_every=16)


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def buffer(seed: int, rows: int, *, members: int = 2, shared: bool = False) -> ReplayBuffer:
    rng = np.random.default_rng(seed)
    rings = 1 if shared else members
    made = ReplayBuffer(members, rows, 3, 2, shared=shared)
    made.add(
        pack(
            rng.normal(size=(rings, rows, 3)).astype(np.float32),
            rng.uniform(-1, 1, (rings, rows, 2)).astype(np.float32),
            rng.normal(size=(rings, rows)).astype(np.float32),
            rng.normal(size=(rings, rows, 3)).astype(np.float32),
            rng.random((rings, rows)) < 0.2,
            np.zeros((rings, rows), np.bool_),
            np.zeros((rings, rows), np.float32),
        )
    )
    return made


def learner(name: str = "iql", online: str | None = None, *, offline: bool = True, regime: Any = "retain") -> Learner:
    cls = AGENTS[name]
    agent = cls(
        gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
        gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
        cls.config_class(hidden_dims=(16, 12)),
        online=online,
        seeds=(3, 8),
    )
    agent.set_normalizer(np.array([0.1, -0.2, 0.3]), np.array([1.5, 0.5, 2.0]))
    rows = buffer(0, 90, shared=True) if offline else None
    return Learner(agent, batch_size=32, offline_rows=rows, online_rows=buffer(1, 70), regime=regime)


def make_audit(own: Learner, *, count: int = 20) -> tuple[Audit, list[tuple[int, int, Mapping[str, Array]]]]:
    seen: list[tuple[int, int, Mapping[str, Array]]] = []
    rows = None if own.offline_rows is None else offline_audit_rows(own.offline_rows, count)
    return Audit(own, lambda *x: seen.append(x), rhythm=Rhythm(16), count=count, offline=rows), seen


# The numbers


class Reference:
    """An agent's networks in float64 numpy."""

    def __init__(self, agent: Agent) -> None:
        self.state = {k: v.detach().double().numpy().copy() for k, v in agent.networks.state_dict().items()}

    def layers(self, name: str, x: Array) -> list[Array]:
        """(M, n, in) -> activations of the hidden layers and the output, (M, E, n, width)."""
        weights = sorted(k for k in self.state if k.startswith(f"{name}.weights."))
        h, found = x[:, None], []
        for i, key in enumerate(weights):
            h = h @ self.state[key] + self.state[key.replace("weights", "biases")]
            h = np.maximum(h, 0) if i < len(weights) - 1 else h
            found.append(h)
        return found

    def obs(self, obs: Array) -> Array:
        return np.asarray((obs - self.state["obs_mean"]) / self.state["obs_std"])

    def q(self, rows: dict[str, Array], name: str = "critic") -> list[Array]:
        return self.layers(name, np.concatenate([self.obs(rows["obs"]), rows["action"]], -1))


def plain(rows: Batch) -> dict[str, Array]:
    found = {k: v.double().numpy() for k, v in rows._asdict().items()}
    return {k: v[None].repeat(2, 0) if v.ndim == (2 if k in ("obs", "action", "next_obs") else 1) else v
            for k, v in found.items()}  # fmt: skip


def cka(x: Array, y: Array) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    top = np.linalg.norm(y.T @ x) ** 2
    return float(top / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def gaussian(out: Array) -> tuple[Array, Array]:
    mean, log_std = np.split(out[:, 0], 2, -1)
    return mean, np.clip(log_std, -5, 2)


def test_every_number_is_that_of_a_float64_reference() -> None:
    own = learner("iql", "sac")
    audit, seen = make_audit(own)
    weights = {"actor": [0.25, 1.0], "critic": [0.5, 0.75], "value": [0.5, 0.75], "temperature": [0.0, 1.0]}
    mix = Mix({k: np.array(v) for k, v in weights.items()}, offline_fraction=0.25)
    audit.look(64, 0, mix)
    then = Reference(own.agent)
    for _ in range(30):
        own.online_update(Mix.uniform(0.5, 2))
    audit.look(94, 30, mix)
    now, found = Reference(own.agent), seen[-1][2]
    assert own.offline_rows is not None
    assert own.online_rows is not None
    rows, fresh = plain(offline_audit_rows(own.offline_rows, 20)), plain(own.online_rows.newest(20))

    def check(name: str, expected: Any, rtol: float = 1e-4) -> None:
        np.testing.assert_allclose(found[f"switch/{name}"], expected, rtol=rtol, atol=1e-6, err_msg=name)

    (a, la), (b, lb) = (gaussian(r.layers("actor.net", r.obs(rows["obs"]))[-1]) for r in (now, then))
    kl = lb - la + (np.exp(2 * la) + (a - b) ** 2) / (2 * np.exp(2 * lb)) - 0.5
    check("kl", kl.sum(-1).mean(-1))
    change = (now.q(rows)[-1] - then.q(rows)[-1])[..., 0]
    check("q_drift", change.mean((1, 2)))
    check("q_distance", np.sqrt((change**2).mean((1, 2))))
    for name in ("actor", "critic", "value"):
        x = [
            r.q(rows) if name == "critic" else r.layers(f"{name}.net" if name == "actor" else name, r.obs(rows["obs"]))
            for r in (now, then)
        ]
        copies = x[0][-2].shape[1]
        same = [np.mean([cka(x[0][-2][m, e], x[1][-2][m, e]) for e in range(copies)]) for m in range(2)]
        check(f"{name}_cka", same)
        activity = [h.mean(2) for h in x[0][:-1]]
        low = [s <= 0.025 * s.mean(-1, keepdims=True) for s in activity]
        check(f"{name}_dormant", [np.mean(np.concatenate([s[m].ravel() for s in low])) for m in range(2)])
    noise = own.agent.draws.normal("probe/next", 0, (1, 20, 2)).double().numpy()
    alpha = np.exp(now.state["log_alpha"])
    for name, r in (("offline", rows), ("online", fresh)):
        value = now.layers("value", now.obs(r["next_obs"]))[-1][:, 0, :, 0]
        mean, log_std = gaussian(now.layers("actor.net", now.obs(r["next_obs"]))[-1])
        u = mean + np.exp(log_std) * noise[:, 0]
        log_prob = -0.5 * noise[:, 0] ** 2 - log_std - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(u) ** 2)
        following = {"obs": r["next_obs"], "action": np.tanh(u)}
        soft = now.q(following, "target_critic")[-1][..., 0].min(1) - alpha[:, None] * log_prob.sum(-1)
        q, errors = now.q(r)[-1][..., 0], []
        for tail in (value, soft):
            y = r["reward"] + 0.99 * (1 - r["terminated"]) * tail
            errors.append(((q - y[:, None]) ** 2).mean((1, 2)))
        w = mix.weights["critic"]
        check(f"td_error_{name}_source", errors[0])
        check(f"td_error_{name}", (1 - w) * errors[0] + w * errors[1])
    check("temperature", alpha)
    check("offline_fraction", [0.25, 0.25], 0)
    for name, w in mix.weights.items():
        check(f"{name}_weight", w, 0)
        check(f"{name}_lr", [3e-4, 3e-4], 0)
        for kind, moments in (("first", own.agent.optimizer.first), ("second", own.agent.optimizer.second)):
            norms = [np.sqrt(sum(float(x[m].double().square().sum()) for x in moments[name])) for m in range(2)]
            check(f"{name}_{kind}_moment", norms)
    report = own.agent.gradient_report(*own.rows(mix))  # type: ignore[arg-type]
    for name, g in report.items():
        for side, norm in (("offline", g.norm_offline), ("online", g.norm_online), ("cosine", g.cosine)):
            check(f"{name}_gradient_{side}", norm.numpy(), 1e-3)
        a, b, w = g.norm_offline.numpy(), g.norm_online.numpy(), mix.weights[name]
        check(f"{name}_effective_weight", w * b / ((1 - w) * a + w * b), 1e-3)
    assert {"switch/value_gradient_offline", "switch/temperature_gradient_online"} <= set(found)
    assert not {"switch/value_gradient_online", "switch/value_effective_weight"} & set(found)


def test_at_the_switch_nothing_has_drifted() -> None:
    audit, seen = make_audit(learner())
    audit.look(64, 0, Mix.uniform(0.0, 2))
    found = seen[0][2]
    for name in ("kl", "q_drift", "q_distance"):
        assert found[f"switch/{name}"].tolist() == [0.0, 0.0]
    for name in ("actor", "critic", "value"):
        np.testing.assert_allclose(found[f"switch/{name}_cka"], 1.0, rtol=1e-9)
    assert all(np.isfinite(v).all() and v.shape == (2,) for v in found.values())


def test_matched_gradients_have_the_weight_itself_as_effective_weight() -> None:
    audit, _ = make_audit(learner())
    found = audit.measure(Mix.uniform(0.3, 2, mode="matched"))
    assert found["switch/actor_effective_weight"].tolist() == [0.3, 0.3]
    assert audit.measure(Mix.uniform(0.3, 2))["switch/actor_effective_weight"].tolist() != [0.3, 0.3]


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("regime", ["retain", "mixed", "discard"])
def test_a_measurement_moves_nothing(name: str, regime: Any) -> None:
    own = learner(name, regime=regime)
    own.online_update(Mix.uniform(0.5, 2))
    if regime == "discard":
        own.offline_rows = None
    audit, _ = make_audit(own)
    agent = own.agent
    tensors = [*agent.networks.state_dict().values(), *agent.optimizer.state_tensors().values()]
    before = [t.clone() for t in tensors]
    gradients = [None if p.grad is None else p.grad.clone() for p in agent.networks.parameters()]
    rng, counters = torch.get_rng_state(), (agent.updates, agent.acts)
    for w in (0.0, 0.5, 1.0):
        audit.measure(Mix.uniform(w, 2))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    assert (agent.updates, agent.acts) == counters
    for parameter, gradient in zip(agent.networks.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_deterministic_actors_are_audited_under_another_name() -> None:
    audit, _ = make_audit(learner("td3_bc"))
    found = audit.measure(Mix.uniform(0.5, 2))
    assert "switch/action_distance" in found
    assert not {"switch/kl", "switch/temperature", "switch/value_cka"} & set(found)


def test_without_offline_rows_the_first_online_ones_are_the_fixed_ones() -> None:
    own = learner(offline=False, regime="discard")
    audit, seen = make_audit(own)
    audit.look(64, 0, Mix.uniform(1.0, 2))
    own.online_update(Mix.uniform(1.0, 2))
    audit.look(65, 1, Mix.uniform(1.0, 2))
    assert (seen[1][2]["switch/kl"] > 0).all()
    assert "switch/td_error_online" in seen[0][2]
    assert "switch/td_error_offline" not in seen[0][2]


def test_fixed_rows_depend_on_the_data_alone_and_are_each_other() -> None:
    rows = buffer(0, 90, shared=True)
    first = offline_audit_rows(rows, 20)
    assert torch.equal(first.obs, offline_audit_rows(rows, 20).obs)
    assert first.obs.shape == (20, 3)
    assert len(torch.unique(first.obs, dim=0)) == 20
    assert offline_audit_rows(rows, 500).obs.shape == (90, 3)


def test_the_newest_rows_are_the_last_written_also_around_the_ring() -> None:
    ring = ReplayBuffer(2, 5, 1, 1)
    for k in range(7):
        one = np.full((2, 1, 1), k, np.float32)
        flags = np.zeros((2, 1), np.bool_)
        ring.add(pack(one, one, one[..., 0], one, flags, flags))
        expected = list(range(max(0, k - 2), k + 1))
        assert ring.newest(3).reward.tolist() == [expected, expected]
    assert ring.newest(50).reward[0].tolist() == [2, 3, 4, 5, 6]


# The rhythm


def points(found: Rhythm, until: int) -> list[int]:
    at, seen = 0, []
    while at <= until:
        seen.append(at)
        at = found.after(at)
    return seen


def test_audits_are_log_spaced_and_then_regular() -> None:
    assert points(Rhythm(16), 70) == [0, 1, 2, 4, 8, 16, 32, 48, 64]
    assert points(Rhythm(100, ratio=4), 300) == [0, 1, 4, 16, 64, 164, 264]
    assert rhythm(100_000, log_every=1000) == Rhythm(1000)
    assert rhythm(100_000, log_every=10) == Rhythm(500)
    assert rhythm(100_000, log_every=10, draws=32) == Rhythm(1600)  # CQL's objective is several times as dear
    assert rhythm(100, log_every=1, every=7) == Rhythm(7)


@pytest.mark.parametrize("draws", [0, 2, 32, 42])
@pytest.mark.parametrize("updates", [10, 100, 266, 1000, 1500, 5000, 100_000])
def test_audits_are_one_for_a_hundred_and_fifty_updates_at_most(updates: int, draws: int) -> None:
    found = rhythm(updates, log_every=updates / 100, draws=draws)
    count = len({*points(found, updates), updates})
    assert count <= found.count(updates)
    assert count <= max(2, updates / 150)
    if updates >= 100_000:
        assert points(found, 128) == [0, 1, 2, 4, 8, 16, 32, 64, 128]


# In a run


def audits(out: Path) -> list[dict[str, Any]]:
    return lines(out, "audit.jsonl")


def test_a_run_writes_a_row_per_moment_and_seed(data: Path, tmp_path: Path) -> None:  # noqa: F811
    out = run(small(data, tmp_path / "run", switch=OFTEN))
    rows = audits(out)
    assert [r["seed"] for r in rows[:2]] == [3, 5]
    one = [r for r in rows if r["seed"] == 5]
    assert [r["switch/updates"] for r in one] == [0, 1, 2, 4, 8, 16, 32, 47]
    assert [r["updates"] for r in one] == [20 + r["switch/updates"] for r in one]
    assert len({(r["updates"], r["env_steps"], r["seed"]) for r in rows}) == len(rows)
    assert one[-1]["env_steps"] == 300
    assert one[-1]["switch/kl"] > one[1]["switch/kl"] > 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["audit"] == {"compared_on": "offline", "rows": 128, "every_updates": 16}
    off = run(small(data, tmp_path / "off", switch=SwitchConfig(audit=False)))
    assert not (off / "audit.jsonl").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"utd": 3.0, "num_envs": 3, "online_steps": 90, "update_after": 30},
        {"smoothing": SmoothingConfig("linear", ramp_steps=150, weight_in="effective"), "overlap": "on"},
        {"agent": "td3_bc", "smoothing": SmoothingConfig("linear", ramp_steps=150, regime="discard")},
        {"agent": "cql", "smoothing": SmoothingConfig("jump"), "online_steps": 120},
    ],
    ids=["plain", "several updates a step", "effective", "discard", "cql"],
)
def test_a_run_is_the_same_with_and_without_audits(changes: dict[str, Any], data: Path, tmp_path: Path) -> None:  # noqa: F811
    outs = []
    for name, switch in (("with", OFTEN), ("without", SwitchConfig(audit=False))):
        outs.append(run(small(data, tmp_path / name, switch=switch, **changes)))
    moments = [r["switch/updates"] for r in audits(outs[0]) if r["seed"] == 3]
    assert moments[:5] == [0, 1, 2, 4, 8]  # also where several updates are due at once
    files = ["evaluations.jsonl", "checkpoints/final/agent.safetensors", "checkpoints/final/controller.json"]
    for file in files:
        assert (outs[0] / file).read_bytes() == (outs[1] / file).read_bytes()
    metrics = [[{k: v for k, v in r.items() if "time/" not in k} for r in lines(o, "metrics.jsonl")] for o in outs]
    assert metrics[0] == metrics[1]


def close(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert set(a) == set(b)
    for name in set(a) - {"phase"}:
        assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-5), name


def test_a_member_is_audited_as_it_would_be_alone(data: Path, tmp_path: Path) -> None:  # noqa: F811
    arms = [
        small(data, tmp_path / name, switch=OFTEN, smoothing=SmoothingConfig(name, ramp_steps=60))
        for name in ("jump", "linear")
    ]
    both = run_population(arms)
    for out, config in zip(both, arms, strict=True):
        alone = run(dataclasses.replace(config, out=str(tmp_path / "alone" / out.name), seeds=(5,)))
        together = [r for r in audits(out) if r["seed"] == 5]
        for a, b in zip(together[:4], audits(alone)[:4], strict=True):
            close(a, b)


def test_a_fork_without_offline_data_is_compared_on_its_checkpoints_rows(data: Path, tmp_path: Path) -> None:  # noqa: F811
    base = run(small(data, tmp_path / "base", online_steps=0))
    found = {}
    for name, dataset in (("with", str(data)), ("without", None)):
        config = small(data, tmp_path / name, pretrained=str(base), smoothing=SmoothingConfig("jump"), switch=OFTEN)
        out = run(dataclasses.replace(config, dataset=dataset))
        assert json.loads((out / "manifest.json").read_text())["audit"]["compared_on"] == "offline"
        found[name] = [r for r in audits(out) if r["seed"] == 3]
    drifts = ["switch/kl", "switch/q_drift", "switch/critic_cka", "switch/td_error_offline", "switch/actor_dormant"]
    for a, b in zip(found["with"], found["without"], strict=True):
        assert [a[name] for name in drifts] == [b[name] for name in drifts]
    (base / "checkpoints" / "switch" / "audit.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"audit.safetensors is absent or broken"):
        saved_audit_rows(base / "checkpoints" / "switch", torch.device("cpu"))


def test_an_agent_without_pretraining_is_audited_on_online_rows(tmp_path: Path) -> None:
    config = small(Path("none"), tmp_path / "run", "sac", dataset=None, offline_updates=0, online_steps=120)
    out = run(dataclasses.replace(config, smoothing=SmoothingConfig("jump", regime="discard")))
    assert json.loads((out / "manifest.json").read_text())["audit"]["compared_on"] == "online"
    assert audits(out)[-1]["switch/kl"] > 0


def test_what_is_not_finite_draws_one_remark(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    measure = Audit.measure

    def broken(audit: Audit, mix: Mix) -> Any:
        return {**measure(audit, mix), "switch/kl": np.array([0.0, np.inf])}

    monkeypatch.setattr(Audit, "measure", broken)
    notes = Notes()
    out = run(small(data, tmp_path / "run", switch=OFTEN), notes)
    assert [n for n in notes.said if "audit" in n] == ["audit: switch/kl of seed 5 not finite after 20 updates"]
    assert [r["switch/kl"] for r in audits(out)[:2]] == [0.0, None]


def test_rows_go_to_tensorboard_too(data: Path, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run(small(data, tmp_path / "run", switch=OFTEN, tensorboard=True, online_steps=120))
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"switch/kl", "switch/kl/seed_3", "switch/critic_cka"} <= set(events.Tags()["scalars"])
    last = audits(out)[-2:]
    mean = float(np.mean([row["switch/kl"] for row in last]))
    assert events.Scalars("switch/kl")[-1].value == pytest.approx(mean, rel=1e-5)


# Learning rates


def test_rates_are_compared_with_those_of_the_pretraining() -> None:
    now = {"actor": np.array([3e-4, 1e-4]), "critic": np.array([3e-4, 3e-4]), "temperature": np.array([0.0, 3e-4])}
    before = {"actor": [3e-4, 3e-4], "critic": [3e-4, 3e-4]}
    actor, temperature = rate_warnings(now, before, (3, 5))
    assert "the actor's learning rate is 0.0001 at the switch (seed 5), and was 0.0003 in pretraining" in actor
    assert "the temperature's learning rate is 0 at the switch (seed 3): it can hardly learn online" in temperature
    (vanished,) = rate_warnings({"critic": np.array([1e-7])}, {"critic": [3e-4]}, (3,))
    assert "is 1e-07 at the switch (seed 3), and was 0.0003 in pretraining: it can hardly learn online" in vanished
    assert not rate_warnings({"critic": np.array([3e-4])}, {"critic": [3e-4]}, (3,))


def test_a_schedule_that_crosses_the_switch_draws_a_warning(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    updates = Learner.offline_updates

    def decaying(own: Learner, count: int) -> Any:
        info = updates(own, count)
        share = max(0.0, 1 - own.agent.updates / 20)
        adam = own.agent.optimizer
        adam.learning_rates = {**adam.learning_rates, "actor": np.full(2, 3e-4 * share)}
        return info

    notes = Notes()
    run(small(data, tmp_path / "plain"), notes)
    assert not [n for n in notes.said if "learning rate" in n]
    monkeypatch.setattr(Learner, "offline_updates", decaying)
    run(small(data, tmp_path / "run"), notes)
    (said,) = [n for n in notes.said if "learning rate" in n]
    assert "the actor's learning rate is 0 at the switch (seed 3), and was 0.0003 in pretraining" in said
    assert "Does a schedule of the pretraining cross the switch?" in said


def test_a_fork_with_other_rates_is_told_so(data: Path, tmp_path: Path) -> None:  # noqa: F811
    base, notes = str(run(small(data, tmp_path / "base", online_steps=0))), Notes()
    hyper = AGENTS["iql"].config_class(hidden_dims=(8, 8), critic_lr=1e-3)
    run(small(data, tmp_path / "same", pretrained=base), notes)
    assert not [n for n in notes.said if "learning rate" in n]
    run(small(data, tmp_path / "arm", pretrained=base, hyper=hyper), notes)
    (said,) = [n for n in notes.said if "learning rate" in n]
    assert "the critic's learning rate is 0.001 at the switch (seed 3), and was 0.0003 in pretraining" in said


# Settings


@pytest.mark.parametrize(("name", "value"), [("audit_every", 0), ("audit_rows", 1)])
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least"):
        SwitchConfig(**{name: value})  # type: ignore[arg-type]


def test_short_runs_are_audited_at_both_ends(data: Path, tmp_path: Path) -> None:  # noqa: F811
    evaluation = EvaluationConfig(eval_episodes=1, switch_episodes=1, eval_envs=1, eval_every=1000)
    out = run(small(data, tmp_path / "run", evaluation=evaluation))
    assert [r["switch/updates"] for r in audits(out) if r["seed"] == 3] == [0, 47]
