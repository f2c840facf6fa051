"""One job of a study: `python -m o2o_smooth.benchmarks.worker JOBFOLDER`.

It may be started at any time and as often as one likes, also twice at once: what is done stays done, what was broken
off goes on, and of two workers one waits. Exit codes: 0 done, 75 stopped in good order (SIGTERM), 1 failed, and
failed.json says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from o2o_smooth.benchmarks import pretrained
from o2o_smooth.benchmarks.cells import from_dict
from o2o_smooth.benchmarks.job_lock import Lock
from o2o_smooth.benchmarks.launchers.base import INTERRUPTED
from o2o_smooth.benchmarks.study import PlannedJob, StudyError, read_job, read_object, write_json
from o2o_smooth.data.sources import let_go
from o2o_smooth.errors import CheckpointError, ConfigError, O2OError
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.manifest import versions
from o2o_smooth.training.population import run_population
from o2o_smooth.training.progress import Plain
from o2o_smooth.training.request import read_request
from o2o_smooth.training.resume import can_resume, resume

_STATE_S = 1.0  # between two writings of state.json
_MANIFEST = "manifest.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the job of a folder; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m o2o_smooth.benchmarks.worker JOBFOLDER", file=sys.stderr)
        return 2
    try:
        return work(Path(arguments[0]).resolve())
    except O2OError as error:  # before there was a place to write it down
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def work(folder: Path) -> int:
    """See `main`."""
    finished = folder / "done.json"
    if finished.is_file():
        return 0
    if (folder / "failed.json").is_file():
        return 1
    job = read_job(folder)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # which runs replace by one that keeps a checkpoint
    torch.set_num_threads(job.cpus)
    # The launcher's SIGTERM by another hand: somebody took this worker for dead, and has the job now.
    lock = Lock(folder / "lock", lost=lambda: os.kill(os.getpid(), signal.SIGTERM))
    if not lock.wait(finished.is_file, lambda owner: print(f"waiting: {owner} has this job", flush=True)):
        return 0
    with lock:
        if finished.is_file():
            return 0
        report = Report(folder, job)
        try:
            content = _KINDS[job.kind](job, folder, report)
        except KeyboardInterrupt:
            report.note("interrupted")
            report.write(state="interrupted")
            return INTERRUPTED
        except Exception as error:
            known = isinstance(error, O2OError)
            text = " ".join(str(error).split()) if known else f"{type(error).__name__}: {error}"
            report.note(f"failed: {text}" if known else traceback.format_exc())
            runs = error.runs if isinstance(error, RunsFailed) else {}
            trace = None if known else traceback.format_exc()
            write_json(folder / "failed.json", {**report.ending(), "error": text, "runs": runs, "traceback": trace})
            return 1
        write_json(finished, {**report.ending(), **content})
        report.note("done")
        return 0


class RunsFailed(O2OError):
    """Some runs of a job failed; the others are done.

    Args:
        runs: What went wrong, by run folder.
        total: Runs of the job.
    """

    def __init__(self, runs: dict[str, str], total: int) -> None:
        first = next(iter(runs.values()))
        many = "" if total == 1 else f"{len(runs)} of {total} runs failed, the others are done; "
        super().__init__(f"{many}{first}")
        self.runs = runs


class Report:
    """Where a job's progress goes: its log, and state.json for whoever looks.

    Args:
        folder: The job's.
        job: What is done.
    """

    def __init__(self, folder: Path, job: PlannedJob) -> None:
        self.file = folder / "state.json"
        self.job = job
        self.plain = Plain(Console(file=sys.stdout, width=200, emoji=False))
        self.tasks: dict[str, tuple[int, int, str]] = {}
        self.expected = 0  # units of all tasks together; 0: not known
        self.finished = 0  # of these, units of runs that were done before
        self._first: dict[str, int] = {}  # where tasks were when this attempt first told of them
        self.begun, self.clock, self._written = _now(), time.monotonic(), -1.0
        before: dict[str, Any] = {}
        with contextlib.suppress(StudyError):
            before = read_object(self.file)
        self.attempt = int(before.get("attempt", 0)) + 1
        self.note(f"{self.begun} attempt {self.attempt} of {job.id} on {platform.node()}, process {os.getpid()}")
        self.write()

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""
        self.tasks[name] = (done, total, remark)
        self._first.setdefault(name, done)
        self.plain.update(name, done, total, remark)
        if time.monotonic() - self._written >= _STATE_S:
            self.write()

    def note(self, text: str) -> None:
        """See `ProgressSink`."""
        self.plain.note(text)
        sys.stdout.flush()

    def fraction(self) -> float:
        """How much of the job is done, as far as it is known."""
        return self._share({name: done for name, (done, _, _) in self.tasks.items()})

    def _share(self, tasks: Mapping[str, int]) -> float:
        if not self.expected:
            return 0.0
        counted = sum(done for name, done in tasks.items() if name.endswith(("offline", "online")))
        return min(1.0, (self.finished + counted) / self.expected)

    def write(self, state: str = "running") -> None:
        """Write state.json."""
        self._written = time.monotonic()
        with contextlib.suppress(O2OError):  # a full disk; the job may still come through
            write_json(
                self.file,
                {
                    "state": state,
                    "attempt": self.attempt,
                    "node": platform.node(),
                    "pid": os.getpid(),
                    "started": self.begun,
                    "seconds": round(time.monotonic() - self.clock, 1),
                    "fraction": self.fraction(),
                    "resumed_at": self._share(self._first),
                    "tasks": {name: list(task) for name, task in self.tasks.items()},
                },
            )

    def ending(self) -> dict[str, Any]:
        """What is written down at the end."""
        return {
            "job": self.job.id,
            "attempt": self.attempt,
            "node": platform.node(),
            "started": self.begun,
            "finished": _now(),
            "wall_s": round(time.monotonic() - self.clock, 2),
            "versions": versions(),
        }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


# Data


def _data(job: PlannedJob, folder: Path, report: Report) -> dict[str, Any]:
    """Make or fetch a dataset, and read it once."""
    config = from_dict(job.configs[0])
    if job.make:
        _make(job.make, report)
    return {"dataset": pretrained.fingerprint(config, report)}


def _make(options: str, report: Report) -> None:
    """What `o2o-smooth data make OPTIONS` does, unless the set is there."""
    import shlex

    from o2o_smooth.cli_options import peek
    from o2o_smooth.data.installed import is_installed

    arguments = shlex.split(options)
    wanted = peek(arguments, "--id")
    if wanted is not None and is_installed(wanted):
        report.note(f"{wanted} is installed already")
        return
    from o2o_smooth.cli_data import data

    if data(["make", *arguments]):
        raise O2OError(f"o2o-smooth data make {options} failed")


# Pretraining


def _pretrain(job: PlannedJob, folder: Path, report: Report) -> dict[str, Any]:
    """Find each seed's pretraining in the cache, or train what is missing; then bring all into the study."""
    config = from_dict(job.configs[0])
    data = pretrained.fingerprint(config, report, keep=True)
    specified = pretrained.specification(config)
    hashes = {seed: pretrained.address(specified, data, seed) for seed in config.seeds}
    cache = pretrained.cache_folder()
    try:
        cache.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # kernels that others could replace are not loaded
        cache.mkdir(exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"the cache of pretrainings, {cache}, cannot be written ({error.strerror}); name another folder with "
            f"{pretrained.CACHE_VARIABLE}"
        ) from None
    trained: list[int] = []
    with contextlib.ExitStack() as stack:
        stack.callback(let_go)
        for seed, hashed in sorted(hashes.items(), key=lambda item: item[1]):  # the same order for all: no deadlock
            entry = cache / hashed
            if _usable(entry, report):
                continue
            lock = Lock(cache / f"{hashed}.lock")

            def there(entry: Path = entry) -> bool:
                return (entry / "run.json").is_file()

            if lock.wait(there, lambda owner: report.note(f"waiting: {owner} trains a seed of this")):
                stack.enter_context(lock)
                if not there():
                    trained.append(seed)
        if trained:
            trained.sort(key=config.seeds.index)
            _train(config, trained, folder / "run", report)
            described = {"specification": specified, "dataset": data, "made": _now(), "made_with": versions()}
            targets = {seed: cache / hashes[seed] for seed in trained}
            pretrained.split(folder / "run", trained, targets, described)
    together = pretrained.address(specified, data)
    for seed, hashed in hashes.items():
        pretrained.copied(cache / hashed, folder.parents[1] / "pretrained" / together / f"seed-{seed}")
    cached = [seed for seed in config.seeds if seed not in trained]
    if cached:
        report.note(f"from the cache: seeds {' '.join(map(str, cached))}")
    return {
        "pretraining": together,
        "seeds": {str(seed): hashed for seed, hashed in hashes.items()},
        "trained": trained,
        "cached": cached,
        "updates": config.offline_updates * len(trained),
    }


