"""From what a suite asks for to jobs: data, pretrainings that arms share, arms as populations, in what order.

Jobs are cut so that the whole study is predicted to end soonest on so many workers: arms that can share a learner are
one population while that costs fewest core seconds and fits into a worker's share of the memory, and are split where
workers would otherwise stand idle. The cut hangs on the suite, the number of workers and the machine's memory alone,
and is written down: a study that goes on keeps it.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from o2o_smooth.benchmarks.cells import Cell
from o2o_smooth.benchmarks.job_size import job_memory, job_seconds, machine_memory
from o2o_smooth.benchmarks.placement import cores
from o2o_smooth.benchmarks.pretrained import digest, specification
from o2o_smooth.benchmarks.study import PlannedJob, PlannedRun, Study, StudyError
from o2o_smooth.benchmarks.suite import PlacementSettings, Suite, safe
from o2o_smooth.data.d4rl_files import d4rl_file
from o2o_smooth.data.generate import generated_id
from o2o_smooth.data.installed import is_installed
from o2o_smooth.data.sources import is_path
from o2o_smooth.envs import find_task
from o2o_smooth.errors import ConfigError
from o2o_smooth.training.config import RunConfig, SmoothingConfig
from o2o_smooth.training.config_hygiene import AnchorConfig, AveragingConfig, HygieneConfig
from o2o_smooth.training.prepare import needs_dataset
from o2o_smooth.training.sharing import groups, make_members

_SHARE = 0.7  # of the machine's memory may be planned for
_GAIN = 0.97  # a split must bring the end at least so much nearer
_DATA_S, _TRAINED_DATA_S = 20.0, 200.0  # the second where a policy is trained first
_START_S = 4.0  # a worker begins, reads its data and draws its pictures


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    jobs: tuple[PlannedJob, ...]
    runs: tuple[PlannedRun, ...]
    workers: int
    seconds: float
    """Predicted, on so many workers."""


@dataclass
class _Part:
    """A job in the making: arms of one pretraining, or seeds of it."""

    group: _Group
    cells: list[Cell]  # empty: a pretraining
    seeds: tuple[int, ...]
    seconds: float = 0.0
    memory: int | None = None


@dataclass
class _Group:
    """Cells of one task, agent and pretraining, for some seeds that stay together."""

    key: str
    """Hash of the pretraining but for the data; empty where there is none."""
    task: str
    agent: str
    cells: list[Cell]
    seeds: tuple[int, ...]
    data: str | None  # the job that makes its data
    before: list[_Part] = field(default_factory=list)
    after: list[_Part] = field(default_factory=list)


def make_plan(suite: Suite, cells: Sequence[Cell], *, workers: int | None = None, study: Study | None = None) -> Plan:
    """Plan the cells that a study does not have yet.

    Args:
        suite: Where they come from.
        cells: What is wanted.
        workers: Jobs at a time to plan for; default: as many as the cores allow.
        study: What is planned already.

    Raises:
        StudyError: The study has one of the runs with other settings.
    """
    workers = workers or max(1, cores() // suite.placement.cpus)
    missing = _missing(cells, study)
    data = _data_jobs(suite, [cell for cell, _ in missing])
    found = _groups(missing, suite.placement, data)
    memory = machine_memory()
    room = None if memory is None else int(_SHARE * memory / workers)
    for group in found:
        _cut(group, suite.placement, room)
    _split(found, data, suite.placement, workers)
    return _written(found, data, suite.placement, workers, study)


def _missing(cells: Sequence[Cell], study: Study | None) -> list[tuple[Cell, tuple[int, ...]]]:
    """Cells with the seeds that a study lacks.

    Raises:
        StudyError: It has them with other settings.
    """
    found = []
    for cell in cells:
        hashed = config_hash(cell.config)
        there: set[int] = set()
        for run in [] if study is None else study.runs:
            if (run.task, run.agent, run.arm) != (cell.task, cell.agent, cell.arm):
                continue
            if run.config != hashed:
                raise StudyError(
                    f"{study.folder if study else ''} holds '{cell.arm}' of {cell.task}, {cell.agent} with other "
                    f"settings; choose another --out, or give the arm another name"
                )
            there |= set(run.seeds)
        seeds = tuple(seed for seed in cell.config.seeds if seed not in there)
        if seeds:
            found.append((cell, seeds))
    return found


def config_hash(config: RunConfig[Any]) -> str:
    """A hash of all settings but the seeds and where it is run."""
    values = asdict(config)
    for name in ("seeds", "out", "overwrite", "pretrained", "threads", "memory_check", "checkpoints"):
        values.pop(name)
    return digest(values)


def pretraining_config(base: RunConfig[Any], seeds: Sequence[int]) -> RunConfig[Any]:
    """The run that a pretraining is: to the switch, and nothing of what comes after it."""
    return replace(
        base,
        seeds=tuple(seeds),
        online_steps=0,
        online_stream=0,
        random_steps=0,
        smoothing=SmoothingConfig(),
        hygiene=HygieneConfig(),
        anchors=AnchorConfig(),
        averaging=AveragingConfig(),
    )


def _groups(
    missing: Sequence[tuple[Cell, tuple[int, ...]]], placement: PlacementSettings, data: Mapping[str, PlannedJob]
) -> list[_Group]:
    found: dict[tuple[str, ...], _Group] = {}
    for cell, seeds in missing:
        pretrains = cell.base.offline_updates > 0
        key = digest({**specification(cell.base), "dataset": cell.base.dataset}) if pretrains else ""
        size = placement.seeds_per_job or len(seeds)
        job = data.get(_dataset_key(cell.base))
        for i in range(0, len(seeds), size):
            own = seeds[i : i + size]
            group = found.setdefault(
                (key, cell.task, cell.agent, *map(str, own)),
                _Group(key, cell.task, cell.agent, [], own, None if job is None else job.id),
            )
            group.cells.append(cell)
    return list(found.values())


def _dataset_key(config: RunConfig[Any]) -> str:
    return f"{config.task} {config.dataset or ''}"


def _data_jobs(suite: Suite, cells: Sequence[Cell]) -> dict[str, PlannedJob]:
    """A job for each dataset that is not there yet, by task and dataset."""
    found: dict[str, PlannedJob] = {}
    for cell in cells:
        key = _dataset_key(cell.base)
        if key in found or not (needs_dataset(cell.base) or needs_dataset(cell.config)) or _there(cell.base):
            continue
        task = find_task(cell.base.task)
        named = cell.base.dataset or generated_id(task) or next(iter(task.dataset_ids), task.id)
        config = replace(cell.base, seeds=cell.base.seeds[:1])
        found[key] = PlannedJob(
            f"data-{safe(named)[-40:]}-{digest({'key': key})[:6]}",
            "data",
            configs=(json.loads(json.dumps(config.to_dict())),),
            make=suite.data.get(named, ""),
            predicted_s=_TRAINED_DATA_S if "--train-steps" in suite.data.get(named, "") else _DATA_S,
            title=f"data {named}",
        )
    return found


def _there(config: RunConfig[Any]) -> bool:
    """Whether a run's dataset can be read at once."""
    task = find_task(config.task)
    if config.dataset is not None:
        return is_installed(config.dataset) or (is_path(config.dataset) and Path(config.dataset).expanduser().exists())
    return d4rl_file(task) is not None or any(is_installed(name) for name in task.dataset_ids)


