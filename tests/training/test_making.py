"""Making datasets: tiers of a resumable training, policies, mixtures; what is written and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
import torch
import tyro
from numpy.typing import NDArray
from safetensors.torch import load_file

from o2o_smooth.agents import SAC, SACConfig
from o2o_smooth.data import from_minari, make_pointmaze_dataset
from o2o_smooth.data.installed import is_installed
from o2o_smooth.data.write import RECORD
from o2o_smooth.envs import Task, find_task, make_env
from o2o_smooth.errors import CheckpointError, ConfigError, DataError
from o2o_smooth.training import making, tiers
from o2o_smooth.training.checkpoint import SwitchRecord, save_checkpoint
from o2o_smooth.training.making import MakeConfig, default_make_config, make_data
from o2o_smooth.training.progress import Silent
from o2o_smooth.training.tiers import Returns, Round, Trained, TrainingConfig, choose, train

REACH = "o2o-smooth-tests/Reach-v0"


class Reach(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Hit the number that is seen: a task that SAC learns in seconds. Episodes have 5 steps."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def _look(self) -> NDArray[np.float32]:
        self.obs = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.obs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        reward = -float(abs(action[0] - self.obs[0]))
        return self._look(), reward, False, False, {}


if REACH not in gym.registry:
    gym.register(REACH, entry_point="tests.training.test_making:Reach", max_episode_steps=5)

FAST = SACConfig(hidden_dims=(16, 16), discount=0.0, actor_lr=1e-2, critic_lr=1e-2, temperature_lr=3e-2)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's datasets or trainings."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One training for all tests that need one."""
    return str(tmp_path_factory.mktemp("trainings"))


def reach(cache: str, **changes: Any) -> MakeConfig:
    """A tier in a second or two; 102 steps a round and lane leave an episode unfinished."""
    training = TrainingConfig(
        train_steps=816, round_steps=204, train_envs=2, random_steps=100, batch_size=32, eval_episodes=10, cache=cache
    )
    settings: dict[str, Any] = {"task": REACH, "transitions": 300, "num_envs": 3, "training": training, "hyper": FAST}
    return MakeConfig(**{**settings, **changes})


def record_of(dataset_id: str) -> dict[str, Any]:
    found: dict[str, Any] = minari.load_dataset(dataset_id).storage.metadata[RECORD]
    return found


class Stop(Exception):
    """An interruption."""


class Interrupting(Silent):
    """Interrupts a training at so many steps."""

    def __init__(self, at: int) -> None:
        self.at = at

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        if name.startswith("training") and done >= self.at:
            raise Stop


