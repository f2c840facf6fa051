"""The parity check: two paths that agree pass, and whatever is broken in one of them is called by its name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import NormalizeObservation, RescaleAction, TransformReward

from o2o_smooth.agents import AGENTS, Agent
from o2o_smooth.data.batch import Transitions
from o2o_smooth.data.buffer import ReplayBuffer
from o2o_smooth.data.collect import Collector
from o2o_smooth.data.normalize import RewardMap
from o2o_smooth.envs import Task, make_env, make_vector_env
from o2o_smooth.errors import ParityError
from o2o_smooth.training import run as run_module
from o2o_smooth.training.config import SmoothingConfig, SwitchConfig
from o2o_smooth.training.evaluate import Evaluator
from o2o_smooth.training.parity import check_parity
from o2o_smooth.training.parity_walks import Paths
from o2o_smooth.training.population import run_population
from o2o_smooth.training.run import run
from o2o_smooth.training.stopping import Stopped
from tests.agents.test_probes import state_of
from tests.envs.misbehaving import misbehaving
from tests.training.test_run import data, lines, small  # noqa: F401

PENDULUM = Task(id="Pendulum-v1", env_id="Pendulum-v1", max_episode_steps=30)
MAP = RewardMap(0.5, -1.0)
Wrap = Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]


def make(name: str = "iql", task: Task = PENDULUM, seeds: Sequence[int] = (3, 5), **settings: Any) -> Agent:
    env = make_env(task)
    cls = AGENTS[name]
    agent = cls(
        env.observation_space, env.action_space, cls.config_class(hidden_dims=(8, 8), **settings), seeds=tuple(seeds)
    )
    dim = agent.obs_dim
    agent.set_normalizer(np.linspace(-0.3, 0.4, dim), np.linspace(0.6, 2.0, dim))
    return agent


def wrapped(task: Task, count: int, wrap: Wrap) -> Any:
    def one() -> gym.Env[Any, Any]:
        return wrap(make_env(task))

    return SyncVectorEnv([one] * count, autoreset_mode=AutoresetMode.SAME_STEP)


def paths(
    agent: Agent,
    *,
    task: Task = PENDULUM,
    reward_map: RewardMap = MAP,
    lanes: int = 2,
    vectorizer: str = "sync",
    overlap: bool = False,
    evaluate: Wrap | None = None,
    collect: Wrap | None = None,
    stored: RewardMap | None = None,
) -> Paths:
    """Both paths as a run has them, with a wrapper of one's own around each environment of one of them."""

    def evaluator(task: Task, envs: int) -> Evaluator:
        made = Evaluator(task, agent.seeds, envs=envs)
        if evaluate is not None:
            made._envs = wrapped(task, agent.members * envs, evaluate)
        return made

    def collector(task: Task, envs: int, buffer: ReplayBuffer, seeds: Sequence[int]) -> Collector:
        count = agent.members * envs
        vector = make_vector_env(task, count, vectorizer=vectorizer)
        if collect is not None:
            vector = wrapped(task, count, collect)
        own = stored if stored is not None else reward_map
        return Collector(vector, agent.members, buffer, reward_map=own, discount=0.9, seeds=seeds, overlap=overlap)

    return Paths(agent, task, reward_map, lanes, evaluator, collector)


def culprit(paths: Paths, **options: Any) -> tuple[str, str]:
    with pytest.raises(ParityError) as caught:
        check_parity(paths, **options)
    assert "--no-parity-check" in str(caught.value) or "shape" in caught.value.culprit
    return caught.value.culprit, str(caught.value)


# Paths that agree


@pytest.mark.parametrize("name", ["iql", "td3_bc", "sac"])
def test_equal_paths_agree_and_nothing_moves(name: str) -> None:
    agent = make(name)
    before, rng, numbers = state_of(agent), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]  # noqa: NPY002
    found = check_parity(paths(agent))
    assert (found.outcome, found.steps) == ("agree", 30 * 4)
    assert state_of(agent) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert np.array_equal(np.random.get_state()[1], numbers)  # type: ignore[index]  # noqa: NPY002


@pytest.mark.parametrize(("vectorizer", "overlap"), [("sync", True), ("async", False), ("async", True)])
def test_paths_agree_whoever_steps_the_environments(vectorizer: str, overlap: bool) -> None:
    agent = make(seeds=(3,))
    assert check_parity(paths(agent, vectorizer=vectorizer, overlap=overlap)).outcome == "agree"


