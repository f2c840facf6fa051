"""The contract that every agent keeps."""

from __future__ import annotations

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from o2o_smooth.agents import AGENTS, CQL, IQL, TD3BC, Agent, AgentConfig, CQLConfig, IQLConfig, TD3BCConfig, load_agent
from o2o_smooth.errors import CheckpointError, ConfigError, DataError, EnvError
from o2o_smooth.smoothing.objective import COMPONENTS, Mix
from tests.agents.helpers import ACT, OBS, make_agent, three_rows

NAMES = list(AGENTS)
PAIRS = [(name, online) for name, cls in AGENTS.items() for online in cls.online_choices]


def _state(agent: Agent) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in agent.networks.state_dict().items()}


def _weights(step: int, members: int) -> Mix:
    """Offline, mixed, online in turn."""
    return Mix.uniform((0.0, 0.4, 1.0)[step % 3], members)


# Three members at their own places, as an adaptive rule moves them: advancing, retreating, staying.
APART = [(0.0, 0.0, 0.0), (0.1, 0.0, 0.0), (0.5, 0.3, 0.0), (1.0, 0.6, 0.0), (1.0, 0.2, 0.0), (0.7, 0.0, 1.0)]


@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_member_of_a_population_equals_the_same_member_alone(name: str, online: str) -> None:
    population = make_agent(name, online, seeds=(3, 8, 5))
    batch = three_rows(3)
    alone = [make_agent(name, online, seeds=(seed,)) for seed in (3, 8, 5)]
    # make_agent lowers log alpha by the position in the population
    for m, agent in enumerate(alone):
        if agent.networks.log_alpha is not None and population.networks.log_alpha is not None:
            agent.networks.log_alpha.data[0] = population.networks.log_alpha.data[m]
    for step in range(3 * len(APART)):
        weights = APART[step % len(APART)]
        population.update(batch, mix=Mix({c: np.array(weights) for c in COMPONENTS}))
        for m, agent in enumerate(alone):
            agent.update(type(batch)(*(x[m : m + 1] for x in batch)), mix=Mix.uniform(weights[m]))
    for key, value in population.networks.named_parameters():
        for m, agent in enumerate(alone):
            torch.testing.assert_close(value[m], agent.networks.get_parameter(key)[0], rtol=1e-9, atol=1e-12, msg=key)
    obs = np.ones((3, 4, 3))
    together = population.act(obs, deterministic=False, step=9)
    for m, agent in enumerate(alone):
        np.testing.assert_allclose(together[m], agent.act(obs[m : m + 1], deterministic=False, step=9)[0], rtol=1e-6)


@pytest.mark.parametrize(("name", "online"), PAIRS)
def test_saved_and_loaded_agent_goes_on_exactly(name: str, online: str, tmp_path: Path) -> None:
    cls = AGENTS[name]
    agent = cls(OBS, ACT, cls.config_class(hidden_dims=(8, 8)), online=online, seeds=(4, 1))
    agent.set_normalizer(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0, 0.5]))
    batch = three_rows(dtype=torch.float32)
    for step in range(5):
        agent.update(batch, mix=_weights(step, 2))
    agent.act(np.zeros((2, 1, 3)), deterministic=False)
    agent.save(tmp_path / "agent")
    loaded = cls.load(tmp_path / "agent")
    assert loaded.config == agent.config
    for a, b in ((_state(agent), _state(loaded)),):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    for step in range(5, 9):
        agent.update(batch, mix=_weights(step, 2))
        loaded.update(batch, mix=_weights(step, 2))
    a, b = _state(agent), _state(loaded)
    assert all(torch.equal(a[k], b[k]) for k in a)
    obs = np.ones((2, 2, 3))
    np.testing.assert_array_equal(agent.act(obs, deterministic=False), loaded.act(obs, deterministic=False))


def test_saving_replaces_the_old_agent_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    agent = make_agent("iql")
    agent.save(tmp_path / "agent")
    agent.update(three_rows())
    agent.save(tmp_path / "agent")
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]
    assert sorted(p.name for p in (tmp_path / "agent").iterdir()) == [
        "agent.json", "agent.safetensors", "checksums.json",
    ]  # fmt: skip
    assert IQL.load(tmp_path / "agent").updates == 1