def _usable(entry: Path, report: Report) -> bool:
    """Whether the cache has a whole checkpoint there; a broken one is put aside."""
    if not entry.is_dir():
        return False
    try:
        pretrained.check(entry)
        return True
    except CheckpointError as error:
        report.note(f"{entry} is broken ({error}) and trained again")
        aside = entry.with_name(f"{entry.name}.broken-{os.getpid()}")
        with contextlib.suppress(OSError):
            entry.rename(aside)
        return False


def _train(config: RunConfig[Any], seeds: Sequence[int], out: Path, report: Report) -> None:
    config = dataclasses.replace(config, seeds=tuple(seeds), out=str(out))
    report.expected = config.offline_updates
    if not _completed(config):
        _go_on([config], ["pretraining"], report)


# Arms


def _arms(job: PlannedJob, folder: Path, report: Report) -> dict[str, Any]:
    """Bring every run of the job to its end, as one population where they can; one that fails leaves the others be."""
    study = folder.parents[1]
    configs = [
        dataclasses.replace(from_dict(values), out=str(study / place))
        for values, place in zip(job.configs, job.folders, strict=True)
    ]
    if any(config.pretrained is not None for config in configs):
        start = _start(job, study, configs[0].seeds)
        configs = [dataclasses.replace(config, pretrained=str(start)) for config in configs]
    report.expected = sum(c.online_steps + (c.offline_updates if c.pretrained is None else 0) for c in configs)
    report.finished = sum(c.online_steps for c in configs if _completed(c))
    failures: dict[str, str] = {}
    pending = [i for i, config in enumerate(configs) if not _completed(config)]
    while pending:
        before = len(pending)
        try:
            _go_on([configs[i] for i in pending], [job.names[i] for i in pending], report)
        except Exception as error:
            failed = _blamed([configs[i] for i in pending])
            text = " ".join(str(error).split()) if isinstance(error, O2OError) else f"{type(error).__name__}: {error}"
            if not isinstance(error, O2OError):
                report.note(traceback.format_exc())
            if len(pending) > 1 and failed is None:
                report.note(f"{text}; the runs of this job go on one by one")
                for i in pending:
                    failures |= _alone(configs[i], job.names[i], job.folders[i], report)
                break
            bad = pending if failed is None else [pending[k] for k in failed]
            failures |= {job.folders[i]: text for i in bad}
            pending = [i for i in pending if i not in bad]
            report.note(f"failed: {', '.join(job.names[i] for i in bad)}: {text}")
        left = [i for i in pending if not _completed(configs[i])]
        if left and len(left) == before:
            raise O2OError(f"{configs[left[0]].out} came to no end, and gave no reason")
        pending = left
    if failures:
        raise RunsFailed(failures, len(configs))
    return {"runs": list(job.folders), "updates": job.updates}