class Noting(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


# Training in rounds


def pendulum(**changes: Any) -> TrainingConfig:
    settings: dict[str, Any] = {
        "train_steps": 1200, "round_steps": 400, "train_envs": 2, "random_steps": 150, "utd": 0.2, "batch_size": 16,
        "eval_episodes": 2,
    }  # fmt: skip
    return TrainingConfig(**{**settings, **changes})


def trained(config: TrainingConfig, progress: Silent | None = None) -> Trained:
    hyper = SACConfig(hidden_dims=(8, 8))
    return train(find_task("Pendulum-v1"), config, hyper, 3, progress or Silent())


def assert_same(a: Trained, b: Trained) -> None:
    """Equal to the last bit: episodes, networks, optimisers, counters, returns."""
    assert a.random == b.random
    assert len(a.rounds) == len(b.rounds)
    for x, y in zip(a.rounds, b.rounds, strict=True):
        assert (x.env_steps, x.updates, x.returns) == (y.env_steps, y.updates, y.returns)
        for p, q in zip(x.recordings(), y.recordings(), strict=True):
            np.testing.assert_equal(vars(p), vars(q))
        tensors = load_file(x.folder / "agent.safetensors"), load_file(y.folder / "agent.safetensors")
        assert set(tensors[0]) == set(tensors[1])
        assert any(name.startswith("optimizer.temperature.second") for name in tensors[0])
        for name, tensor in tensors[0].items():
            assert torch.equal(tensor, tensors[1][name]), name
        assert (x.folder / "agent.json").read_text() == (y.folder / "agent.json").read_text()


def test_interrupted_training_that_goes_on_equals_one_that_was_not(tmp_path: Path) -> None:
    whole = trained(pendulum(cache=str(tmp_path / "whole")))
    broken = pendulum(cache=str(tmp_path / "broken"))
    for at in (100, 600, 1100):  # in the middle of each round
        with pytest.raises(Stop):
            trained(broken, Interrupting(at))
    assert_same(trained(broken), whole)
    updates = [r.updates for r in whole.rounds]
    assert updates == [50, 130, 210]  # a fifth of the steps after the random ones
    rounds = sorted(p.name for p in whole.rounds[0].folder.parent.iterdir())
    assert rounds == ["round-0000", *(f"round-000{i}{end}" for i in (1, 2, 3) for end in ("", ".npz"))]


def test_more_steps_continue_the_training_and_fewer_use_its_beginning(tmp_path: Path) -> None:
    whole = trained(pendulum(cache=str(tmp_path / "whole")))
    short = trained(pendulum(cache=str(tmp_path / "grown"), train_steps=800))
    assert_same(replace(whole, rounds=whole.rounds[:2]), short)
    assert_same(trained(pendulum(cache=str(tmp_path / "grown"))), whole)
    assert len(trained(pendulum(cache=str(tmp_path / "whole"), train_steps=1)).rounds) == 1


def test_other_settings_or_seeds_are_other_trainings(tmp_path: Path) -> None:
    config = pendulum(cache=str(tmp_path), train_steps=400)
    first = trained(config)
    again = trained(replace(config, utd=0.1))
    seeds = [train(find_task("Pendulum-v1"), config, SACConfig(hidden_dims=(8, 8)), s, Silent()) for s in (3, 4)]
    assert seeds[0].rounds[0].folder == first.rounds[0].folder
    assert len({t.rounds[0].folder for t in (first, again, seeds[1])}) == 3


def test_training_takes_no_more_than_its_rounds_and_every_step_is_recorded(tmp_path: Path) -> None:
    result = trained(pendulum(cache=str(tmp_path), train_steps=450, round_steps=405))
    assert [r.env_steps for r in result.rounds] == [406, 812]  # whole rounds, the same for every environment
    for done in result.rounds:
        recordings = done.recordings()
        assert sum(len(r) for r in recordings) == 406
        assert [r.finished for r in recordings] == [True] * 2 + [False] * 2
        assert {r.observations.dtype for r in recordings} == {np.dtype(np.float32)}
    seeds = [r.seed for done in result.rounds for r in done.recordings()]
    assert len(set(seeds)) == len(seeds)  # no round repeats another's episodes


@pytest.mark.parametrize("damage", ["agent.safetensors", "round.json", "npz"])
def test_broken_training_is_one_line_that_says_what_to_delete(tmp_path: Path, damage: str) -> None:
    config = pendulum(cache=str(tmp_path), train_steps=400)
    folder = trained(config).rounds[0].folder
    file = folder.with_suffix(".npz") if damage == "npz" else folder / damage
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="round-0001") as error:
        trained(replace(config, train_steps=800))
    assert "\n" not in str(error.value)


def test_round_shorter_than_an_episode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="raise --round-steps to 400 or more"):
        trained(pendulum(cache=str(tmp_path), round_steps=300))


# Tiers


def fake(random: float, returns: list[float], std: float = 1.0) -> Trained:
    rounds = (Round(Path(), i + 1, 100 * (i + 1), 0, Returns(r, std, 4)) for i, r in enumerate(returns))
    return Trained({}, Returns(random, std, 4), tuple(rounds))


def test_expert_is_the_best_snapshot_and_medium_the_first_a_third_of_the_way() -> None:
    task = find_task("Pendulum-v1")
    medium, expert = choose(fake(-30.0, [-30, -1, 10, 60, 50]), task)
    assert (medium.number, expert.number) == (3, 4)  # -30 + 90 / 3 = 0
    medium, expert = choose(fake(0.0, [30.0, 10.0]), task)
    assert medium is expert


