"""Reading a study: everything that was planned has a place, and what cannot be used says why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from o2o_smooth.benchmarks.results_study import listed_seeds, losses, read_groups, read_study, seed_counts
from o2o_smooth.errors import DataError
from tests.benchmarks.study_folders import make_run, make_study, read_plan, write_plan


def flat(task: str, agent: str, arm: str, seed: int) -> list[float]:
    return [50.0, 40.0, 45.0, 60.0]


def reasons(root: Path) -> dict[tuple[str, int], tuple[str, str]]:
    return {
        (one.run.arm, one.seed): (one.status, one.reason)
        for group in read_groups(read_study(root))
        for one in group.runs
    }


def test_whole_study_is_completed_and_its_arms_have_roles(tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path, flat))
    assert (study.suite, study.commit, study.protocol["episodes"]) == ("tiny", "abc123", 10)
    (group,) = read_groups(study)
    assert losses([group]) == []
    assert seed_counts(group) == dict.fromkeys(("jump", "linear", "linear (A/A)", "stay"), (4, 4))
    roles = {arm.name: (arm.role, arm.twin_of) for arm in group.arms}
    assert roles["linear (A/A)"] == ("twin", "linear")
    assert roles["stay"] == ("stay", None)


def test_whatever_did_not_finish_is_named(tmp_path: Path) -> None:
    def scores(task: str, agent: str, arm: str, seed: int) -> list[float]:
        return [50.0, math.nan, 45.0, 60.0] if (arm, seed) == ("nan", 2) else flat(task, agent, arm, seed)

    arms = ("jump", "failed", "gone", "running", "cut", "garbled", "short", "nan", "no-manifest")
    root = make_study(tmp_path, scores, arms={arm: {"schedule": "jump", "gamma": arm} for arm in arms})
    for entry in read_plan(root):
        folder, job = root / entry["folder"], root / "jobs" / entry["job"]
        evaluations = folder / "evaluations.jsonl"
        if entry["arm"] == "failed":
            (job / "done.json").unlink()
            (job / "failed.json").write_text(json.dumps({"error": "out of\nmemory"}))
            (folder / "manifest.json").unlink()
        elif entry["arm"] == "gone":
            (job / "done.json").unlink()
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        elif entry["arm"] == "running":
            (job / "done.json").unlink()
            manifest = json.loads((folder / "manifest.json").read_text())
            (folder / "manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
        elif entry["arm"] == "cut":  # in the middle of the last line
            evaluations.write_text(evaluations.read_text()[:-20])
        elif entry["arm"] == "garbled":
            evaluations.write_text("{not json\n" + evaluations.read_text())
        elif entry["arm"] == "short":
            entry["seeds"].append(9)
            plan = [{**one, "seeds": [*one["seeds"], 9]} if one["arm"] == "short" else one for one in read_plan(root)]
            write_plan(root, plan)
        elif entry["arm"] == "no-manifest":
            (folder / "manifest.json").write_text("[]")
    found = reasons(root)
    assert found["jump", 0] == ("completed", "")
    assert found["failed", 3] == ("failed", "out of memory")
    assert found["gone", 1] == ("missing", "there is no run folder")
    assert found["running", 0][0] == "unfinished"
    assert found["cut", 0][0] == "completed"  # only the last seed lost its line
    assert found["cut", 3] == ("broken", "its evaluations end at step 500 of 1000")
    assert found["garbled", 0][0] == "broken"
    assert "line 1 is not an evaluation" in found["garbled", 0][1]
    assert found["short", 9] == ("broken", "it has no evaluations after the switch")
    assert found["nan", 2] == ("broken", "the evaluation at step 250 is NaN")
    assert found["nan", 1][0] == "completed"
    reason = found["no-manifest", 0][1]
    assert "manifest.json cannot be read (it does not hold a JSON object)" in reason
    assert found["no-manifest", 0] == ("broken", reason)
    (group,) = read_groups(read_study(root))
    assert {arm.name: arm.seeds for arm in group.arms} == {
        "jump": (0, 1, 2, 3),
        "cut": (0, 1, 2),
        "short": (0, 1, 2, 3),
        "nan": (0, 1, 3),
    }


def test_what_never_began_names_the_job_that_failed_before(tmp_path: Path) -> None:
    entry = {"folder": "runs/a", "task": "m", "agent": "iql", "arm": "jump", "seeds": [0], "job": "arms"}
    write_plan(tmp_path, [entry])
    content = json.loads((tmp_path / "study.json").read_text())
    needs = {"arms": ["pretrain"], "pretrain": ["data", "arms"], "data": []}
    content["jobs"] = [{"id": job, "kind": job, "needs": own} for job, own in needs.items()]
    (tmp_path / "study.json").write_text(json.dumps(content))
    assert reasons(tmp_path)["jump", 0] == ("missing", "there is no run folder")
    (tmp_path / "jobs" / "data").mkdir(parents=True)
    (tmp_path / "jobs" / "data" / "failed.json").write_text(json.dumps({"error": "no disk"}))
    assert reasons(tmp_path)["jump", 0] == ("missing", "it needs data, which failed: no disk")
    (tmp_path / "jobs" / "arms").mkdir()
    failed = {"error": "1 of 2 runs failed", "runs": {"runs/a": "diverged"}}
    (tmp_path / "jobs" / "arms" / "failed.json").write_text(json.dumps(failed))
    assert reasons(tmp_path)["jump", 0] == ("failed", "diverged")


def test_seeds_of_an_arm_may_lie_in_several_folders(tmp_path: Path) -> None:
    entries = []
    for seed in (0, 1):
        name = f"runs/seed{seed}"
        make_run(
            tmp_path / name, task="m", agent="iql", arm="jump", seeds=[seed], scores=flat, settings={"schedule": "jump"}
        )
        entries.append({"folder": name, "task": "m", "agent": "iql", "arm": "jump", "seeds": [seed], "job": ""})
    write_plan(tmp_path, entries)
    (group,) = read_groups(read_study(tmp_path))
    assert [arm.seeds for arm in group.arms] == [(0, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "../elsewhere"}, "not inside the study"),
        ({"folder": "."}, "not inside the study"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": []}, "must name its seeds"),
        ({"seeds": ["x"]}, "lacks or garbles"),
        ({"task": None, "folder": "/etc"}, "not inside the study"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    entry = {"folder": "runs/a", "task": "m", "agent": "iql", "arm": "jump", "seeds": [0], **change}
    write_plan(tmp_path, [entry])
    with pytest.raises(DataError, match=message):
        read_study(tmp_path)


def test_no_study_and_a_newer_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a study"):
        read_study(tmp_path)
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        read_study(tmp_path)
    (tmp_path / "study.json").write_text(json.dumps({"format": 2, "runs": []}))
    with pytest.raises(DataError, match="install a newer"):
        read_study(tmp_path)


def test_seeds_are_listed_as_ranges() -> None:
    assert listed_seeds([3, 0, 1, 2, 7, 9, 10]) == "0-3, 7, 9, 10"
    assert listed_seeds([]) == ""