def _alone(config: RunConfig[Any], name: str, folder: str, report: Report) -> dict[str, str]:
    """Bring one run to its end; returns what went wrong."""
    try:
        if not _completed(config):
            _go_on([config], [name], report)
    except Exception as error:
        report.note(traceback.format_exc())
        return {folder: " ".join(str(error).split())}
    return {}


def _start(job: PlannedJob, study: Path, seeds: Sequence[int]) -> Path:
    """The checkpoint of all seeds, from those of the pretraining jobs."""
    found: dict[int, Path] = {}
    together = ""
    for need in job.needs:
        content = read_object(study / "jobs" / need / "done.json")
        together = str(content.get("pretraining", together))
        for seed in content.get("seeds", ()):
            found[int(seed)] = study / "pretrained" / str(content["pretraining"]) / f"seed-{seed}"
    folders = [found[seed] for seed in seeds]
    if len(folders) == 1:
        return folders[0]
    target = study / "pretrained" / together / ("seeds-" + "-".join(map(str, seeds)))[:100]
    lock = Lock(target.with_name(f"{target.name}.lock"))
    if lock.wait((target / "run.json").is_file):
        with lock:
            pretrained.joined(folders, target)
    return target


def _completed(config: RunConfig[Any]) -> bool:
    """Whether a run is at its end."""
    with contextlib.suppress(StudyError):
        manifest = read_object(Path(str(config.out)) / _MANIFEST)
        return manifest.get("status") == "completed" and list(manifest.get("seeds", ())) == list(config.seeds)
    return False


def _blamed(configs: Sequence[RunConfig[Any]]) -> list[int] | None:
    """Of runs of one population that has failed, those whose fault it was; None where it failed before they began."""
    status = []
    for config in configs:
        try:
            status.append(str(read_object(Path(str(config.out)) / _MANIFEST).get("status")))
        except StudyError:
            status.append("")
    failed = [i for i, text in enumerate(status) if text == "failed"]
    return failed or None


def _go_on(configs: Sequence[RunConfig[Any]], names: Sequence[str], report: Report) -> None:
    """Begin runs, or let them go on from their checkpoints."""
    outs = [Path(str(config.out)) for config in configs]
    for out, config in zip(outs, configs, strict=True):
        if can_resume(out) and {path.resolve() for path in read_request(out).outs} <= {o.resolve() for o in outs}:
            try:
                resume(out, report, task=config.task)  # and with it those of its population
                return
            except (CheckpointError, ConfigError) as error:
                report.note(f"{out} cannot go on, and starts anew: {' '.join(str(error).split())}")
                break
    begun = []
    for config, out in zip(configs, outs, strict=True):
        if out.is_dir() and not (out / _MANIFEST).is_file():  # killed before it had one
            shutil.rmtree(out)
        begun.append(dataclasses.replace(config, overwrite=out.is_dir()))
    run_population(begun, report, names=list(names))


_KINDS: dict[str, Callable[[PlannedJob, Path, Report], dict[str, Any]]] = {
    "data": _data,
    "pretrain": _pretrain,
    "arms": _arms,
}


if __name__ == "__main__":
    sys.exit(main())