def test_episodes_that_terminate_are_followed_into_the_next_one() -> None:
    task = Task(id="counting", env_id=_counting())
    assert check_parity(paths(make(task=task), task=task)).outcome == "agree"


def _counting() -> str:
    from tests.envs.counting import counting_task

    return counting_task().env_id


def test_a_long_episode_is_cut() -> None:
    task = dataclasses.replace(PENDULUM, max_episode_steps=5000)
    assert check_parity(paths(make(seeds=(3,)), task=task, lanes=1)).steps == 1000


# Paths that do not


class Scaled(gym.ActionWrapper[Any, Any, Any]):
    """Halves actions and says nothing of it."""

    def action(self, action: Any) -> Any:
        return 0.5 * action


class Ends(gym.Wrapper[Any, Any, Any, Any]):
    """Terminates after some steps."""

    steps = 0

    def reset(self, **options: Any) -> Any:
        self.steps = 0
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or self.steps == 11, truncated, info


class Cuts(Ends):
    """Truncates after some steps."""

    def step(self, action: Any) -> Any:
        obs, reward, over, truncated, info = super().step(action)
        return obs, reward, False, truncated or over, info


class Heavy(gym.Wrapper[Any, Any, Any, Any]):
    """Another pendulum."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.env.unwrapped.g = 20.0  # type: ignore[attr-defined]


class Skips(gym.Wrapper[Any, Any, Any, Any]):
    """Draws a start and throws it away before every episode but the first."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is None:
            self.env.reset()
        return self.env.reset(seed=seed)


@pytest.mark.parametrize("side", ["evaluate", "collect"])
@pytest.mark.parametrize(
    ("wrap", "name", "says"),
    [
        (Scaled, "action scaling", "one of them scales or clips actions"),
        (
            lambda env: RescaleAction(env, np.float32(-1), np.float32(1)),
            "action box",
            "a wrapper there rescales actions",
        ),
        (NormalizeObservation, "first observation", "a normaliser works in one path alone"),
        (Heavy, "dynamics", "another environment, wrapper or setting"),
        (Ends, "termination", "alone ends the episode there"),
        (Cuts, "time limit", "the time limits differ"),
        (
            lambda env: TransformReward(env, lambda r: 3 * float(r)),
            "reward",
            "before the reward map (* 0.5 + -1) they are",
        ),
        (lambda env: gym.wrappers.TransformObservation(env, lambda o: o[:2], _box(2)), "observation shape", "(2,)"),
    ],
)
def test_what_one_path_does_alone_is_named(side: str, wrap: Any, name: str, says: str) -> None:
    wraps: dict[str, Any] = {side: wrap}
    found, text = culprit(paths(make(), **wraps))
    assert found == name
    assert says in text


def _box(n: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (n,), np.float32)


def test_the_place_and_both_values_are_told() -> None:
    _, text = culprit(paths(make(), collect=lambda env: TransformReward(env, lambda r: float(r) + 1)))
    assert "seed 3, environment 0, step 1: reward is" in text
    raw, other = (float(part.split()[0].rstrip(";")) for part in text.split("they are ")[1].split(" and "))
    assert other == pytest.approx(raw + 1, abs=1e-4)


def test_a_time_limit_that_is_longer_or_shorter_is_told_with_its_step() -> None:
    agent = make()
    shorter = dataclasses.replace(PENDULUM, max_episode_steps=20)

    def collector(task: Task, envs: int, buffer: ReplayBuffer, seeds: Sequence[int]) -> Collector:
        return paths(agent).collector(shorter, envs, buffer, seeds)

    found, text = culprit(dataclasses.replace(paths(agent), collector=collector))
    assert found == "time limit"
    assert "step 20: truncated is 0 in the evaluation path and 1 in the collection path" in text
    assert "the collection path alone cuts the episode" in text


def test_another_start_after_an_episode_is_named() -> None:
    task = Task(id="Pendulum-v1", env_id="Pendulum-v1", max_episode_steps=None)
    found, _ = culprit(paths(make(), task=task, evaluate=lambda env: Skips(Uneven(env)), collect=Uneven))
    assert found == "reset"


class Uneven(Ends):
    """Terminates after a number of steps that depends on the start, so that lanes end apart."""

    def reset(self, **options: Any) -> Any:
        obs, info = super().reset(**options)
        self.length = 3 + int(abs(obs[0]) * 10)
        return obs, info

    def step(self, action: Any) -> Any:
        self.steps += 1
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or self.steps >= self.length, truncated, info