def test_saving_replaces_nothing_but_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, mine = make_agent("iql"), tmp_path / "results"
    (mine / "sub").mkdir(parents=True)
    (mine / "paper.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(mine / "sub")
    for path, text in (
        (mine, "current folder or one above it"),
        (Path(), "current folder"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "link", "is a link"),
    ):
        with pytest.raises(CheckpointError, match=text):
            agent.save(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"holds other files \(paper.tex, sub\), which would be lost; choose another"
    ):
        agent.save(mine)
    assert (mine / "paper.tex").read_text() == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "link", "results"]
    agent.save(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"other files \(notes.txt\)"):
        agent.save(tmp_path / "empty")
    assert IQL.load(tmp_path / "empty").updates == 0


def test_precision_is_saved_and_can_be_another_one(tmp_path: Path) -> None:
    IQL(OBS, ACT, IQLConfig(hidden_dims=(8,)), precision="bf16").save(tmp_path / "agent")
    assert IQL.load(tmp_path / "agent").precision == "bf16"
    assert IQL.load(tmp_path / "agent", precision="fp32").precision == "fp32"
    description = json.loads((tmp_path / "agent" / "agent.json").read_text())
    del description["precision"]  # as older versions wrote it
    (tmp_path / "agent" / "agent.json").write_text(json.dumps(description))
    (tmp_path / "agent" / "checksums.json").unlink()
    assert IQL.load(tmp_path / "agent").precision == "fp32"


def test_failed_save_keeps_the_old_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent("iql")
    agent.save(tmp_path / "agent")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("o2o_smooth.agents.storage.save_file", full)
    agent.update(three_rows())
    with pytest.raises(CheckpointError, match="the disk is full; free some space"):
        agent.save(tmp_path / "agent")
    assert [p.name for p in tmp_path.iterdir()] == ["agent"]
    assert IQL.load(tmp_path / "agent").updates == 0


