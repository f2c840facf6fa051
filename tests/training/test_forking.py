"""Forks: what an arm's text means, the controls, and random numbers that are common to all arms but an A/A arm."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from o2o_smooth.agents import AGENTS
from o2o_smooth.data import from_hdf5
from o2o_smooth.draws import Draws
from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.training.config import EvaluationConfig, HygieneConfig, RunConfig, SmoothingConfig
from o2o_smooth.training.config_switch import SwitchConfig
from o2o_smooth.training.forking import ForkArm, check_arms, find_switch, parse_arm, with_controls
from o2o_smooth.training.population import run_population
from o2o_smooth.training.run import run
from o2o_smooth.training.seeding import Stream, env_seeds, generator, online_seed
from tests.training.test_population import assert_same_run

BASE: RunConfig[Any] = RunConfig(hyper=AGENTS["iql"].config_class(), pretrained="base", seeds=(0, 1))


# What an arm's text means


@pytest.mark.parametrize(
    ("text", "name", "smoothing"),
    [
        ("jump", "jump", {"schedule": "jump"}),
        ("linear:500", "linear:500", {"schedule": "linear:500"}),
        ("linear:500,regime=mixed", "linear:500, regime=mixed", {"schedule": "linear:500", "regime": "mixed"}),
        ("regime=mixed , cosine", "regime=mixed, cosine", {"schedule": "cosine", "regime": "mixed"}),
        (
            "name=gentle,schedule=hold:1000+linear:4000,offline-fraction=0.5",
            "gentle",
            {"schedule": "hold:1000+linear:4000", "offline_fraction": 0.5},
        ),
        ("floor:0.2+jump,actor_schedule=linear:9", "floor:0.2+jump, actor_schedule=linear:9",
         {"schedule": "floor:0.2+jump", "actor_schedule": "linear:9"}),
    ],
)  # fmt: skip
def test_an_arm_is_a_schedule_and_settings(text: str, name: str, smoothing: dict[str, Any]) -> None:
    arm = parse_arm(text, BASE)
    assert arm.name == name
    assert arm.config == dataclasses.replace(BASE, smoothing=SmoothingConfig(**smoothing))


def test_an_arm_may_set_the_agent_and_the_loop() -> None:
    config = parse_arm(
        "jump,expectile=0.9,initial-temperature=0.5,utd=2,online-stream=3,save-online=false", BASE
    ).config
    assert config.hyper.expectile == 0.9
    assert config.hyper.sac.initial_temperature == 0.5
    assert (config.utd, config.online_stream, config.save_online) == (2.0, 3, False)


def test_what_an_arm_leaves_out_is_shared() -> None:
    base = dataclasses.replace(BASE, smoothing=SmoothingConfig("cosine", ramp_steps=77), utd=3.0)
    config = parse_arm("regime=mixed", base).config
    assert (config.smoothing.schedule, config.smoothing.ramp_steps, config.utd) == ("cosine", 77, 3.0)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lineer:500", "there is no curve 'lineer'"),
        ("jump,regime=mixd", "regime must be one of retain, mixed, discard, got 'mixd'"),
        ("jump,ofline-fraction=0.5", "did you mean offline_fraction"),
        ("jump,offline-fraction=2", r"offline_fraction must lie in \[0, 1\]"),
        ("jump,ramp-steps=many", "ramp_steps must be an integer, got 'many'"),
        ("jump,linear", "two schedules"),
        ("jump,utd=1,utd=2", "'utd' twice"),
        ("name=a,name=b", "'name' twice"),
        ("jump,", "nothing before, after or between commas"),
        ("jump,regime=", "cannot read 'regime='"),
        ("jump,seeds=1", "'seeds' is shared by all arms"),
        ("jump,eval-every=5", "'eval_every' is shared by all arms"),
        ("jump,expectile=3", "expectile must lie in"),
    ],
)
def test_an_arm_that_cannot_be_read_is_named_with_its_text(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_arm(text, BASE)
    assert f"--arm '{text}'" in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        ((), "at least one arm"),
        (("jump", "jump"), "two arms are called 'jump'"),
        (("name=a,jump", "name=a,stay"), "two arms are called 'a'"),
        (("name=a b,jump", "name=A-b,stay"), "arms 'a b' and 'A-b' would share the folder"),
        (("jump", "name=again,jump"), "arms 'jump' and 'again' are the same run"),
        (("name=***,jump",), "no letter or number"),
    ],
)
def test_arms_that_cannot_be_told_apart_are_refused(texts: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check_arms([parse_arm(text, BASE) for text in texts])


# Controls


def test_controls_are_what_a_comparison_needs() -> None:
    arms = [parse_arm(text, BASE) for text in ("linear:500,regime=mixed,actor-lr=0.5", "jump")]
    found = with_controls(arms, BASE)
    check_arms(found)
    assert found[:2] == arms
    assert [(a.name, a.folder, a.control) for a in found[2:]] == [
        ("stay", "stay", True),
        ("jump, mixed batch", "jump-mixed-batch", True),
        ("jump to floor 0.2", "jump-to-floor-0.2", True),
        ("linear:500, regime=mixed, actor-lr=0.5 (A/A)", "linear-500-regime-mixed-actor-lr-0.5-A-A", True),
    ]
    stay, mixed, floor, again = (arm.config for arm in found[2:])
    assert (stay.smoothing.schedule, stay.smoothing.regime, stay.hyper) == ("stay", "mixed", BASE.hyper)
    assert (mixed.smoothing.schedule, mixed.smoothing.regime) == ("jump", "mixed")
    assert (floor.smoothing.schedule, floor.smoothing.regime) == ("floor:0.2+jump", "mixed")
    assert again == dataclasses.replace(arms[0].config, online_stream=1)


def test_the_pair_repeats_the_first_arm_that_is_no_control_and_no_control_comes_twice() -> None:
    texts = ("stay", "jump,regime=mixed", "floor:0.2+jump", "linear:5")
    found = with_controls([parse_arm(text, BASE) for text in texts], BASE)
    assert [arm.name for arm in found[4:]] == ["linear:5 (A/A)"]
    paired = with_controls([parse_arm(text, BASE) for text in (*texts, "name=b,linear:5,online-stream=4")], BASE)
    assert len(paired) == 5


@pytest.mark.parametrize("eased", ["anchor-l2=0.1", "ema-decay=0.9", "warm-up-steps=50", "critic-schedule=linear"])
@pytest.mark.parametrize("schedule", ["stay", "floor:0.2+jump", "jump,regime=mixed"])
def test_a_control_that_something_else_eases_is_an_arm_to_compare(schedule: str, eased: str) -> None:
    found = with_controls([parse_arm(f"{schedule},{eased}", BASE), parse_arm("linear:5", BASE)], BASE)
    assert [arm.name for arm in found[2:5]] == ["stay", "jump, mixed batch", "jump to floor 0.2"]
    assert found[5].name == f"{found[0].name} (A/A)"


def test_what_all_arms_share_makes_no_control_an_arm() -> None:
    shared = dataclasses.replace(BASE, hygiene=HygieneConfig(warm_up_steps=50))
    found = with_controls([parse_arm(text, shared) for text in ("stay", "linear:5")], shared)
    assert [arm.name for arm in found[2:]] == ["jump, mixed batch", "jump to floor 0.2", "linear:5 (A/A)"]
    assert all(arm.config.hygiene.warm_up_steps == 50 for arm in found)


def test_controls_ease_no_component_on_its_own() -> None:
    arm = parse_arm("linear:500,critic-schedule=jump,weight-in=effective,offline-fraction-end=0.1", BASE)
    stay, mixed, floor, _ = (arm.config.smoothing for arm in with_controls([arm], BASE)[1:])
    for control in (stay, mixed, floor):
        assert (control.critic_schedule, control.weight_in) == (None, "raw")
    assert mixed.offline_fraction_end is None
    assert floor.offline_fraction_end == 0.1


# Random numbers


def test_stream_0_is_what_there_was_before_there_were_streams() -> None:
    assert online_seed(12, 0) == 12
    assert env_seeds(12, Stream.TRAIN_ENV, 3, 0) == env_seeds(12, Stream.TRAIN_ENV, 3)
    plain = np.random.default_rng(np.random.SeedSequence(12, spawn_key=(int(Stream.RANDOM_ACTIONS),)))
    assert generator(12, Stream.RANDOM_ACTIONS, 0).random() == plain.random()
    others = {online_seed(s, k) for s in range(50) for k in range(1, 20)}
    assert len(others) == 950
    assert not others & set(range(50))
    assert generator(12, Stream.RANDOM_ACTIONS, 1).random() != generator(12, Stream.RANDOM_ACTIONS).random()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining of two seeds on made-up Pendulum episodes."""
    rng, n = np.random.default_rng(0), 1000
    folder = tmp_path_factory.mktemp("base")
    np.savez(
        folder / "pendulum.npz",
        observations=rng.normal(size=(n, 3)).astype(np.float32),
        actions=rng.uniform(-2, 2, (n, 1)).astype(np.float32),
        rewards=rng.normal(size=n).astype(np.float32),
        next_observations=rng.normal(size=(n, 3)).astype(np.float32),
        terminated=np.zeros(n, bool),
        truncated=np.arange(n) % 200 == 199,
    )
    return run(settings(folder, folder / "run", pretrained=None, online_steps=0))


