"""The yardsticks do the work they are said to do: whole updates in JAX equal this package's."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from o2o_smooth.agents import Agent
from o2o_smooth.benchmarks import speed_own, yardstick_d3rlpy, yardstick_jax
from o2o_smooth.benchmarks.speed_worker import Bench, load
from tests.agents.helpers import make_agent, three_rows

SIZES = {"threads": 1, "hidden_dims": [8, 8], "batch": 4, "rows": 2000, "obs_dim": 3, "action_dim": 2}


@contextlib.contextmanager
def float64() -> Iterator[None]:
    jax = pytest.importorskip("jax", reason="needs the extra speed")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def _layers(net: Any, copy: int) -> list[tuple[Any, Any]]:
    pairs = zip(net.weights, net.biases, strict=True)
    return [(w.detach().numpy()[0, copy].copy(), b.detach().numpy()[0, copy, 0].copy()) for w, b in pairs]


def _params(agent: Agent) -> dict[str, Any]:
    net = agent.networks
    params: dict[str, Any] = {"actor": _layers(net.actor.net, 0), "critic": [_layers(net.critic, e) for e in range(2)]}
    if net.value is not None:
        params["value"] = _layers(net.value, 0)
    if agent.name == "cql":
        assert net.log_alpha is not None
        params["temperature"] = net.log_alpha.detach().numpy()[0].copy()
    return params


def _targets(agent: Agent) -> dict[str, Any]:
    net = agent.networks
    targets: dict[str, Any] = {"critic": [_layers(net.target_critic, e) for e in range(2)]}
    if net.target_actor is not None:
        targets["actor"] = _layers(net.target_actor.net, 0)
    return targets


@pytest.mark.parametrize("name", yardstick_jax.AGENTS)
def test_three_updates_in_jax_equal_this_packages(name: str) -> None:
    jax = pytest.importorskip("jax", reason="needs the extra speed")
    with float64():
        online = "same" if name == "iql" else None
        agent = make_agent(name, online, seeds=(3,))
        batch = three_rows(1)
        zeros = jax.tree.map(np.zeros_like, _params(agent))
        state: dict[str, Any] = {
            "params": _params(agent),
            "targets": _targets(agent),
            "first": zeros,
            "second": zeros,
            "steps": dict.fromkeys(zeros, 0.0),
            "step": 0.0,
        }
        unit = agent.networks.encode_action(batch.action)
        rows = {key: getattr(batch, key).numpy()[0] for key in ("obs", "next_obs", "reward", "terminated")}
        rows["action"] = unit.numpy()[0]
        for update in range(3):
            noise = {}
            for key, n in agent.offline.normal_noise.items():
                noise[key] = agent.draws.normal(key, update, (n, 3, 2)).numpy()[0]
            for key, n in agent.offline.uniform_noise.items():
                noise[key] = agent.draws.uniform(key, update, (n, 3, 2)).numpy()[0]
            noise = {key: value if key.startswith("cql") else value[0] for key, value in noise.items()}
            moves = name != "td3_bc" or update % 2 == 1
            state = yardstick_jax.update(name, state, rows, noise, move_actor=moves)
            agent.update(batch)
        for ours, theirs in ((_params(agent), state["params"]), (_targets(agent), state["targets"])):
            compared = jax.tree.map(lambda a, b: np.abs(a - np.asarray(b)).max(), ours, theirs)
            assert max(jax.tree.leaves(compared)) < 1e-10
        start = _params(make_agent(name, online, seeds=(3,)))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), start, _params(agent))
        assert min(jax.tree.leaves(moved)) > 1e-6  # all of them took part


@pytest.mark.parametrize("name", yardstick_jax.AGENTS)
def test_the_yardstick_in_jax_trains_in_whole_blocks(name: str) -> None:
    pytest.importorskip("jax", reason="needs the extra speed")
    bench = Bench(yardstick_jax.make)
    bench.build("a", {"agent": name, **SIZES})
    done = bench.slice("a", 1e-6)["updates"]
    assert done > 0
    assert done % yardstick_jax.UPDATES_PER_CALL[name] == 0


@pytest.mark.parametrize("name", yardstick_d3rlpy.AGENTS)
def test_the_yardstick_of_d3rlpy_updates(name: str) -> None:
    pytest.importorskip("d3rlpy", reason="needs d3rlpy, which wants an older gymnasium")
    advance = yardstick_d3rlpy.make({"agent": name, **SIZES})
    assert advance(3) == 3


@pytest.mark.parametrize("module", [yardstick_jax, yardstick_d3rlpy])
def test_a_peer_names_what_it_does_not_have(module: Any) -> None:
    if importlib.util.find_spec(module.__name__.rpartition("_")[2]) is None:
        pytest.skip("needs the extra speed")
    with pytest.raises(ValueError, match="sac"):
        module.make({"agent": "sac", **SIZES})


def test_yardsticks_load_from_their_files_without_the_package() -> None:
    folder = Path(yardstick_jax.__file__).parent
    for name in ("yardstick_jax.py", "yardstick_d3rlpy.py", "speed_worker.py"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "from o2o_smooth" not in text
        assert "import o2o_smooth" not in text
    assert callable(load(str(folder / "yardstick_jax.py")))
    assert callable(load("o2o_smooth.benchmarks.speed_own"))


def test_our_own_learner_updates_on_its_sampled_rows() -> None:
    before = torch.get_num_threads()
    settings = {"kind": "update", "agent": "td3_bc", "precision": "fp32", "members": 2, "device": "cpu"}
    try:
        learner = speed_own.make_learner({**settings, **SIZES, "compile": "off"})
        assert speed_own.make({**settings, **SIZES, "compile": "off"})(3) == 3
    finally:
        torch.set_num_threads(before)
    assert learner.agent.members == 2
    assert learner.offline_rows is not None
    assert len(learner.offline_rows) == SIZES["rows"]
    learner.offline_update()
    assert learner.agent.updates == 1