def test_broken_checkpoints_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    with pytest.raises(CheckpointError, match="does not exist"):
        IQL.load(path)
    make_agent("iql").save(path)
    with pytest.raises(CheckpointError, match="holds a iql agent, not cql"):
        CQL.load(path)
    tensors = (path / "agent.safetensors").read_bytes()
    (path / "agent.safetensors").write_bytes(tensors[: len(tensors) // 2])
    with pytest.raises(CheckpointError, match=r"agent\.safetensors is broken: it has .* bytes"):
        IQL.load(path)
    flipped = bytearray(tensors)
    flipped[-1] ^= 1
    (path / "agent.safetensors").write_bytes(flipped)
    with pytest.raises(CheckpointError, match="SHA-256"):
        IQL.load(path)
    (path / "checksums.json").unlink()  # as older versions wrote it
    (path / "agent.safetensors").write_bytes(tensors[: len(tensors) // 2])
    with pytest.raises(CheckpointError, match="absent or broken"):
        IQL.load(path)
    (path / "agent.safetensors").write_bytes(tensors)
    IQL.load(path)
    description = json.loads((path / "agent.json").read_text())
    for key, value, text in (
        ("format", 99, "format 99"),
        ("agent", "dqn", "does not describe"),
        ("config", {"expectil": 1}, "expectil"),
        ("obs_dim", 4, "has shape"),
    ):
        (path / "agent.json").write_text(json.dumps({**description, key: value}))
        with pytest.raises(CheckpointError, match=text):
            load_agent(path)


def test_fork_with_another_online_objective_keeps_the_pretrained_networks(tmp_path: Path) -> None:
    agent = make_agent("iql", "sac")
    agent.update(three_rows())
    agent.save(tmp_path / "agent")
    fork = load_agent(tmp_path / "agent", online="td3")
    assert fork.online.name == "td3"
    for key, value in agent.networks.actor.state_dict().items():
        assert torch.equal(fork.networks.actor.state_dict()[key], value)
        assert fork.networks.target_actor is not None
        assert torch.equal(fork.networks.target_actor.state_dict()[key], value)
    fork.update(three_rows(), mix=Mix.uniform(0.5, 2))


@pytest.mark.parametrize("name", NAMES)
def test_act_takes_one_many_and_member_observations(name: str) -> None:
    single = make_agent(name, seeds=(0,))
    assert single.act(np.zeros(3)).shape == (2,)
    assert single.act(np.zeros((5, 3))).shape == (5, 2)
    assert single.act(torch.zeros(1, 5, 3)).shape == (1, 5, 2)
    assert single.act(np.zeros(3, np.float32)).dtype == np.float32
    many = make_agent(name)
    assert many.act(np.zeros((2, 5, 3))).shape == (2, 5, 2)
    for bad in (np.zeros((5, 3)), np.zeros((2, 5, 4)), np.zeros((3, 5, 3))):
        with pytest.raises(DataError, match="obs has shape"):
            many.act(bad)


@pytest.mark.parametrize("name", NAMES)
def test_actions_stay_in_the_box_and_use_its_units(name: str) -> None:
    cls = AGENTS[name]
    box = gym.spaces.Box(np.array([-2.0, 5.0], np.float32), np.array([2.0, 6.0], np.float32))
    agent = cls(OBS, box, cls.config_class(hidden_dims=(8,)))
    obs = np.random.default_rng(0).normal(size=(500, 3)) * 20
    for deterministic in (True, False):
        actions = agent.act(obs, deterministic=deterministic)
        assert box.contains(actions.min(0))
        assert box.contains(actions.max(0))
        assert actions[:, 0].std() > 0.1
    unit = agent.networks.encode_action(torch.tensor([[[-2.0, 6.0], [0.0, 5.5]]]))
    torch.testing.assert_close(unit, torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]]), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_exploration_is_repeatable_by_step_and_differs_between_steps(name: str) -> None:
    agent = make_agent(name)
    obs = np.zeros((2, 3, 3))
    first = agent.act(obs, deterministic=False, step=5)
    np.testing.assert_array_equal(first, agent.act(obs, deterministic=False, step=5))
    assert (first != agent.act(obs, deterministic=False, step=6)).all()
    assert (agent.act(obs, deterministic=False) != agent.act(obs, deterministic=False)).all()


@pytest.mark.parametrize("name", NAMES)
def test_training_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    agent = make_agent(name)
    agent.update(three_rows())
    agent.act(np.zeros((2, 1, 3)), deterministic=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_normaliser_is_part_of_acting_and_learning() -> None:
    raw, normalised = (make_agent("iql", critic_layer_norm=True) for _ in range(2))
    mean, std = np.array([5.0, -3.0, 0.1]), np.array([2.0, 0.5, 1.0])
    normalised.set_normalizer(mean, std)
    batch = three_rows()
    shift, scale = torch.tensor(mean), torch.tensor(std)
    shifted = batch._replace(obs=batch.obs * scale + shift, next_obs=batch.next_obs * scale + shift)
    a, b = raw.update(batch), normalised.update(shifted)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-6, atol=1e-7)
    obs = np.ones((2, 1, 3))
    np.testing.assert_allclose(raw.act(obs), normalised.act(obs * std + mean), rtol=1e-5)


def test_constant_feature_is_centred_and_not_blown_up() -> None:
    agent = make_agent("td3_bc")
    agent.set_normalizer(np.zeros(3), np.array([1.0, 0.0, 1e-9]))
    assert agent.networks.obs_std.tolist() == [1.0, 1.0, 1.0]


def test_plain_arrays_train_without_our_buffers() -> None:
    agent = IQL(OBS, ACT, IQLConfig(hidden_dims=(8,)))
    rng = np.random.default_rng(0)
    rows = {
        "observations": rng.normal(size=(16, 3)),
        "actions": rng.uniform(-1, 1, (16, 2)),
        "rewards": rng.normal(size=16),
        "next_observations": rng.normal(size=(16, 3)),
        "terminated": np.zeros(16, bool),
    }
    info = agent.update(rows)
    assert info["critic/loss"].shape == (1,)
    with pytest.raises(DataError, match="terminated and truncated apart"):
        agent.update({**rows, "dones": np.zeros(16)})
    with pytest.raises(DataError, match="lacks terminated"):
        agent.update({k: v for k, v in rows.items() if k != "terminated"})
    with pytest.raises(DataError, match=r"a batch is a dict of arrays .*, got list"):
        agent.update([1, 2])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="rewards holds no numbers"):
        agent.update({**rows, "rewards": np.array(["a"] * 16)})
    with pytest.raises(DataError, match="terminated holds values outside of 0 to 1"):
        agent.update({**rows, "terminated": np.full(16, 2.0)})
    with pytest.raises(DataError, match=r"reward has shape \(16, 1\), .* expected \(B,\); give reward\[..., 0\]"):
        agent.update({**rows, "rewards": np.zeros((16, 1))})  # would broadcast to (16, 16)
    with pytest.raises(DataError, match="built for 3 and 2"):
        agent.update({**rows, "observations": np.zeros((16, 4)), "next_observations": np.zeros((16, 4))})


def test_a_calibrated_agent_asks_for_returns() -> None:
    agent = CQL(OBS, ACT, CQLConfig(hidden_dims=(8,), calibrated=True))
    rows = {name: value[0].numpy() for name, value in three_rows(1)._asdict().items() if name != "mc_return"}
    with pytest.raises(DataError, match="needs the field mc_return"):
        agent.update(rows)
    agent.update({**rows, "mc_return": np.zeros(3)})
    agent.update(rows, mix=Mix.uniform(1.0, 1))  # SAC alone, which does not look at it


def test_what_an_update_reports_can_be_read_at_the_prompt() -> None:
    agent = IQL(OBS, ACT, IQLConfig(hidden_dims=(8,)))
    said = agent.update({name: value[0].numpy() for name, value in three_rows(1)._asdict().items()})
    loss = said["critic/loss"].item()
    assert f"critic/loss=[{float(f'{loss:.4g}')}]" in repr(said)


def test_misuse_of_update_and_presets_is_refused() -> None:
    agent = make_agent("iql")
    rows = {name: value.numpy() for name, value in three_rows()._asdict().items()}
    with pytest.raises(ConfigError, match="without a mix"):
        agent.update(rows, rows)
    rows["obs"] = rows["obs"].copy()
    rows["obs"][0, 1, 2] = np.nan
    with pytest.raises(DataError, match="obs holds NaN"):
        agent.update(rows)
    with pytest.raises(ConfigError, match="no domain 'antmazee'; there are mujoco, antmaze"):
        IQLConfig.preset("antmazee")


def test_devices_that_are_not_there_are_refused_in_words() -> None:
    for name, text in (("gpu", "there is no device 'gpu'; use cpu"), ("cuda:99", "torch sees .* CUDA devices")):
        with pytest.raises(ConfigError, match=text):
            IQL(OBS, ACT, IQLConfig(hidden_dims=(8,)), device=name)


def test_unsupported_spaces_are_refused_in_words() -> None:
    inf = gym.spaces.Box(-np.inf, np.inf, (2,))
    cases: list[tuple[gym.Space[object], gym.Space[object], str]] = [
        (gym.spaces.Discrete(3), ACT, "observations must be a one-dimensional Box"),
        (gym.spaces.Box(0, 1, (3, 3)), ACT, "FlattenObservation"),
        (OBS, gym.spaces.Discrete(3), "discrete actions are not supported"),
        (OBS, inf, "finite bounds"),
    ]
    for observation_space, action_space, text in cases:
        with pytest.raises(EnvError, match=text):
            IQL(observation_space, action_space)


def test_objectives_and_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="no density for SAC"):
        TD3BC(OBS, ACT, online="sac")
    with pytest.raises(ConfigError, match="needs a IQLConfig"):
        IQL(OBS, ACT, TD3BCConfig())
    with pytest.raises(ConfigError, match="at least one seed"):
        IQL(OBS, ACT, seeds=())


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_builds(name: str) -> None:
    cls = AGENTS[name]
    for domain in ("mujoco", "antmaze", "adroit", "pointmaze", "other"):
        assert isinstance(cls.config_class.preset(domain), AgentConfig)
    assert AGENTS["iql"].config_class.preset("antmaze").to_dict()["expectile"] == 0.9
