from __future__ import annotations

from pathlib import Path
from typing import Any

import minari
import numpy as np
import pytest

from o2o_smooth.cli import parse_run
from o2o_smooth.data import from_minari, load_dataset, sources
from o2o_smooth.data.corridor_sets import ROWS, make_corridor_dataset
from o2o_smooth.data.extent import extent
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.training.making import MakeConfig, make_data


@pytest.fixture(autouse=True)
def minari_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def test_mixed_set_is_half_controller_and_half_uniform_play() -> None:
    task = find_task("corridor-mixed-v0")
    seen: list[tuple[int, int]] = []
    dataset_id = make_corridor_dataset(task, transitions=800, progress=lambda *at: seen.append(at))
    loaded = load_dataset(task)
    assert (dataset_id, loaded.id, loaded.provenance) == (task.dataset_ids[0], task.dataset_ids[0], "generated")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (800, 800)
    t = loaded.transitions
    record = minari.load_dataset(dataset_id).storage.metadata["o2o_smooth"]
    by = np.array(record["episode_sources"])
    lengths = np.diff(np.concatenate([[-1], t.episode_ends]))
    assert lengths[by == 0].tolist() == [100] * 4
    assert 400 <= lengths[by == 1].sum() < 500
    uniform = np.repeat(by, lengths) == 1
    assert abs(t.action[uniform].std(0) - 1 / np.sqrt(3)).max() < 0.05
    assert t.terminated[uniform].sum() == (by == 1).sum()  # uniform play never lasts
    assert not t.terminated[~uniform].any()
    np.testing.assert_array_equal(t.reward, t.next_obs[:, 2])
    assert 0.7 < t.reward[~uniform].mean() < 1.0  # it drives at speed 1


def test_narrow_set_has_a_third_of_the_noise() -> None:
    spread = {}
    for kind in ("medium", "narrow"):
        task = find_task(f"corridor-{kind}-v0")
        t = from_minari(make_corridor_dataset(task, transitions=2000)).transitions
        steering = -(1.5 * t.obs[:, 0] + 0.8 * t.obs[:, 1])
        spread[kind] = float((t.action[:, 1] - steering).std())
    assert spread["narrow"] == pytest.approx(0.1, abs=0.01)
    assert spread["medium"] == pytest.approx(0.3, abs=0.02)


def test_same_seed_makes_the_same_data_and_another_does_not() -> None:
    configs: list[dict[str, Any]] = [{"seed": 0}, {"seed": 0}, {"seed": 1}]
    made = [
        make_data(MakeConfig(task="corridor-mixed-v0", transitions=200, id=f"mine/a-v{i}", **own))
        for i, own in enumerate(configs)
    ]
    hashes = [from_minari(dataset_id).sha256 for dataset_id in made]
    assert hashes[0] == hashes[1] != hashes[2]


def test_set_is_made_on_the_spot_and_its_size_is_known_before(monkeypatch: pytest.MonkeyPatch) -> None:
    task = find_task("corridor-medium-v0")
    assert extent(task).rows == ROWS == 20_000
    make = make_corridor_dataset
    monkeypatch.setattr(sources, "make_corridor_dataset", lambda task, progress: make(task, transitions=100))
    lines: list[str] = []
    assert len(load_dataset(task, log=lines.append).transitions) == 100
    assert "scripted controller collects data here" in lines[0]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(DataError, match="hopper-medium-v2 is no Corridor task"):
        make_corridor_dataset(find_task("hopper-medium-v2"))
    with pytest.raises(DataError, match="transitions is 0"):
        make_corridor_dataset(find_task("corridor-medium-v0"), transitions=0)
    with pytest.raises(ConfigError, match="has no tiers"):
        make_data(MakeConfig(task="corridor-medium-v0", tier="medium"))


def test_task_brings_its_budgets_along_and_flags_go_first() -> None:
    config = parse_run(["--task", "corridor-mixed-v0", "--agent", "td3_bc", "--online-steps", "700"])
    assert (config.offline_updates, config.online_steps, config.batch_size) == (2000, 700, 64)
    assert (config.smoothing.ramp_steps, config.smoothing.regime) == (1000, "mixed")
    assert config.hyper.hidden_dims == (64, 64)
    assert parse_run(["--task", "corridor-narrow-v0", "--agent", "iql"]).smoothing.regime == "retain"
    assert parse_run(["--task", "Pendulum-v1", "--agent", "td3_bc"]).offline_updates == 100_000