# Cutting


def _cut(group: _Group, placement: PlacementSettings, room: int | None) -> None:
    """Arms in the populations that cost fewest core seconds; one pretraining for all seeds."""
    if group.key:
        group.before = [_part(group, [], group.seeds, placement)]
    configs = [_forked(cell.config, group.seeds) for cell in group.cells]
    for shared in groups(configs):
        own = [group.cells[i] for i in shared.indices]
        most = placement.arms_per_job or len(own)
        sizes = [most] if placement.arms_per_job else _sizes(most)
        options = [_chunks(group, own, size, placement) for size in sizes]
        fitting = [parts for parts in options if _fits(parts, room)]
        group.after += sorted(fitting, key=_cost)[0] if fitting else options[0]


def _fits(parts: Sequence[_Part], room: int | None) -> bool:
    return room is None or all(part.memory is None or part.memory <= room for part in parts)


def _cost(parts: list[_Part]) -> tuple[float, int]:
    return sum(part.seconds + _START_S for part in parts), len(parts)


def _sizes(most: int) -> list[int]:
    """Sizes to try: all of the small ones, then every so many."""
    return sorted({*range(1, min(most, 8) + 1), *(-(-most // k) for k in range(1, 9))})


def _chunks(group: _Group, cells: Sequence[Cell], size: int, placement: PlacementSettings) -> list[_Part]:
    count = -(-len(cells) // size)
    ends = [round(i * len(cells) / count) for i in range(count + 1)]
    return [_part(group, list(cells[a:b]), group.seeds, placement) for a, b in itertools.pairwise(ends)]


def _part(group: _Group, cells: list[Cell], seeds: tuple[int, ...], placement: PlacementSettings) -> _Part:
    part = _Part(group, cells, seeds)
    configs = _configs(part)
    part.seconds, part.memory = job_seconds(configs, placement.cpus), job_memory(configs)
    return part


def _configs(part: _Part) -> list[RunConfig[Any]]:
    if not part.cells:
        return [pretraining_config(part.group.cells[0].base, part.seeds)]
    return [
        _forked(cell.config, part.seeds) if part.group.key else replace(cell.config, seeds=part.seeds)
        for cell in part.cells
    ]


def _forked(config: RunConfig[Any], seeds: Sequence[int]) -> RunConfig[Any]:
    return replace(config, seeds=tuple(seeds), pretrained="" if config.offline_updates else None)


def _split(found: Sequence[_Group], data: Mapping[str, PlannedJob], placement: PlacementSettings, workers: int) -> None:
    """Halve jobs while the whole ends sooner for it."""
    end = _simulate(found, data, workers)
    refused: set[int] = set()
    for _ in range(8 * workers + 8):
        parts = [part for group in found for part in (*group.before, *group.after) if id(part) not in refused]
        parts = [part for part in parts if _halves(part, placement)]
        if not parts:
            return
        longest = max(parts, key=lambda part: part.seconds)
        siblings = longest.group.after if longest.cells else longest.group.before
        at = siblings.index(longest)
        siblings[at : at + 1] = _halves(longest, placement)
        sooner = _simulate(found, data, workers)
        if sooner < _GAIN * end:
            end = sooner
        else:
            siblings[at : at + 2] = [longest]
            refused.add(id(longest))


def _halves(part: _Part, placement: PlacementSettings) -> list[_Part]:
    """A job as two; empty where it cannot be split."""
    if part.cells:
        if len(part.cells) < 2 or placement.arms_per_job:
            return []
        middle = len(part.cells) // 2
        return [_part(part.group, own, part.seeds, placement) for own in (part.cells[:middle], part.cells[middle:])]
    if len(part.seeds) < 2 or placement.seeds_per_job:
        return []
    middle = len(part.seeds) // 2
    return [_part(part.group, [], own, placement) for own in (part.seeds[:middle], part.seeds[middle:])]


def _simulate(found: Sequence[_Group], data: Mapping[str, PlannedJob], workers: int) -> float:
    """When the last job ends, if what comes first begins first, and of that the longest."""
    begin = sum(job.predicted_s for job in data.values()) / workers
    free = [begin] * workers
    ended = [begin] * len(found)
    before = [(part.seconds + _START_S, i) for i, group in enumerate(found) for part in group.before]
    for seconds, i in sorted(before, reverse=True):
        end = heapq.heappop(free) + seconds
        heapq.heappush(free, end)
        ended[i] = max(ended[i], end)
    after = [(ended[i], -part.seconds - _START_S) for i, group in enumerate(found) for part in group.after]
    for ready, seconds in sorted(after):
        heapq.heappush(free, max(heapq.heappop(free), ready) - seconds)
    return max(free)


# Writing down


def _written(
    found: Sequence[_Group],
    data: Mapping[str, PlannedJob],
    placement: PlacementSettings,
    workers: int,
    study: Study | None,
) -> Plan:
    jobs: list[PlannedJob] = list(data.values())
    runs: list[PlannedRun] = []
    taken = set() if study is None else {run.folder for run in study.runs}
    for group in found:
        first = () if group.data is None else (group.data,)
        before = [_job(part, "pretrain", first, [], placement) for part in group.before]
        jobs += before
        needs = tuple(job.id for job in before) or first
        for part in group.after:
            folders = [_folder(cell, group.seeds, taken) for cell in part.cells]
            job = _job(part, "arms", needs, folders, placement)
            jobs.append(job)
            runs += [_run(cell, group, folder, job) for cell, folder in zip(part.cells, folders, strict=True)]
    return Plan(tuple(jobs), tuple(runs), workers, _simulate(found, data, workers))


def _job(
    part: _Part, kind: Any, needs: tuple[str, ...], folders: list[str], placement: PlacementSettings
) -> PlannedJob:
    group, configs = part.group, _configs(part)
    names = [cell.arm for cell in part.cells]
    mark = digest({"key": group.key, "seeds": part.seeds, "names": names, "folders": folders})[:6]
    what = "pretraining" if not names else names[0] if len(names) == 1 else f"{len(names)} arms"
    return PlannedJob(
        f"{kind}-{safe(group.task)[-40:]}-{safe(group.agent)[-24:]}-{mark}",
        kind,
        needs,
        tuple(json.loads(json.dumps(config.to_dict())) for config in configs),
        tuple(names),
        tuple(folders),
        placement.cpus,
        _gpus(configs[0].device, placement),
        part.memory,
        part.seconds,
        _updates(configs),
        title=f"{group.task}, {group.agent}: {what}, {_seeds_text(part.seeds)}",
    )


def _gpus(device: str, placement: PlacementSettings) -> float:
    """Share of a GPU that the launcher gives a job, which then sees that one alone.

    Raises:
        ConfigError: The device is a certain GPU.
    """
    if device == "cpu":
        return 0.0
    if ":" in device:
        raise ConfigError(
            f"device {device} is a certain GPU, and here the launcher chooses it; write cuda (of this machine's GPUs, "
            f"CUDA_VISIBLE_DEVICES names those to use)"
        )
    return placement.gpus or 1.0


def _updates(configs: Sequence[RunConfig[Any]]) -> int:
    """Updates of all members."""
    offline = 0 if configs[0].pretrained is not None else configs[0].offline_updates
    return sum(
        offline * len(make_members([configs[i] for i in group.indices]).firsts) for group in groups(configs)
    ) + sum(int(config.utd * config.online_steps) * len(config.seeds) for config in configs)


def _seeds_text(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    whole = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"seeds {seeds[0]} to {seeds[-1]}" if whole else f"seeds {' '.join(map(str, seeds))}"


def _folder(cell: Cell, seeds: Sequence[int], taken: set[str]) -> str:
    """A run folder of its own, relative to the study's."""
    folder = "/".join(("runs", safe(cell.task), safe(cell.agent), safe(cell.arm)))
    if tuple(seeds) != cell.config.seeds or folder in taken:
        text = _seeds_text(seeds).replace(" to ", "-").replace(" ", "-")
        folder += f"-{text if len(text) < 60 else digest({'seeds': list(seeds)})}"
    if folder in taken:
        raise StudyError(f"two runs would share the folder {folder}; give one arm another name")
    taken.add(folder)
    return folder


def _run(cell: Cell, group: _Group, folder: str, job: PlannedJob) -> PlannedRun:
    settings = json.loads(json.dumps(dict(cell.settings)))
    return PlannedRun(
        folder,
        cell.task,
        cell.agent,
        cell.arm,
        settings,
        group.seeds,
        job.id,
        group.key or None,
        config_hash(cell.config),
    )