def test_training_that_did_not_learn_is_an_error_with_the_cure() -> None:
    with pytest.raises(DataError, match=r"not learned Pendulum-v1 in 200 steps.*--train-steps 800"):
        choose(fake(0.0, [1.0, 2.0]), find_task("Pendulum-v1"))  # 3 standard errors are 2.1
    choose(fake(0.0, [1.0, 2.2]), find_task("Pendulum-v1"))


def test_tiers_share_one_training_and_are_what_they_are_called(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Noting()
    ids = {"medium-replay": make_data(reach(cache, tier="medium-replay"), lines)}
    assert any("a replay is taken whole" in line for line in lines.lines)
    monkeypatch.setattr(tiers._Training, "_round", lambda *_: pytest.fail("the training is there already"))
    for tier in ("random", "medium", "medium-expert", "expert", "full-replay"):
        ids[tier] = make_data(reach(cache, tier=tier))
        assert ids[tier] == f"o2o-smooth/reach/{tier}-v0"
    data = {tier: from_minari(dataset_id) for tier, dataset_id in ids.items()}
    mean = {tier: float(d.transitions.episode_returns.mean()) for tier, d in data.items()}
    assert mean["random"] < mean["medium"] < mean["expert"]
    assert mean["medium"] < mean["medium-expert"] < mean["expert"]
    for tier in ("random", "medium", "expert", "medium-expert"):
        assert 300 <= len(data[tier].transitions) < 310
    record = record_of(ids["medium-replay"])
    rounds = record["snapshots"]["medium"]["env_steps"] // 204
    assert len(data["medium-replay"].transitions) == rounds * 200  # of 102 steps a lane the last two are unfinished
    assert len(data["full-replay"].transitions) == 800
    assert {d.provenance for d in data.values()} == {"generated"}
    assert all((d.transitions.truncated == (np.arange(len(d.transitions)) % 5 == 4)).all() for d in data.values())
    curve = record["training"]["curve"]
    assert [point["env_steps"] for point in curve] == [204, 408, 612, 816]
    assert record["snapshots"]["expert"]["mean"] == max(point["return_mean"] for point in curve)
    assert record["training"]["hyper"]["hidden_dims"] == [16, 16]
    assert record["training"]["seed"] == record["seed"] == 0
    assert len(record["snapshots"]["expert"]["sha256"]) == 64
    assert record["versions"]["torch"]


def test_medium_expert_has_half_of_each_all_along(cache: str) -> None:
    dataset_id = make_data(reach(cache, tier="medium-expert"))
    record = record_of(dataset_id)
    assert [p["snapshot"] for p in record["policies"]] == ["medium", "expert"]
    assert record["episode_sources"] == [0, 1] * 30
    alone = from_minari(make_data(reach(cache, tier="medium", transitions=150))).transitions
    both = from_minari(dataset_id).transitions
    medium = np.repeat(np.array(record["episode_sources"]) == 0, 5)
    np.testing.assert_array_equal(both.action[medium], alone.action)


def test_same_settings_make_the_same_data_and_another_seed_does_not(cache: str) -> None:
    config = reach(cache, tier="random")
    hashes = [
        from_minari(make_data(replace(config, id=f"mine/a-v{i}", seed=seed))).sha256 for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_tier_and_id_follow_the_task() -> None:
    def planned(task: Task, **settings: Any) -> tuple[Any, str]:
        tier, policies = making._what(MakeConfig(task=task.id, **settings), task)
        return tier, making._default_id(task, tier, policies)

    assert planned(find_task("hopper-medium-replay-v2")) == ("medium-replay", "o2o-smooth/hopper/medium-replay-v0")
    assert planned(find_task("hopper-medium-v2"), tier="expert") == ("expert", "o2o-smooth/hopper/expert-v0")
    assert planned(find_task("hopper-medium-v2"), policy=("x",)) == (None, "o2o-smooth/hopper/medium-v0")
    maze = find_task("D4RL/pointmaze/medium-v2")
    assert planned(maze) == (None, "o2o-smooth/pointmaze/medium-v0")
    assert planned(maze, tier="medium") == ("medium", "o2o-smooth/pointmaze_medium/medium-v0")
    pendulum = find_task("Pendulum-v1")
    assert planned(pendulum, policy=("random",)) == (None, "o2o-smooth/pendulum/random-v0")
    assert planned(pendulum, mix=("a-v0=1",)) == (None, "o2o-smooth/pendulum/mix-v0")
    with pytest.raises(ConfigError, match="names no tier: say what to make"):
        planned(pendulum)
    with pytest.raises(ConfigError, match="noise is for --policy"):
        planned(find_task("hopper-medium-v2"), noise=0.1)


# Policies


def saved_agent(path: Path, env_id: str = REACH, seeds: tuple[int, ...] = (3, 5)) -> SAC:
    env = make_env(find_task(env_id))
    agent = SAC(env.observation_space, env.action_space, SACConfig(hidden_dims=(8, 8)), seeds=seeds)
    agent.save(path)
    return agent


def test_saved_agent_acts_with_the_member_and_noise_that_are_asked_for(tmp_path: Path, cache: str) -> None:
    agent = saved_agent(tmp_path / "agent")
    config = reach(cache, policy=(str(tmp_path / "agent"),), deterministic=True, transitions=100)
    for i, (member, index) in enumerate(((None, 0), (3, 0), (5, 1))):
        t = from_minari(make_data(replace(config, member=member, id=f"mine/a-v{i}"))).transitions
        want = agent.act(np.repeat(t.obs[None], 2, axis=0))[index]
        np.testing.assert_allclose(t.action, want, rtol=1e-5)
    record = record_of("mine/a-v2")["policies"][0]
    assert (record["agent"], record["member"], record["deterministic"]) == ("sac", 5, True)
    t = from_minari(make_data(replace(config, noise=0.5, id="mine/noisy-v0"))).transitions
    away = t.action - agent.act(np.repeat(t.obs[None], 2, axis=0))[0]
    assert 0.3 < away[np.abs(t.action) < 1].std() < 0.6
    t = from_minari(make_data(replace(config, deterministic=False, id="mine/sampled-v0"))).transitions
    assert (t.action - agent.act(np.repeat(t.obs[None], 2, axis=0))[0]).std() > 0.2
    with pytest.raises(DataError, match="no member of seed 4; it holds 3 5"):
        make_data(replace(config, member=4, id="mine/none-v0"))


def test_run_folder_means_its_final_agent_and_a_checkpoint_itself(tmp_path: Path, cache: str) -> None:
    record = SwitchRecord(REACH, None, 1.0, 0.0, 0, {}, [], [])
    agents = {name: saved_agent(tmp_path / "x", seeds=(seed,)) for name, seed in (("switch", 1), ("final", 2))}
    for name, agent in agents.items():
        save_checkpoint(tmp_path / "run" / "checkpoints" / name, agent, record)
    config = reach(cache, policy=(str(tmp_path / "run"),))
    assert record_of(make_data(config))["policies"][0]["member"] == 2
    switch = replace(config, policy=(str(tmp_path / "run" / "checkpoints" / "switch"),), id="mine/switch-v0")
    assert record_of(make_data(switch))["policies"][0]["member"] == 1


def test_several_policies_share_the_transitions_episode_by_episode(tmp_path: Path, cache: str) -> None:
    np.savez(tmp_path / "half.npz", W0=np.zeros((1, 1)), b0=np.array([0.5]))
    config = reach(cache, policy=("random", str(tmp_path / "half.npz")), transitions=100)
    dataset_id = make_data(config)
    assert dataset_id == "o2o-smooth/reach/policy-v0"
    record = record_of(dataset_id)
    assert [p["kind"] for p in record["policies"]] == ["random", "arrays"]
    assert record["episode_sources"] == [0, 1] * 10
    t = from_minari(dataset_id).transitions
    npz = np.repeat(record["episode_sources"], 5) == 1
    np.testing.assert_array_equal(t.action[npz], 0.5)
    assert t.action[~npz].std() > 0.4


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("scripted", "for PointMaze tasks"),
        ("nowhere", "there is no policy nowhere: give scripted, random"),
        ("absent.npz", "there is no policy file absent.npz"),
    ],
)
def test_policy_that_is_not_there_is_one_line(cache: str, policy: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make_data(reach(cache, policy=(policy,)))


def test_agent_of_other_sizes_is_refused(tmp_path: Path, cache: str) -> None:
    saved_agent(tmp_path / "agent", "Pendulum-v1")
    with pytest.raises(DataError, match="takes 3 observations and gives 1 actions, the environment has 1 and 1"):
        make_data(reach(cache, policy=(str(tmp_path / "agent"),)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        make_data(reach(cache, policy=(str(tmp_path / "empty"),)))


def test_pointmaze_with_one_environment_is_the_set_that_is_made_on_the_spot() -> None:
    pytest.importorskip("gymnasium_robotics")
    task = find_task("D4RL/pointmaze/open-v2")
    dataset_id = make_pointmaze_dataset(task, transitions=400, seed=2)
    made = from_minari(dataset_id, task=task).sha256
    config = MakeConfig(task=task.id, transitions=400, seed=2, num_envs=1)
    with pytest.raises(DataError, match="is there already"):
        make_data(config)
    assert make_data(replace(config, overwrite=True)) == dataset_id
    assert from_minari(dataset_id, task=task).sha256 == made
    assert record_of(dataset_id)["policies"][0]["controller"]["gain"] == 2.0
    make_data(replace(config, overwrite=True, num_envs=4))
    assert from_minari(dataset_id, task=task).sha256 != made
    recovered = minari.load_dataset(dataset_id).recover_environment()
    assert recovered.spec is not None
    assert recovered.spec.max_episode_steps == 150
    recovered.close()


# What is there already


def test_old_dataset_stays_until_the_new_one_is_complete(
    cache: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = reach(cache, policy=("random",), id="mine/a-v0")
    make_data(config)
    old = from_minari("mine/a-v0").sha256
    other = replace(config, seed=1, overwrite=True)
    with pytest.raises(DataError, match="name another with --id, or give --overwrite"):
        make_data(replace(other, overwrite=False))

    with monkeypatch.context() as broken:
        broken.setattr(minari.MinariDataset, "storage", property(lambda self: pytest.fail("the disk is full")))
        with pytest.raises(BaseException, match="the disk is full"):
            make_data(other)
    assert from_minari("mine/a-v0").sha256 == old
    make_data(other)
    assert from_minari("mine/a-v0").sha256 != old
    assert [p.name for p in (folders / "minari").iterdir()] == ["mine"]  # no staging folder is left


# Mixtures


@pytest.fixture
def two(cache: str) -> tuple[str, str]:
    """Datasets of 300 transitions, told apart by their actions."""
    a = make_data(reach(cache, policy=("random",), id="mine/a-v0"))
    return a, make_data(reach(cache, policy=("random",), id="mine/b-v0", seed=1))


def test_mixture_has_the_first_episodes_of_each_in_its_share(cache: str, two: tuple[str, str]) -> None:
    config = reach(cache, mix=("mine/a-v0=3", "mine/b-v0=1"), transitions=200)
    dataset_id = make_data(config)
    assert dataset_id == "o2o-smooth/reach/mix-v0"
    mixed = from_minari(dataset_id).transitions
    record = record_of(dataset_id)
    number = np.repeat(record["episode_sources"], 5)
    for i, (source, steps) in enumerate(zip(two, (150, 50), strict=True)):
        t = from_minari(source).transitions
        np.testing.assert_array_equal(mixed.action[number == i], t.action[:steps])
        np.testing.assert_array_equal(mixed.next_obs[number == i], t.next_obs[:steps])
    described = [(s["id"], s["share"], s["transitions"], s["episodes"]) for s in record["sources"]]
    assert described == [("mine/a-v0", 0.75, 150, 30), ("mine/b-v0", 0.25, 50, 10)]
    assert [s["sha256"] for s in record["sources"]] == [from_minari(source).sha256 for source in two]
    # without --transitions as many as there are
    whole = make_data(replace(config, transitions=None, id="mine/whole-v0"))
    assert len(from_minari(whole).transitions) == 400


@pytest.mark.parametrize("other", ["minari", "own"])
def test_mixture_is_generated_whatever_it_is_made_of(
    cache: str, folders: Path, two: tuple[str, str], other: str
) -> None:
    for source, word in zip(two, ("minari", other), strict=True):
        file = folders / "minari" / source / "data" / "metadata.json"
        metadata = json.loads(file.read_text())
        metadata[RECORD]["provenance"] = word
        file.write_text(json.dumps(metadata))
    dataset_id = make_data(reach(cache, mix=("mine/a-v0=1", "mine/b-v0=1"), id="mine/mix-v0", transitions=100))
    assert record_of(dataset_id)["provenance"] == "generated"


def test_mixture_that_cannot_be_is_refused(cache: str, two: tuple[str, str], tmp_path: Path) -> None:
    del two
    with pytest.raises(DataError, match=r"mine/a-v0 has 300 transitions.*--transitions 400 at most"):
        make_data(reach(cache, mix=("mine/a-v0=3", "mine/b-v0=1"), transitions=500))
    with pytest.raises(DataError, match="mine/c-v0 is not installed"):
        make_data(reach(cache, mix=("mine/a-v0=3", "mine/c-v0=1")))
    with pytest.raises(DataError, match=r"its observations are \(1,\), the environment's \(3,\)"):
        make_data(reach(cache, mix=("mine/a-v0=3",), task="Pendulum-v1"))
    assert not is_installed("o2o-smooth/reach/mix-v0")


# Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tier": "medium", "policy": ("random",)}, "give one of them"),
        ({"tier": "mediocre"}, "did you mean medium"),
        ({"transitions": 0}, "transitions must be at least 1"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"noise": -0.1}, "noise must lie in"),
        ({"epsilon": 1.5}, "epsilon is a probability"),
        ({"tier": "medium", "noise": 0.1}, "noise is for --policy"),
        ({"mix": ("a-v0=1",), "member": 0}, "member is for --policy"),
        ({"id": "../a-v0"}, "no Minari id"),
        ({"id": "a"}, "no Minari id"),
        ({"mix": ("a-v0",)}, "write ID=SHARE"),
        ({"mix": ("a-v0=-1",)}, "write ID=SHARE"),
        ({"mix": ("a-v0=nan",)}, "write ID=SHARE"),
        ({"mix": ("a-v0=1", "a-v0=2")}, "twice"),
    ],
)
def test_setting_out_of_range_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        MakeConfig(**settings)


@pytest.mark.parametrize(
    "setting", ["train_steps", "round_steps", "train_envs", "batch_size", "eval_episodes", "random_steps", "utd"]
)
def test_training_setting_out_of_range_is_named(setting: str) -> None:
    wrong: dict[str, Any] = {setting: -1}
    with pytest.raises(ConfigError, match=setting):
        TrainingConfig(**wrong)


def test_environment_that_cannot_be_stored_is_refused_before_any_work(cache: str) -> None:
    gym.register("o2o-smooth-tests/Callable-v0", entry_point=lambda **_: Reach())
    try:
        with pytest.raises(DataError, match="cannot be stored"):
            make_data(reach(cache, task="o2o-smooth-tests/Callable-v0", policy=("random",)))
    finally:
        del gym.registry["o2o-smooth-tests/Callable-v0"]


def test_flags_are_the_names_of_the_settings() -> None:
    arguments = "--task hopper-medium-v2 --mix a-v0=1 b-v0=2 --train-steps 5 --hidden-dims 4 4 --no-overwrite"
    default = default_make_config("hopper-medium-v2")
    config = tyro.cli(MakeConfig, args=arguments.split(), default=default, config=(tyro.conf.OmitArgPrefixes,))
    assert (config.mix, config.training.train_steps, config.hyper.hidden_dims) == (("a-v0=1", "b-v0=2"), 5, (4, 4))


def test_threads_are_given_back(cache: str) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    class Watching(Silent):
        def update(self, name: str, done: int, total: int, remark: str = "") -> None:
            seen.append(torch.get_num_threads())

    make_data(reach(cache, policy=("random",), threads=before + 1, transitions=10), Watching())
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before