def test_a_reward_map_that_is_applied_twice_or_not_at_all_is_named() -> None:
    agent = make()
    twice = RewardMap(MAP.scale**2, MAP.scale * MAP.shift + MAP.shift)
    for stored, says in ((twice, "is applied twice"), (RewardMap(), "is not applied")):
        found, text = culprit(paths(agent, stored=stored))
        assert found == "reward map"
        assert f"the reward map (* 0.5 + -1) {says} in the collection path" in text


def test_offline_rows_with_other_rewards_than_the_collectors_are_named() -> None:
    agent, rng = make(), np.random.default_rng(0)
    ends = np.arange(600) % 100 == 99
    rows = Transitions(
        obs=rng.normal(size=(600, 3)).astype(np.float32),
        action=rng.uniform(-2, 2, (600, 1)).astype(np.float32),
        reward=rng.normal(size=600).astype(np.float32),
        next_obs=rng.normal(size=(600, 3)).astype(np.float32),
        terminated=np.zeros(600, np.bool_),
        truncated=ends,
    )

    def buffer(given: Transitions) -> ReplayBuffer:
        return ReplayBuffer.from_transitions(given, 2, discount=0.9, reward_map=MAP)

    assert check_parity(paths(agent), offline=(buffer(rows), rows)).outcome == "agree"
    mapped = dataclasses.replace(rows, reward=MAP(rows.reward), rows=None)
    found, text = culprit(paths(agent), offline=(buffer(mapped), rows))
    assert found == "reward map"
    assert "is applied twice in the offline rows" in text
    unmapped = ReplayBuffer.from_transitions(rows, 2, discount=0.9)
    assert "is not applied in the offline rows" in culprit(paths(agent), offline=(unmapped, rows))[1]


def test_a_normaliser_that_is_not_frozen_is_named() -> None:
    agent = make()
    act = agent.act

    def moving(obs: Any, **options: Any) -> Any:
        agent.networks.obs_mean.add_(0.01)
        return act(obs, **options)

    agent.act = moving  # type: ignore[method-assign]
    found, text = culprit(paths(agent))
    assert found == "normaliser"
    assert "the normaliser is not frozen: it moved while the evaluation path acted" in text


def test_a_normaliser_that_moves_with_exploration_alone_is_named_too() -> None:
    agent = make()
    act = agent.act

    def moving(obs: Any, *, deterministic: bool = True, **options: Any) -> Any:
        if not deterministic:
            agent.networks.obs_std.mul_(1 + 1e-6)
        return act(obs, deterministic=deterministic, **options)

    agent.act = moving  # type: ignore[method-assign]
    assert culprit(paths(agent))[0] == "normaliser"


@pytest.mark.parametrize(
    ("name", "says", "bend"),
    [
        ("normaliser", "normalised twice", lambda a, act: lambda o, **k: act(_np(a.networks.encode_obs(_t(o))), **k)),
        ("normaliser", "not normalised", lambda a, act: lambda o, **k: act(_undo(a, o), **k)),
        ("action scaling", "brought to the action box twice", lambda a, act: lambda o, **k: 2 * act(o, **k)),
        ("action scaling", "not brought to the action box", lambda a, act: lambda o, **k: act(o, **k) / 2),
        ("policy", "does not do what the policy's network says", lambda a, act: lambda o, **k: act(o, **k) + 0.01),
        (
            "exploration",
            "two things on one observation",
            lambda a, act: lambda o, **k: act(o, deterministic=False),
        ),
        ("exploration", "does not explore as its objective says", lambda a, act: lambda o, **k: act(o)),
    ],
)
def test_a_policy_that_acts_otherwise_is_named(name: str, says: str, bend: Any) -> None:
    agent = make(seeds=(3,))
    agent.act = bend(agent, agent.act)  # type: ignore[method-assign]
    found, text = culprit(paths(agent))
    assert found == name
    assert says in text


def _t(obs: Any) -> torch.Tensor:
    return torch.as_tensor(obs)


def _np(x: torch.Tensor) -> Any:
    return x.numpy()


def _undo(agent: Agent, obs: Any) -> Any:
    return obs * agent.networks.obs_std.numpy() + agent.networks.obs_mean.numpy()


