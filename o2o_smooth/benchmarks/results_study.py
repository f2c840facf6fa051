"""Reading a study folder: what was planned, what came of every run, and whose curves count.

Nothing that was planned is dropped in silence: a seed that failed, never began, was cut short or cannot be read keeps
its place, with the reason.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.stability.arms import Arm
from o2o_smooth.stability.curves import Curve, PretrainCurve, read_curves, read_pretraining
from o2o_smooth.training.pictures import read_manifest
from o2o_smooth.training.report_runs import read_runs

STUDY = "study.json"
FORMAT = 1
"""The newest layout of `study.json` that is understood."""

Status = Literal["completed", "failed", "unfinished", "missing", "broken"]
STATUSES: dict[Status, str] = {
    "completed": "ran to its end, and its evaluations can be used",
    "failed": "stopped with an error",
    "unfinished": "was interrupted, or is still running",
    "missing": "never began",
    "broken": "ran, but its files are damaged or its scores no numbers",
}
_REASON_LENGTH = 300


@dataclass(frozen=True)
class StudyRun:
    """A run folder of the plan; several seeds may share it."""

    folder: Path
    """Where it is, or is to be."""
    name: str
    """The same as it stands in `study.json`, relative to the study."""
    task: str
    """Id of the task."""
    agent: str
    """As the suite calls it."""
    arm: str
    """What was done at the switch."""
    seeds: tuple[int, ...]
    """Planned."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What makes the arm, by the names of flags."""
    job: str = ""
    """Which job does it."""
    pretraining: str | None = None
    """Fingerprint of the pretraining it was forked from."""


@dataclass(frozen=True)
class StudyJob:
    """What a worker does in one go."""

    id: str
    """Its folder under `jobs/`."""
    kind: str
    """`data`, `pretrain` or `arms`; empty where nobody wrote it down."""
    needs: tuple[str, ...]
    """Jobs that must be done before."""


@dataclass(frozen=True)
class Study:
    """A study as its folder describes it."""

    root: Path
    """The folder."""
    suite: str
    """Name of the suite."""
    runs: tuple[StudyRun, ...]
    """All that was planned."""
    command: str = ""
    """What started it."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of what the numbers depend on."""
    commit: str | None = None
    """Of the source checkout, where there is one."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Steps, evaluations, episodes, seeds: as the suite says."""
    jobs: Mapping[str, StudyJob] = field(default_factory=dict)
    """By id; empty where the plan does not list them."""


@dataclass(frozen=True, eq=False)
class SeedRun:
    """One seed of one run, and what came of it."""

    run: StudyRun
    """The run it belongs to."""
    seed: int
    """The seed."""
    status: Status
    """See `STATUSES`."""
    reason: str = ""
    """Why it is not completed."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Of its run; empty where there is none."""
    curve: Curve | None = None
    """From the switch on; None where there are no evaluations that can be read."""
    pretraining: PretrainCurve | None = None
    """Before the switch; None where there is none of its own."""


@dataclass(frozen=True, eq=False)
class Group:
    """All arms of one task and agent: what can be compared."""

    task: str
    """Id of the task."""
    agent: str
    """As the suite calls it."""
    runs: tuple[SeedRun, ...]
    """All that was planned."""
    arms: tuple[Arm, ...] = ()
    """Those with completed seeds; A/A pairs are found."""
    problem: str = ""
    """Why its arms cannot be compared; empty where they can."""

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.task}, {self.agent}"


