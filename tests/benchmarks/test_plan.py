"""Plans: what is shared, how jobs are cut, and what a study keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o_smooth.benchmarks.cells import Filters, make_cells
from o2o_smooth.benchmarks.plan import Plan, make_plan
from o2o_smooth.benchmarks.pretrained import address, specification
from o2o_smooth.benchmarks.study import Study, StudyError
from o2o_smooth.benchmarks.suite import Suite
from o2o_smooth.errors import ConfigError
from tests.benchmarks.study_cases import TEXT, dataset, suite

LONG = (
    TEXT.replace("offline_updates = 4", "offline_updates = 20000")
    .replace("online_steps = 90", "online_steps = 20000")
    .replace("[8, 8]", "[256, 256]")
)


def _plan(found: Suite, *, workers: int = 1, study: Study | None = None, filters: Filters | None = None) -> Plan:
    return make_plan(found, make_cells(found, filters), workers=workers, study=study)


def _kinds(plan: Plan) -> list[str]:
    return [job.kind for job in plan.jobs]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return dataset(tmp_path)


def test_arms_share_one_pretraining(data: Path) -> None:
    plan = _plan(suite(data=data))
    assert _kinds(plan) == ["pretrain", "arms"]  # that cannot cost less: one learner for both arms and seeds
    assert plan.jobs[1].needs == (plan.jobs[0].id,)
    assert [run.folder for run in plan.runs] == [
        "runs/corridor-mixed-v0/td3_bc/jump",
        "runs/corridor-mixed-v0/td3_bc/linear-mixed",
    ]
    assert {run.pretraining for run in plan.runs} == {plan.runs[0].pretraining}
    assert plan.jobs[0].updates == 2 * 4 and plan.jobs[1].updates == 2 * 2 * 90


def test_a_job_on_a_gpu_has_one_and_the_launcher_says_which(data: Path) -> None:
    shares = {
        share: {job.gpus for job in _plan(suite(TEXT + share, data=data), filters=Filters(device="cuda")).jobs}
        for share in ("", "[placement]\ngpus = 0.25\n")
    }
    assert list(shares.values()) == [{1.0}, {0.25}]
    assert {job.gpus for job in _plan(suite(data=data)).jobs} == {0.0}
    with pytest.raises(ConfigError, match="cuda:1 is a certain GPU"):
        _plan(suite(data=data), filters=Filters(device="cuda:1"))


def test_an_arm_with_a_pretraining_of_its_own_shares_none(data: Path) -> None:
    text = TEXT + 'pretraining = {tau = 0.5}\n[[arms]]\nname = "third"\nschedule = "stay"\nactor_lr = 1e-4\n'
    plan = _plan(suite(text, data=data))
    before = {run.arm: run.pretraining for run in plan.runs}
    assert before["jump"] == before["third"] != before["linear, mixed"]
    assert _kinds(plan).count("pretrain") == 2


def test_jobs_are_cut_where_workers_would_stand_idle(data: Path) -> None:
    assert _kinds(_plan(suite(LONG, data=data), workers=1)) == ["pretrain", "arms"]
    plan = _plan(suite(LONG, data=data), workers=2)
    assert _kinds(plan).count("arms") == 2 and _kinds(plan).count("pretrain") == 2  # by arms; by seeds
    arms = [job for job in plan.jobs if job.kind == "arms"]
    assert all(set(job.needs) == {j.id for j in plan.jobs if j.kind == "pretrain"} for job in arms)
    assert plan.seconds < _plan(suite(LONG, data=data), workers=1).seconds
    assert _plan(suite(LONG, data=data), workers=2) == plan


def test_placement_of_the_suite_is_kept(data: Path) -> None:
    plan = _plan(suite(TEXT + "[placement]\nseeds_per_job = 1\narms_per_job = 1\ncpus = 2\n", data=data))
    assert _kinds(plan) == ["pretrain", "arms", "arms"] * 2
    assert [run.folder.rpartition("/")[2] for run in plan.runs] == [
        "jump-seed-0",
        "linear-mixed-seed-0",
        "jump-seed-1",
        "linear-mixed-seed-1",
    ]
    assert {job.cpus for job in plan.jobs} == {2}


def test_a_dataset_that_is_not_there_is_made_once_and_first() -> None:
    text = TEXT.replace('dataset = "DATA"', 'dataset = "nobody/has-this-v0"') + '[[agents]]\nagent = "iql"\n'
    text += '[data]\n"nobody/has-this-v0" = "--task Pendulum-v1 --policy random"\n'
    plan = _plan(suite(text))
    assert _kinds(plan) == ["data", "pretrain", "arms", "pretrain", "arms"]
    assert plan.jobs[0].make == "--task Pendulum-v1 --policy random"
    assert all(job.needs == (plan.jobs[0].id,) for job in plan.jobs if job.kind == "pretrain")


def test_a_study_goes_on_and_takes_more(data: Path, tmp_path: Path) -> None:
    found = suite(data=data)
    study = Study(tmp_path / "study")
    first = _plan(found)
    study.add(first.jobs, first.runs)
    study.write()
    study = Study.read(study.folder)
    assert tuple(study.jobs.values()) == first.jobs and tuple(study.runs) == first.runs
    assert _plan(found, study=study).jobs == ()
    more = _plan(suite(TEXT + '[[arms]]\nname = "stay"\nschedule = "stay"\n', data=data), study=study)
    assert [run.arm for run in more.runs] == ["stay"] and _kinds(more) == ["pretrain", "arms"]
    assert more.runs[0].pretraining == first.runs[0].pretraining
    seeds = _plan(found, study=study, filters=Filters(seeds=(0, 1, 2)))
    assert [(run.folder.rpartition("/")[2], run.seeds) for run in seeds.runs] == [
        ("jump-seed-2", (2,)),
        ("linear-mixed-seed-2", (2,)),
    ]
    with pytest.raises(StudyError, match=r"'jump'.*other settings"):
        _plan(suite(TEXT.replace("ramp_steps = 40", "ramp_steps = 41"), data=data), study=study)


def test_the_address_of_a_pretraining_holds_what_determines_it_and_nothing_else(data: Path) -> None:
    def hashed(old: str = "", new: str = "", sha: str = "a", seed: int = 0) -> str:
        cell = make_cells(suite(TEXT.replace(old, new, 1), data=data))[0]
        return address(specification(cell.base), {"sha256": sha, "provenance": "own"}, seed)

    first = hashed()
    for other in (
        hashed("offline_updates = 4", "offline_updates = 5"),
        hashed("batch_size = 8", "batch_size = 9"),
        hashed("hidden_dims = [8, 8]", "hidden_dims = [8, 9]"),
        hashed('agent = "td3_bc"', 'agent = "td3_bc"\nbc_alpha = 1.0'),
        hashed('agent = "td3_bc"', 'agent = "iql"'),
        hashed('agent = "td3_bc"', 'agent = "td3_bc"\nreward_scale = 2.0'),
        hashed('agent = "td3_bc"', 'agent = "td3_bc"\nholdout = 0.2'),
        hashed("switch_episodes = 1", "switch_episodes = 2"),
        hashed("corridor-mixed", "corridor-narrow"),
        hashed(sha="b"),
        hashed(seed=1),
    ):
        assert other != first
    for same in (
        hashed("ramp_steps = 40", "ramp_steps = 41"),
        hashed("online_steps = 90", "online_steps = 91"),
        hashed("eval_every = 60", "eval_every = 50\noffline_eval_every = 1\nexploration_noise = 0.3\nthreads = 2"),
        hashed('schedule = "jump"', 'schedule = "stay"'),
        hashed("seeds = [0, 1]", "seeds = [0, 1, 2]"),
    ):
        assert same == first
