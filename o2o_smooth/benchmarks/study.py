"""The folder of a study: what is to be done, what each job says of itself, and what is done.

suite.toml  study.json                      what the study is
jobs/ID/job.json                            what a job is to do; never changed
jobs/ID/state.json  log.txt                 how far it is, by the worker
jobs/ID/done.json | failed.json             how it ended
runs/TASK/AGENT/ARM/                        run folders, as `o2o-smooth run` writes them
pretrained/HASH/                            the checkpoints that they go on from

A worker may be killed at any time: what is there is whole, and what is not there is done again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from o2o_smooth.benchmarks.job_lock import Lock
from o2o_smooth.errors import O2OError
from o2o_smooth.files import written_whole

FORMAT = 1
STUDY, SUITE = "study.json", "suite.toml"
Kind = Literal["data", "pretrain", "arms"]
State = Literal["done", "failed", "running", "broken", "waiting"]
"""`broken`: begun, and nobody works on it now."""


class StudyError(O2OError):
    """A study's folder that is absent, broken, or another's."""


@dataclass(frozen=True)
class PlannedJob:
    """What one worker does in one go."""

    id: str
    kind: Kind
    needs: tuple[str, ...] = ()
    """Jobs that must be done before."""
    configs: tuple[Mapping[str, Any], ...] = ()
    """Settings of its runs, as `RunConfig.to_dict`; of a pretraining: one."""
    names: tuple[str, ...] = ()
    """Names of the arms."""
    folders: tuple[str, ...] = ()
    """Run folders, relative to the study's."""
    cpus: int = 1
    gpus: float = 0.0
    memory: int | None = None
    """Bytes."""
    predicted_s: float = 0.0
    """By the table of this machine's speed."""
    updates: int = 0
    """Of all members."""
    make: str = ""
    """Of a dataset: the options of `o2o-smooth data make`."""
    title: str = ""
    """For people."""


@dataclass(frozen=True)
class PlannedRun:
    """A run folder of a study, and what is in it."""

    folder: str
    task: str
    agent: str
    arm: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    job: str
    pretraining: str | None
    """What it goes on from; arms with the same, seed by seed, are paired."""
    config: str = ""
    """Hash of all settings."""


@dataclass
class Progress:
    """How a job stands, by its files."""

    state: State
    detail: str = ""
    """The error, or what is being done."""
    content: Mapping[str, Any] = field(default_factory=dict)
    """Of state.json, done.json or failed.json."""


class Study:
    """A study's folder.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {}
        self.jobs: dict[str, PlannedJob] = {}
        self.runs: list[PlannedRun] = []

    @property
    def exists(self) -> bool:
        """Whether a study has been planned there."""
        return (self.folder / STUDY).is_file()

    @classmethod
    def read(cls, folder: Path) -> Study:
        """An existing study.

        Raises:
            StudyError: There is none, or it is broken.
        """
        study = cls(folder)
        if not study.exists:
            raise StudyError(f"{folder} holds no study ({STUDY} is not there); o2o-smooth bench SUITE --out {folder}")
        content = read_object(folder / STUDY)
        if content.get("format") != FORMAT:
            raise StudyError(f"{folder / STUDY} has format {content.get('format')}, this version reads {FORMAT}")
        try:
            study.content = {k: v for k, v in content.items() if k not in ("jobs", "runs")}
            study.runs = [PlannedRun(**{**row, "seeds": tuple(row["seeds"])}) for row in content["runs"]]
            for row in content["jobs"]:
                job = read_job(folder / "jobs" / row["id"])
                study.jobs[job.id] = job
        except (KeyError, TypeError) as error:
            raise StudyError(f"{folder / STUDY} is broken: {error!r}") from None
        return study

    def job_folder(self, job: str) -> Path:
        """A job's own folder."""
        return self.folder / "jobs" / job

    def add(self, jobs: Sequence[PlannedJob], runs: Sequence[PlannedRun]) -> None:
        """Put further jobs and runs into the study; `write` makes them lasting."""
        for job in jobs:
            self.jobs.setdefault(job.id, job)
        self.runs += runs

    def write(self) -> None:
        """Write all down: first the jobs, then the study that names them."""
        for job in self.jobs.values():
            file = self.job_folder(job.id) / "job.json"
            if not file.is_file():
                write_json(file, {"format": FORMAT, **asdict(job)})
        content = {
            "format": FORMAT,
            **self.content,
            "jobs": [
                {"id": j.id, "kind": j.kind, "needs": j.needs, "predicted_s": j.predicted_s, "title": j.title}
                for j in self.jobs.values()
            ],
            "runs": [asdict(run) for run in self.runs],
        }
        write_json(self.folder / STUDY, content)

    def progress(self, job: str) -> Progress:
        """How a job stands."""
        folder = self.job_folder(job)
        if (folder / "done.json").is_file():
            return Progress("done", "", _lenient(folder / "done.json"))
        if (folder / "failed.json").is_file():
            content = _lenient(folder / "failed.json")
            return Progress("failed", str(content.get("error", "unknown")), content)
        content = _lenient(folder / "state.json")
        owner = Lock(folder / "lock").owner()
        if owner is not None:
            return Progress("running", owner, content)
        return Progress("broken" if content else "waiting", "", content)

    def blocked(self) -> dict[str, str]:
        """Jobs that cannot run, by what has failed before them."""
        failed = {job for job in self.jobs if self.progress(job).state == "failed"}
        found: dict[str, str] = {}
        for job in self.ordered():
            for need in job.needs:
                if need in failed or need in found:
                    found.setdefault(job.id, need if need in failed else found[need])
        return {job: need for job, need in found.items() if self.progress(job).state != "done"}

    def ordered(self) -> list[PlannedJob]:
        """The jobs, each behind those that it needs."""
        done: dict[str, PlannedJob] = {}

        def visit(job: PlannedJob) -> None:
            if job.id not in done:
                for need in job.needs:
                    visit(self.jobs[need])
                done[job.id] = job

        for job in self.jobs.values():
            visit(job)
        return list(done.values())


def read_job(folder: Path) -> PlannedJob:
    """What a job's folder says it is to do.

    Raises:
        StudyError: It is absent or broken.
    """
    content = read_object(folder / "job.json")
    if content.pop("format", None) != FORMAT:
        raise StudyError(f"{folder / 'job.json'} has another format than {FORMAT}; use the version that wrote it")
    try:
        for name in ("needs", "configs", "names", "folders"):
            content[name] = tuple(content[name])
        return PlannedJob(**content)
    except (KeyError, TypeError) as error:
        raise StudyError(f"{folder / 'job.json'} is broken: {error!r}") from None


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        StudyError: It is absent or broken.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{file} does not hold a JSON object")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=list) + "\n", encoding="utf-8")


def _lenient(file: Path) -> dict[str, Any]:
    """What a file says, or nothing."""
    with contextlib.suppress(StudyError):
        return read_object(file)
    return {}