def test_a_collector_that_sums_otherwise_is_named() -> None:
    agent = make()
    honest = paths(agent)

    def collector(*arguments: Any) -> Collector:
        made = honest.collector(*arguments)
        made._returns += 1.0
        return made

    found, text = culprit(dataclasses.replace(honest, collector=collector))
    assert found == "episode return"
    assert "over 30 steps in the evaluation path" in text


class Moody(gym.Wrapper[Any, Any, Any, Any]):
    """No two episodes are alike, whatever the seed."""

    number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        Moody.number += 1
        return self.env.reset(seed=None if seed is None else seed + Moody.number)


def test_an_environment_that_does_not_repeat_itself_is_no_disagreement() -> None:
    found = check_parity(paths(make(), evaluate=Moody, collect=Moody))
    assert found.outcome == "not comparable"
    assert "does not repeat itself on equal seeds" in found.remark


@pytest.mark.parametrize(("times", "outcome"), [(1, "agree"), (100, "not comparable")])
@pytest.mark.parametrize("at", [3, 8])
def test_an_environment_that_fails_on_the_way_is_no_disagreement(
    times: int, outcome: str, at: int, tmp_path: Path
) -> None:
    task = misbehaving("raise", at=at, times=times, marks=str(tmp_path))
    found = check_parity(paths(make("td3", dataclasses.replace(task, max_episode_steps=8)), task=task))
    assert found.outcome == outcome
    assert times == 1 or "failed while both paths were walked, 2 times" in found.remark


@pytest.mark.parametrize("after", [2, 5])
def test_the_check_ends_at_once_where_somebody_wants_to_stop(after: int) -> None:
    looks = [0]

    def look() -> None:
        looks[0] += 1
        if looks[0] == after:
            raise Stopped

    with pytest.raises(Stopped):
        check_parity(dataclasses.replace(paths(make()), look=look))
    assert looks[0] == after


def test_envpools_way_compares_from_equal_starts_to_a_tolerance() -> None:
    pytest.importorskip("mujoco")
    task = Task(id="hopper", env_id="Hopper-v5")
    agent = make(task=task, seeds=(3,))

    class Rounded(gym.ObservationWrapper[Any, Any, Any]):
        def observation(self, observation: Any) -> Any:
            return np.round(observation, 5)

    found = check_parity(paths(agent, task=task, collect=Rounded), pool=True)
    assert found.outcome == "agree"
    assert found.steps <= 30 * 2
    assert culprit(paths(agent, task=task, collect=Scaled), pool=True)[0] == "action scaling"


# In a run


def final(out: Path) -> bytes:
    return (out / "checkpoints" / "final" / "agent.safetensors").read_bytes()


def test_a_run_is_the_same_with_and_without_the_check(data: Path, tmp_path: Path) -> None:  # noqa: F811
    ways = {}
    for check in (True, False):
        out = run(small(data, tmp_path / str(check), switch=SwitchConfig(parity_check=check), reward_scale=0.1))
        manifest = json.loads((out / "manifest.json").read_text())
        assert manifest["config"]["switch"]["parity_check"] is check
        ways[manifest["parity"]["outcome"]] = (final(out), (out / "evaluations.jsonl").read_bytes())
    assert set(ways) == {"agree", "skipped"}
    assert ways["agree"] == ways["skipped"]


def test_forks_and_populations_are_checked_too(data: Path, tmp_path: Path) -> None:  # noqa: F811
    base = run(small(data, tmp_path / "base", online_steps=0))
    assert "parity" not in json.loads((base / "manifest.json").read_text())
    arms = [
        small(data, tmp_path / name, pretrained=str(base), smoothing=SmoothingConfig(name)) for name in ("jump", "stay")
    ]
    for out in run_population(arms):
        assert json.loads((out / "manifest.json").read_text())["parity"]["outcome"] == "agree"


def test_a_disagreement_stops_the_run_before_its_first_step(
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scaled(task: Task, count: int, **options: Any) -> Any:
        return wrapped(task, count, Scaled)

    monkeypatch.setattr(run_module, "make_vector_env", scaled)
    with pytest.raises(ParityError, match="action scaling"):
        run(small(data, tmp_path / "run"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert (manifest["parity"]["outcome"], manifest["parity"]["culprit"]) == ("disagree", "action scaling")
    assert not [row for row in lines(tmp_path / "run", "evaluations.jsonl") if row["phase"] == "online"]
    assert (tmp_path / "run" / "checkpoints" / "switch" / "agent.json").is_file()
    assert run(small(data, tmp_path / "all-the-same", switch=SwitchConfig(parity_check=False))).is_dir()