def settings(folder: Path, out: Path, **changes: Any) -> RunConfig[Any]:
    values: dict[str, Any] = {
        "smoothing": SmoothingConfig("jump"),
        "evaluation": EvaluationConfig(eval_episodes=2, switch_episodes=2, eval_envs=2, eval_every=50),
        "task": "Pendulum-v1",
        "dataset": str(folder / "pendulum.npz"),
        "seeds": (3, 5),
        "offline_updates": 10,
        "online_steps": 150,
        "update_after": 64,
        "batch_size": 16,
        "log_every": 50,
        "pretrained": str(folder / "run"),
        "out": str(out),
        **changes,
    }
    return RunConfig(hyper=AGENTS["iql"].config_class(hidden_dims=(8, 8)), **values)


def arm(base: Path, out: Path, schedule: str = "jump", **changes: Any) -> RunConfig[Any]:
    return settings(base.parent, out, **{"smoothing": SmoothingConfig(schedule), **changes})


def rows(run_dir: Path, seed: int) -> np.ndarray:
    data = from_hdf5([run_dir / "online" / f"seed-{seed}.hdf5"]).transitions
    return np.concatenate([data.obs, data.action, data.reward[:, None], data.next_obs], axis=1)


def evaluations(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]


def test_arms_collect_the_same_rows_until_the_first_update(base: Path, tmp_path: Path) -> None:
    arms = {
        "jump": arm(base, tmp_path / "jump"),
        "linear": arm(base, tmp_path / "linear", "linear:100"),
        "mixed": arm(base, tmp_path / "mixed", smoothing=SmoothingConfig("jump", regime="mixed")),
        "again": arm(base, tmp_path / "again", online_stream=1),
    }
    folders = dict(zip(arms, run_population(list(arms.values()), names=list(arms)), strict=True))
    for seed in (3, 5):
        jump, linear, mixed, again = (rows(folder, seed) for folder in folders.values())
        np.testing.assert_array_equal(linear[:64], jump[:64])
        np.testing.assert_array_equal(mixed[:64], jump[:64])
        assert not np.array_equal(linear[64:], jump[64:])
        assert not np.array_equal(again[0], jump[0])  # another start and another action
    assert [json.loads((f / "manifest.json").read_text())["arm"] for f in folders.values()] == list(arms)