def read_study(root: Path) -> Study:
    """Read `study.json`.

    Raises:
        DataError: It is absent, broken, of a newer format, or names folders outside the study.
    """
    path = Path(root) / STUDY
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{root} is not a study: there is no {STUDY} in it; o2o-smooth bench makes one") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; start the study's command again to write it anew") from None
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise DataError(f"{path} holds no list of runs; start the study's command again to write it anew")
    version = content.get("format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise DataError(f"{path} has format {version}, this version reads up to {FORMAT}; install a newer o2o_smooth")
    suite = content.get("suite")
    suite = suite.get("name") if isinstance(suite, dict) else suite
    protocol = content.get("protocol")
    command = content.get("command")
    return Study(
        root=Path(root),
        suite=str(suite or Path(root).resolve().name),
        runs=tuple(_run(Path(root), path, k, row) for k, row in enumerate(content["runs"])),
        command=" ".join(map(str, command)) if isinstance(command, list) else str(command or ""),
        versions={str(k): str(v) for k, v in dict(content.get("versions") or {}).items()},
        commit=content.get("commit") or dict(content.get("versions") or {}).get("commit"),
        protocol=protocol if isinstance(protocol, dict) else {},
        jobs=_jobs(content.get("jobs")),
    )


def _jobs(listed: Any) -> dict[str, StudyJob]:
    """The jobs of the plan; they explain what is missing, so a garbled list costs no more than that."""
    rows = [row for row in listed or [] if isinstance(row, dict) and row.get("id")]
    jobs = [
        StudyJob(str(row["id"]), str(row.get("kind") or ""), tuple(map(str, row.get("needs") or ()))) for row in rows
    ]
    return {job.id: job for job in jobs}


def _run(root: Path, path: Path, place: int, row: Any) -> StudyRun:
    """One entry of the list of runs."""
    try:
        name, seeds = str(row["folder"]), tuple(int(seed) for seed in row["seeds"])
        task, agent, arm = str(row["task"]), str(row["agent"]), str(row["arm"])
        settings = dict(row.get("settings") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: runs[{place}] lacks or garbles a value ({error!r})") from None
    folder = root / name
    if not folder.resolve().is_relative_to(root.resolve()) or folder.resolve() == root.resolve():
        raise DataError(f"{path}: runs[{place}] has the folder {name!r}, which is not inside the study")
    if not seeds or len(set(seeds)) < len(seeds):
        raise DataError(f"{path}: runs[{place}] ({name}) must name its seeds, each once, got {list(seeds)}")
    pretraining = row.get("pretraining")
    return StudyRun(
        folder=folder,
        name=name,
        task=task,
        agent=agent,
        arm=arm,
        seeds=seeds,
        settings=settings,
        job=str(row.get("job") or ""),
        pretraining=None if pretraining is None else str(pretraining),
    )


def read_groups(study: Study) -> list[Group]:
    """Everything that was planned, by task and agent, in the order of the plan."""
    found: dict[tuple[str, str], list[SeedRun]] = {}
    for run in study.runs:
        found.setdefault((run.task, run.agent), []).extend(seeds_of(study, run))
    return [_with_arms(Group(task, agent, tuple(runs))) for (task, agent), runs in found.items()]


def seeds_of(study: Study, run: StudyRun) -> list[SeedRun]:
    """What came of each seed of a run."""
    status, reason, manifest = _state(study, run)
    curves: dict[int, Curve] = {}
    before: dict[int, PretrainCurve] = {}
    try:
        if manifest:
            curves = {curve.seed: curve for curve in read_curves(run.folder, arm=run.arm)}
            before = {curve.seed: curve for curve in read_pretraining(run.folder)}
    except (O2OError, ValueError) as error:
        if status == "completed":
            status, reason = "broken", _short(str(error))
    found = []
    for seed in run.seeds:
        curve = curves.get(seed)
        own, why = status, reason
        if status == "completed" and (wrong := _wrong(curve, manifest)):
            own, why = "broken", wrong
        found.append(SeedRun(run, seed, own, why, manifest, curve, before.get(seed)))
    return found


def _state(study: Study, run: StudyRun) -> tuple[Status, str, Mapping[str, Any]]:
    """What became of a run as a whole, why, and its manifest."""
    job = study.root / "jobs" / run.job
    done = bool(run.job) and (job / "done.json").exists()
    failed = bool(run.job) and (job / "failed.json").exists() and not done
    manifest: Mapping[str, Any] = {}
    problem = ""
    if (run.folder / "manifest.json").exists():
        try:
            content: Any = read_manifest(run.folder)
            if isinstance(content, dict) and isinstance(content.get("config"), dict):
                manifest = content
            else:
                problem = "its manifest.json holds no settings"
        except O2OError as error:
            problem = _short(str(error))
    status = manifest.get("status")
    if status == "completed":
        return "completed", "", manifest
    if failed or status == "failed":
        why = _failure(job / "failed.json", run.name) if failed else "the run stopped with an error"
        return "failed", why, manifest
    if problem:
        return "broken", problem, manifest
    if done:
        return "broken", "its job is done, but the run folder is not complete", manifest
    if manifest:
        return "unfinished", "interrupted, or still running" if status == "running" else str(status), manifest
    return "missing", _blocked(study, run.job) or "there is no run folder", manifest


def _blocked(study: Study, job: str) -> str:
    """The job that has failed before this one, and how; empty where none has."""
    waiting, seen = list(study.jobs[job].needs) if job in study.jobs else [], {job}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file = study.root / "jobs" / name / "failed.json"
        if file.exists() and not file.with_name("done.json").exists():
            return _short(f"it needs {name}, which failed: {_failure(file)}")
        waiting += study.jobs[name].needs if name in study.jobs else ()
    return ""


def _failure(path: Path, run: str = "") -> str:
    """What a job says of its failure, or of that of one of its runs, in a line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it failed, and its failed.json cannot be read"
    if isinstance(content, dict):
        runs = content.get("runs")
        if isinstance(runs, dict) and runs.get(run):
            return _short(str(runs[run]))
        content = next((content[key] for key in ("error", "message", "reason") if content.get(key)), content)
    return _short(str(content))


def _short(text: str) -> str:
    """A reason that fits into a table."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON_LENGTH else f"{line[:_REASON_LENGTH]}..."


def _wrong(curve: Curve | None, manifest: Mapping[str, Any]) -> str:
    """Why a completed run's curve cannot be used; empty where it can."""
    if curve is None or len(curve.env_steps) < 2:
        return "it has no evaluations after the switch"
    if not np.isfinite(curve.scores).all():
        return f"the evaluation at step {curve.env_steps[int(np.argmin(np.isfinite(curve.scores)))]:g} is NaN"
    budget = manifest["config"].get("online_steps")
    if isinstance(budget, int) and curve.env_steps[-1] < budget:
        return f"its evaluations end at step {curve.env_steps[-1]:g} of {budget}"
    return ""


def _with_arms(group: Group) -> Group:
    """The group with its arms, from the runs that are completed."""
    whole = {(one.run.arm, one.seed) for one in group.runs if one.status == "completed"}
    folders = {one.run.folder: one.run.arm for one in group.runs if one.status == "completed"}
    if not folders:
        return replace(group, problem="no run is completed")
    try:
        runs = read_runs([(arm, folder) for folder, arm in folders.items()])
    except O2OError as error:
        return replace(group, problem=_short(str(error)))
    arms = []
    for arm in runs.arms:
        curves = tuple(curve for curve in arm.curves if (arm.name, curve.seed) in whole)
        if curves:
            arms.append(replace(arm, curves=curves))
    return replace(group, arms=tuple(arms))


def seed_counts(group: Group) -> dict[str, tuple[int, int]]:
    """By arm: completed and planned seeds."""
    found: dict[str, tuple[int, int]] = {}
    for one in group.runs:
        done, planned = found.get(one.run.arm, (0, 0))
        found[one.run.arm] = (done + (one.status == "completed"), planned + 1)
    return found


def losses(groups: Iterable[Group]) -> list[SeedRun]:
    """Every planned seed that is not completed."""
    return [one for one in itertools.chain.from_iterable(group.runs for group in groups) if one.status != "completed"]


def listed_seeds(seeds: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    parts: list[str] = []
    for _, run in itertools.groupby(enumerate(sorted(set(seeds))), key=lambda pair: pair[1] - pair[0]):
        own = [seed for _, seed in run]
        parts.append(f"{own[0]}-{own[-1]}" if len(own) > 2 else ", ".join(map(str, own)))
    return ", ".join(parts)
