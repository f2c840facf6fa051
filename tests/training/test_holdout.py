"""Runs that hold episodes out: no update sees them, audits and td_gate look at them, forks leave out the same ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents.storage import read_tensors
from o2o_smooth.data import from_npz
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.holdout import choose_holdout
from o2o_smooth.errors import CheckpointError, ConfigError, DataError
from o2o_smooth.training.config import AnchorConfig, RunConfig, SmoothingConfig, SwitchConfig
from o2o_smooth.training.population import run_population
from o2o_smooth.training.run import run
from tests.training.test_run import data as five  # noqa: F401
from tests.training.test_run import lines, small

EPISODES, LENGTH, HELD = 240, 25, 12
OFTEN = SwitchConfig(audit_every=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up Pendulum episodes; row k has the reward k."""
    rng = np.random.default_rng(0)
    n = EPISODES * LENGTH
    walks = rng.normal(size=(EPISODES, LENGTH + 1, 3)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "pendulum.npz"
    np.savez(
        path,
        observations=walks[:, :-1].reshape(n, 3),
        actions=rng.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=np.arange(n, dtype=np.float32),
        next_observations=walks[:, 1:].reshape(n, 3),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % LENGTH == LENGTH - 1,
    )
    return path


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The dataset's rows that were drawn or gathered, and those that were gathered as held-out ones.

    Native code that reads drawn rows where they lie gathers none; that it reads the same ones is tested on its own.
    """
    seen: dict[str, set[int]] = {"left": set(), "held": set()}
    gather, apart, drawn = ReplayBuffer.gather, ReplayBuffer.gather_held_out, ReplayBuffer.drawn

    def note(name: str, rows: ReplayBuffer, batch: Any) -> Any:
        if rows.shared:
            seen[name] |= set(batch.reward.flatten().round().int().tolist())
        return batch

    def note_drawn(rows: ReplayBuffer, index: torch.Tensor) -> Any:
        rows.gather(index)
        return drawn(rows, index)

    monkeypatch.setattr(ReplayBuffer, "drawn", note_drawn)
    monkeypatch.setattr(ReplayBuffer, "gather", lambda rows, index: note("left", rows, gather(rows, index)))
    monkeypatch.setattr(ReplayBuffer, "gather_held_out", lambda rows, index: note("held", rows, apart(rows, index)))
    return seen


def held(data: Path, share: float = 0.05) -> set[int]:
    """Rewards are their rows' numbers."""
    found = choose_holdout(from_npz(data).transitions, share)
    return {row for first, stop in found.ranges for row in range(first, stop)}


def config(data: Path, out: Path, share: float = 0.05, **changes: Any) -> RunConfig[Any]:
    changes.setdefault("switch", dataclasses.replace(OFTEN, holdout=share))
    return small(data, out, **{"utd": 1.0, "online_steps": 120, **changes})


@pytest.mark.parametrize("regime", ["retain", "mixed"])
def test_no_update_sees_a_held_out_row_before_or_after_the_switch(
    regime: Any, data: Path, tmp_path: Path, drawn: dict[str, set[int]]
) -> None:
    smoothing = SmoothingConfig("linear", ramp_steps=150, regime=regime)
    anchors = AnchorConfig(anchor_ewc=1.0)
    out = run(config(data, tmp_path / "run", smoothing=smoothing, offline_updates=200, anchors=anchors))
    apart = held(data)
    assert len(apart) == HELD * LENGTH
    assert not drawn["left"] & apart  # neither by updates nor by anchors
    assert len(drawn["left"]) > 3500
    assert min(drawn["left"]) < 2 * LENGTH
    assert max(drawn["left"]) > (EPISODES - 2) * LENGTH
    assert len(drawn["held"]) == 128
    assert drawn["held"] <= apart
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["holdout"] == {"episodes": HELD, "rows": HELD * LENGTH, "remark": ""}
    assert manifest["config"]["switch"]["holdout"] == 0.05
    saved = read_tensors(out / "checkpoints" / "switch" / "audit.safetensors")["reward"]
    assert set(saved.int().tolist()) == drawn["held"]


def test_a_fork_leaves_out_what_its_checkpoint_has_left_out(
    data: Path, tmp_path: Path, drawn: dict[str, set[int]]
) -> None:
    base = run(config(data, tmp_path / "base", online_steps=0))
    apart, found, looked_at = held(data), {}, set(drawn["held"])
    for name, dataset in (("with", str(data)), ("without", None)):
        drawn["left"].clear()
        drawn["held"].clear()
        # Its own share does not count: the pretraining has seen the rest.
        smoothing = SmoothingConfig("linear" if dataset else "jump", ramp_steps=150, regime="retain")
        arm = config(data, tmp_path / name, 0.3, pretrained=str(base), smoothing=smoothing, online_steps=240)
        out = run(dataclasses.replace(arm, dataset=dataset))
        assert not drawn["left"] & apart
        assert drawn["held"] == (looked_at if dataset else set())
        assert len(drawn["left"]) > 1000 or dataset is None
        assert json.loads((out / "manifest.json").read_text())["holdout"]["rows"] == HELD * LENGTH
        found[name] = next(r for r in lines(out, "audit.jsonl") if r["seed"] == 3)
        saved = read_tensors(out / "checkpoints" / "switch" / "audit.safetensors")["reward"]
        assert set(saved.int().tolist()) == looked_at
    assert found["with"]["switch/td_error_offline_source"] == found["without"]["switch/td_error_offline_source"]


def test_a_fork_of_a_checkpoint_that_held_nothing_out_holds_nothing_out(
    data: Path, tmp_path: Path, drawn: dict[str, set[int]]
) -> None:
    base = run(config(data, tmp_path / "base", 0.0, online_steps=0))
    record = base / "checkpoints" / "switch" / "run.json"
    (record.parent / "checksums.json").unlink()
    older = json.loads(record.read_text())
    del older["held_out"]  # as before there was any holding out
    record.write_text(json.dumps(older))
    out = run(config(data, tmp_path / "arm", pretrained=str(base)))
    assert not drawn["held"]
    assert "held nothing out" in json.loads((out / "manifest.json").read_text())["holdout"]["remark"]
    older["held_out"] = [[0, 10**6]]
    record.write_text(json.dumps(older))
    with pytest.raises(DataError, match="do not fit a dataset of 6,000 rows"):
        run(config(data, tmp_path / "broken", pretrained=str(base)))
    older["held_out"] = [[3]]
    record.write_text(json.dumps(older))
    with pytest.raises(CheckpointError, match=r"held_out in its run\.json"):
        run(config(data, tmp_path / "odd", pretrained=str(base)))


def test_td_gate_compares_with_held_out_rows(data: Path, tmp_path: Path, drawn: dict[str, set[int]]) -> None:
    switch = SwitchConfig(audit=False, holdout=0.05)
    run(config(data, tmp_path / "run", switch=switch, smoothing=SmoothingConfig("td_gate", ramp_steps=60)))
    apart = held(data)
    assert len(drawn["held"]) > 150  # of three hundred, drawn for each seed
    assert drawn["held"] <= apart
    assert not drawn["left"] & apart


def numbers(out: Path) -> list[Any]:
    rows = lines(out, "evaluations.jsonl") + lines(out, "metrics.jsonl") + lines(out, "audit.jsonl")
    return [{k: v for k, v in r.items() if "time/" not in k} for r in rows]


def test_without_holding_out_a_run_is_what_it_was(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outs = [run(config(data, tmp_path / "off", 0.0)), run(config(data, tmp_path / "on"))]
    from_transitions = ReplayBuffer.from_transitions

    def plain(*args: Any, held_out: Any, **kwargs: Any) -> ReplayBuffer:
        assert held_out == ()
        return from_transitions(*args, **kwargs)

    monkeypatch.setattr(ReplayBuffer, "from_transitions", plain)
    outs.append(run(config(data, tmp_path / "again", 0.0)))
    off, on, again = (numbers(out) for out in outs)
    assert off == again != on
    assert json.loads((outs[0] / "manifest.json").read_text())["holdout"]["episodes"] == 0


def test_small_datasets_lose_nothing(five: Path, tmp_path: Path) -> None:  # noqa: F811
    outs = [run(config(five, tmp_path / str(share), share)) for share in (0.0, 0.01)]
    assert numbers(outs[0]) == numbers(outs[1])
    remark = json.loads((outs[1] / "manifest.json").read_text())["holdout"]["remark"]
    assert "nothing is held out: it would be 10 rows" in remark
    assert "among those trained on" in remark


def test_a_member_of_a_population_leaves_out_what_it_would_alone(
    data: Path, tmp_path: Path, drawn: dict[str, set[int]]
) -> None:
    arms = [
        config(data, tmp_path / name, smoothing=SmoothingConfig(name, ramp_steps=60)) for name in ("jump", "linear")
    ]
    both = run_population(arms)
    assert not drawn["left"] & held(data)
    for out, arm in zip(both, arms, strict=True):
        alone = run(dataclasses.replace(arm, out=str(tmp_path / "alone" / out.name), seeds=(5,)))
        together = [r for r in lines(out, "audit.jsonl") if r["seed"] == 5]
        for a, b in zip(together[:4], lines(alone, "audit.jsonl")[:4], strict=True):
            assert a.keys() == b.keys()
            for name in a.keys() - {"phase"}:
                assert a[name] == pytest.approx(b[name], rel=2e-3, abs=1e-5), name
        saved = [read_tensors(o / "checkpoints" / "switch" / "audit.safetensors") for o in (out, alone)]
        assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"holdout must be between 0 and 0\.5"):
        SwitchConfig(holdout=share)
