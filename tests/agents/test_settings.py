"""Settings that differ between the members of one population."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from o2o_smooth.agents import AGENTS, CQL, IQL, Agent, AgentConfig, IQLConfig, load_agent
from o2o_smooth.agents.settings import PER_MEMBER, leaves, offline_setting, replaced
from o2o_smooth.agents.storage import save_agent, take_members
from o2o_smooth.errors import ConfigError
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from tests.agents.helpers import ACT, OBS, three_rows

PAIRS = [(name, online) for name, cls in AGENTS.items() for online in cls.online_choices]
FACTORS = (1.0, 0.9, 1.1)


def _base(name: str, **settings: Any) -> AgentConfig:
    return AGENTS[name].config_class(**{"hidden_dims": (5, 4), **settings})


def _values(config: AgentConfig, action_dim: int = 2) -> dict[str, list[float]]:
    """Three values for every setting that may differ, all in range."""
    found = {}
    for name, value in leaves(config).items():
        if name.rpartition(".")[2] not in PER_MEMBER or (name == "cql_target_gap" and value is None):
            continue
        start = -float(action_dim) if value is None else value
        # Members a tenth apart; a rate near 1 must stay below it.
        found[name] = [start * f if abs(start * f) < 1 or abs(start) > 1 else 1 - (1 - start) * f for f in FACTORS]
    return found


def _agents(name: str, online: str, dtype: torch.dtype, **settings: Any) -> tuple[Agent, list[Agent]]:
    """A population of three with nothing but differences, and its members alone."""
    config = _base(name, **settings)
    values = _values(config)
    overrides = [{key: v[m] for key, v in values.items()} for m in range(3)]
    cls, seeds = AGENTS[name], (3, 8, 3)
    population = cls(OBS, ACT, config, online=online, seeds=seeds, overrides=overrides)
    alone = [
        cls(OBS, ACT, replaced(config, own), online=online, seeds=(seed,))
        for own, seed in zip(overrides, seeds, strict=True)
    ]
    if dtype == torch.float64:
        for agent in (population, *alone):
            agent.double()
    return population, alone


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_every_setting_can_differ_and_each_member_learns_as_it_would_alone(
    name: str, online: str, dtype: torch.dtype
) -> None:
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (2e-3, 1e-4)
    settings = {"cql_target_gap": 0.5, "max_target_backup": True, "cql_actions": 2} if name == "cql" else {}
    population, alone = _agents(name, online, dtype, **settings)
    batch = three_rows(3, dtype)
    for step in range(12):
        weights = [(0.0, 0.0, 0.0), (0.3, 0.0, 1.0), (0.4, 0.7, 0.2), (1.0, 1.0, 1.0)][step % 4]
        mode = ("loss", "target")[step // 4 % 2]
        mix = Mix({c: np.array(weights) for c in COMPONENTS}, mode=mode)  # type: ignore[arg-type]
        info = population.update(batch, mix=mix)
        for m, agent in enumerate(alone):
            own_mix = Mix({c: np.array(weights[m : m + 1]) for c in COMPONENTS}, mode=mode)  # type: ignore[arg-type]
            own = agent.update(type(batch)(*(x[m : m + 1] for x in batch)), mix=own_mix)
            for key in own.keys() & info.keys():
                torch.testing.assert_close(info[key][m], own[key][0], rtol=rtol, atol=atol, msg=key)
    for key, value in population.networks.named_parameters():
        for m, agent in enumerate(alone):
            torch.testing.assert_close(value[m], agent.networks.get_parameter(key)[0], rtol=rtol, atol=atol, msg=key)
    obs = np.ones((3, 4, 3))
    together = population.act(obs, deterministic=False, step=9)
    for m, agent in enumerate(alone):
        np.testing.assert_allclose(
            together[m], agent.act(obs[m : m + 1], deterministic=False, step=9)[0], rtol=max(rtol, 1e-6), atol=atol
        )


@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_each_setting_that_matters_makes_a_difference(name: str, online: str) -> None:
    """No setting is taken and then ignored: members that differ in it alone part ways."""
    config = _base(name, **({"cql_target_gap": 0.5, "cql_actions": 2} if name == "cql" else {}))
    cls = AGENTS[name]
    unused = {  # of networks and objectives that this pair does not have
        ("iql", "sac"): ("td3.",),
        ("iql", "td3"): ("sac.", "temperature_lr"),
        ("iql", "same"): ("sac.", "td3.", "temperature_lr"),
        ("cql", "sac"): ("td3.", "value_lr"),
        ("cql", "td3"): ("value_lr",),
        ("cql", "same"): ("td3.", "value_lr"),
        ("sac", "same"): ("value_lr",),
    }.get((name, online), ("value_lr", "temperature_lr"))
    for key, values in _values(config).items():
        if key.startswith(unused):
            continue
        agent = cls(OBS, ACT, config, online=online, seeds=(3, 3), overrides=[{key: v} for v in values[1:]]).double()
        clip = next((k for k in agent.overrides[0] if k.endswith("noise_clip")), None)
        if clip is not None:  # the draws of three rows seldom reach the clip
            agent.settings.td3.noise_clip.copy_(torch.tensor([0.01, 0.02]).reshape(2, 1, 1))
        assert key in agent.overrides[0]
        for step in range(6):
            agent.update(three_rows(2), mix=Mix.uniform((0.0, 0.5, 0.5)[step % 3], 2))
        first, second = agent.act(np.tile(np.linspace(-1, 1, 3), (2, 5, 1)), deterministic=False, step=0)
        parted = [not torch.equal(p[0], p[1]) for p in agent.networks.parameters()]
        assert any(parted) or not np.array_equal(first, second), key


def test_settings_that_all_members_share_stay_plain_numbers() -> None:
    agent = IQL(OBS, ACT, _base("iql"), seeds=(1, 2), overrides=[{"expectile": 0.9, "beta": 1.0}, {"expectile": 0.9}])
    assert agent.config.to_dict()["expectile"] == 0.9
    assert agent.settings.expectile == 0.9
    assert isinstance(agent.settings.expectile, float)
    assert agent.overrides == ({"beta": 1.0}, {"beta": 3.0})
    assert agent.settings.beta.tolist() == [[1.0], [3.0]]
    assert isinstance(agent.settings.host("tau"), float)
    plain = IQL(OBS, ACT, _base("iql"), seeds=(1, 2), overrides=[{}, {}])
    assert plain.overrides == ({}, {})


def test_doubling_reaches_what_the_losses_hold_and_is_exact() -> None:
    agent = IQL(OBS, ACT, _base("iql"), online="td3", seeds=(1, 2), overrides=[{"discount": 0.9}, {"discount": 0.7}])
    held = agent.online.discount  # type: ignore[attr-defined]
    assert held.dtype == torch.float32
    agent.double()
    assert held.dtype == torch.float64
    assert held is agent.settings.discount
    assert held.tolist() == [[0.9], [0.7]]


def test_what_members_must_share_is_refused_in_words() -> None:
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{"hidden_dims": (9,)}, {}], "'hidden_dims' changes the shapes or the structure"),
        ([{"num_critics": 3}, {}], "runs of their own. These may differ: action_edge, actor_lr"),
        ([{"critic_layer_norm": True}, {}], "cannot differ"),
        ([{"actor_delay": 3}, {}], "'actor_delay' changes"),
        ([{"expectil": 0.3}, {}], "no setting 'expectil'"),
        ([{"expectile": 0.3}], "1 entries, one per member makes 2"),
        ([{"expectile": 0.3}, {"expectile": 1.3}], r"member 1: expectile must lie in \(0, 1\], got 1.3"),
        ([{"td3.target_noise": -1.0}, {}], "member 0: target_noise must lie in"),
        ([{"expectile": "0.3"}, {}], "must be a number, got '0.3'"),
        ([{"beta": None}, {}], "off for some members"),
    ]
    for overrides, text in cases:
        with pytest.raises(ConfigError, match=text):
            IQL(OBS, ACT, _base("iql"), seeds=(1, 2), overrides=overrides)
    with pytest.raises(ConfigError, match="off for some members and on for others"):
        CQL(OBS, ACT, _base("cql"), seeds=(1, 2), overrides=[{"cql_target_gap": 1.0}, {}])


def test_target_entropy_follows_the_action_space_unless_a_member_says_otherwise() -> None:
    agent = IQL(OBS, ACT, _base("iql"), seeds=(1, 2), overrides=[{}, {"target_entropy": -0.5}])
    assert agent.overrides == ({"sac.target_entropy": -2.0}, {"sac.target_entropy": -0.5})


def test_population_with_differences_is_saved_and_goes_on_exactly(tmp_path: Path) -> None:
    overrides = [{"expectile": 0.6, "actor_lr": 1e-3, "tau": 0.1}, {"td3.target_noise": 0.4}]
    agent = IQL(OBS, ACT, _base("iql"), online="td3", seeds=(4, 4), overrides=overrides)
    batch = three_rows(dtype=torch.float32)
    for _ in range(3):
        agent.update(batch, mix=Mix.uniform(0.5, 2))
    agent.save(tmp_path / "agent")
    assert json.loads((tmp_path / "agent" / "agent.json").read_text())["format"] == 2
    loaded = load_agent(tmp_path / "agent")
    assert loaded.overrides == agent.overrides
    for one in (agent, loaded):
        for _ in range(3):
            one.update(batch, mix=Mix.uniform(0.5, 2))
    for key, value in agent.networks.state_dict().items():
        assert torch.equal(value, loaded.networks.state_dict()[key]), key


def test_members_can_be_taken_and_multiplied_with_other_settings(tmp_path: Path) -> None:
    agent = IQL(OBS, ACT, _base("iql"), seeds=(4, 6), overrides=[{"beta": 1.0}, {}])
    batch = three_rows(dtype=torch.float32)
    agent.update(batch)
    arms = take_members(agent, [1, 1, 0], config=agent.config, overrides=[{"tau": t} for t in (0.1, 0.2, 0.3)])
    assert arms.seeds == (6, 6, 4)
    assert [own["tau"] for own in arms.overrides] == [0.1, 0.2, 0.3]
    assert (arms.updates, arms.acts) == (1, 0)
    weight = agent.networks.critic.weights[0]
    assert torch.equal(arms.networks.critic.weights[0], weight[[1, 1, 0]])
    assert take_members(agent, [1, 1]).config.to_dict()["beta"] == 3.0
    save_agent(agent, tmp_path / "one", members=[1])
    assert json.loads((tmp_path / "one" / "agent.json").read_text())["format"] == 1
    single = load_agent(tmp_path / "one")
    assert (single.seeds, single.overrides, single.config.to_dict()["beta"]) == ((6,), ({},), 3.0)
    assert load_agent(tmp_path / "one", members=[0, 0], overrides=[{}, {"tau": 0.9}]).seeds == (6, 6)
    # Both go on alike: what was taken out lost nothing.
    two = take_members(agent, [0, 1])
    for one in (agent, two):
        one.update(batch)
    for key, value in agent.networks.state_dict().items():
        assert torch.equal(value, two.networks.state_dict()[key]), key


def test_settings_of_the_online_objective_do_not_touch_pretraining() -> None:
    """What `offline_setting` calls idle before the switch leaves pure offline updates exactly as they were."""
    for name, online in PAIRS:
        config = _base(name, **({"cql_actions": 2} if name == "cql" else {}))
        idle = {k: v[1] for k, v in _values(config).items() if not offline_setting(name, k)}
        assert bool(idle) == (name != "sac")
        plain, changed = (
            AGENTS[name](OBS, ACT, c, online=online, seeds=(3, 8)) for c in (config, replaced(config, idle))
        )
        batch = three_rows(dtype=torch.float32)
        for _ in range(4):
            plain.update(batch)
            changed.update(batch)
        for key, value in plain.networks.state_dict().items():
            assert torch.equal(value, changed.networks.state_dict()[key]), (name, online, key)


def test_a_differing_setting_does_not_make_a_step_compile_again() -> None:
    """The graph's guards hold for other values, since differing settings are tensors."""
    config = IQLConfig(hidden_dims=(4,))
    counts = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        counts.append(len(inputs))
        return module.forward

    batch = three_rows(dtype=torch.float32)
    torch.compiler.reset()
    agent = IQL(OBS, gym.spaces.Box(-1, 1, (2,)), config, seeds=(0, 1), overrides=[{"expectile": 0.6, "beta": 2.0}, {}])

    def loss(weights: torch.Tensor) -> torch.Tensor:
        terms = agent.offline.terms(batch, {}, frozenset(agent.offline.components))
        return torch.stack([t.loss for t in terms.values()]).sum() * weights.sum()

    compiled = torch.compile(loss, backend=backend)
    first = compiled(torch.ones(2))
    torch.testing.assert_close(first, loss(torch.ones(2)))
    graphs = len(counts)
    agent.settings.expectile.fill_(0.9)
    second = compiled(torch.ones(2))
    assert len(counts) == graphs
    assert second != first
    torch.testing.assert_close(second, loss(torch.ones(2)))


@pytest.mark.slow
# torch's own inductor still uses torch.jit.script_method when it starts
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_compiled_population_with_differences_equals_the_eager_one_and_compiles_once_a_kind_of_step() -> None:
    overrides = [{"expectile": 0.6, "beta": 2.0, "discount": 0.9, "actor_lr": 1e-3}, {"sac.target_entropy": -1.0}]
    eager, compiled = (
        IQL(OBS, ACT, IQLConfig(hidden_dims=(8, 8)), seeds=(0, 1), overrides=overrides, compile=c)
        for c in (False, True)
    )
    batch, other = three_rows(dtype=torch.float32), three_rows(dtype=torch.float32)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for step in range(9):
        mix = Mix({c: np.array(((0.0, 0.0), (0.2, 1.0), (1.0, 1.0))[step % 3]) for c in COMPONENTS})
        eager.update(batch, other, mix=mix)
        compiled.update(batch, other, mix=mix)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[-1] > 0
    for key, value in eager.networks.state_dict().items():
        torch.testing.assert_close(compiled.networks.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=key)