def test_exploration_noise_is_the_same_by_seed_and_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[int, int], list[bytes]] = {}
    normal = Draws.normal

    def spy(self: Draws, name: str, step: int, shape: Any, **rest: Any) -> Tensor:
        out = normal(self, name, step, shape, **rest)
        if name == "explore":
            for seed, own in zip(self.seeds, out, strict=True):
                seen.setdefault((seed, step), []).append(own.numpy().tobytes())
        return out

    monkeypatch.setattr(Draws, "normal", spy)
    quiet = SwitchConfig(parity_check=False)  # which looks at the exploration too
    for name, schedule in (("a", "jump"), ("b", "linear:50")):
        run(arm(base, tmp_path / name, schedule, switch=quiet))
    assert {seed for seed, _ in seen} == {3, 5}
    assert {step for _, step in seen} == set(range(150))
    assert all(len(found) == 2 and found[0] == found[1] for found in seen.values())
    seen.clear()
    run(arm(base, tmp_path / "c", online_stream=2, switch=quiet))
    assert {seed for seed, _ in seen} == {online_seed(3, 2), online_seed(5, 2)}


def test_an_aa_arm_is_judged_on_the_same_episodes(base: Path, tmp_path: Path) -> None:
    late = 1000  # the policy never changes, so only the episodes could differ
    a = run(arm(base, tmp_path / "a", update_after=late))
    b = run(arm(base, tmp_path / "b", update_after=late, online_stream=1))
    assert evaluations(a) == evaluations(b)
    assert not np.array_equal(rows(a, 3), rows(b, 3))


def test_an_aa_pair_shares_a_learner_and_each_is_what_it_would_be_alone(base: Path, tmp_path: Path) -> None:
    together = [
        arm(base, tmp_path / "together" / str(k), "linear:100", online_stream=k, random_steps=20) for k in (0, 1)
    ]
    folders = run_population(together)
    assert json.loads((folders[0] / "manifest.json").read_text())["population"] == {"members": 4, "runs": 2}
    for config, folder in zip(together, folders, strict=True):
        alone = run(dataclasses.replace(config, out=str(tmp_path / "alone" / folder.name)))
        assert_same_run(alone, folder)
    assert evaluations(folders[0]) != evaluations(folders[1])
    first, second = (rows(folder, 3)[:20, 3] for folder in folders)  # random actions
    assert not np.intersect1d(first, second).size


def test_another_stream_leaves_the_pretraining_alone(base: Path, tmp_path: Path) -> None:
    config = settings(base.parent, tmp_path / "x", pretrained=None, online_steps=10, online_stream=5)
    switch = [row for row in evaluations(run(config)) if row["phase"] == "switch"]
    assert switch == [row for row in evaluations(base) if row["phase"] == "switch"]


def test_a_fork_with_another_stream_equals_the_run_that_went_straight_through(base: Path, tmp_path: Path) -> None:
    fork = run(arm(base, tmp_path / "fork", "linear:100", online_stream=1))
    smoothing = SmoothingConfig("linear:100")
    config = settings(base.parent, tmp_path / "x", pretrained=None, online_stream=1, smoothing=smoothing)
    assert [row for row in evaluations(run(config)) if row["phase"] != "offline"] == evaluations(fork)


def test_a_fork_starts_at_a_switch(base: Path, tmp_path: Path) -> None:
    assert find_switch(base) == find_switch(base / "checkpoints" / "switch") == base / "checkpoints" / "switch"
    out = run(arm(base, tmp_path / "x", online_steps=5))
    with pytest.raises(CheckpointError, match="is how a run ended, not its switch; give "):
        find_switch(out / "checkpoints" / "final")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        find_switch(tmp_path)


def test_names_become_folders() -> None:
    assert ForkArm("jump, mixed batch", BASE).folder == "jump-mixed-batch"
    assert ForkArm("../x (A/A)", BASE).folder == "x-A-A"
