"""What a run was asked to do, exactly, so that it can be asked again: settings, task and data of all its arms."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import o2o_smooth
from o2o_smooth.agents import AGENTS
from o2o_smooth.agents.storage import read_json
from o2o_smooth.envs import find_task
from o2o_smooth.errors import CheckpointError
from o2o_smooth.files import fsync, written_whole
from o2o_smooth.reading import check_inside
from o2o_smooth.training.checkpoint import named_by_path
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.keeping import FOLDER, FORMAT, relative
from o2o_smooth.training.prepare import Prepared

FILE = "run.json"
PATHS = ("dataset", "pretrained")  # settings that may be paths
ELSEWHERE = ("wandb", "tensorboard")  # in a run's folder: what others write and we never read; W&B links its logs


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    home: Path
    """The first run's folder, which holds the checkpoints."""
    configs: tuple[RunConfig[Any], ...]
    outs: tuple[Path, ...]
    names: tuple[str | None, ...]
    task: dict[str, Any]
    dataset: str | None
    """SHA-256 of the offline data."""

    def trust(self, named: str | None) -> None:
        """Refuse what a folder that somebody else made could do when the runs go on; comes before anything is written.

        Args:
            named: The task that the user names, if any: only that one's module is imported.

        Raises:
            CheckpointError: A link leads out of a run's folder, or a run is named that knows nothing of the others.
            EnvError: The task is in a module that nobody has imported.
        """
        for out in self.outs:
            _check_links(out)
            if out != self.home:
                there = out / FOLDER / FILE
                back = _read(out).get("home") if there.is_file() else None
                if back is None or (out / str(back)).resolve() != self.home.resolve():
                    raise CheckpointError(
                        f"{self.home / FOLDER / FILE} names {out}, which does not know that it shares a population "
                        f"with it; nothing is done there"
                    )
        for config in self.configs:
            find_task(config.task, imports=named is not None and named_by_path(named) == config.task)

    def check(self, prepared: Prepared) -> None:
        """Refuse a task or data that are not those that the run began with.

        Raises:
            CheckpointError: They are others; the text says which.
        """
        task = _plain(asdict(prepared.task))
        differing = [name for name in {**task, **self.task} if task.get(name) != self.task.get(name)]
        if differing:
            raise CheckpointError(
                f"{self.home}: the task {prepared.task.id} is no longer what it was when the run began: "
                f"{', '.join(differing)}"
            )
        now = None if prepared.dataset is None else prepared.dataset.sha256
        if now != self.dataset:
            raise CheckpointError(
                f"{self.home}: the offline data ({'none' if prepared.dataset is None else prepared.dataset.id}) have "
                f"other contents than when the run began; put them back, or start the run anew with --overwrite"
            )


def write_request(prepared: Prepared) -> None:
    """Write down what is asked for, in every folder; the first one's goes last and makes the run one to resume."""
    home = prepared.out
    runs = [
        {"folder": relative(arm.out, home), "name": arm.name, "config": _plain(_rooted(arm.config).to_dict())}
        for arm in prepared.arms
    ]
    content = {
        "format": FORMAT,
        "version": o2o_smooth.__version__,
        "runs": runs,
        "task": _plain(asdict(prepared.task)),
        "dataset": None if prepared.dataset is None else prepared.dataset.sha256,
    }
    for arm in prepared.arms[1:]:
        _write(arm.out / FOLDER / FILE, {"format": FORMAT, "home": relative(home, arm.out)})
    _write(home / FOLDER / FILE, content)


def has_request(folder: Path) -> bool:
    """Whether a run was begun in a folder and is not complete."""
    return (folder / FOLDER / FILE).is_file()


def read_request(folder: Path) -> Request:
    """Read what was asked for, from the folder of any of the runs that share a population.

    Raises:
        CheckpointError: It is absent, broken, of another version, or another of the runs is not where it was.
    """
    content = _read(folder)
    home = folder
    if "home" in content:
        home = folder / str(content["home"])
        content = _read(home)
    try:
        configs = tuple(rebuild(run["config"]) for run in content["runs"])
        outs = tuple(home if i == 0 else home / str(run["folder"]) for i, run in enumerate(content["runs"]))
        names = tuple(run["name"] for run in content["runs"])
        task, dataset = dict(content["task"]), content["dataset"]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{home / FOLDER / FILE} does not describe a run: {error!r}") from None
    mine = folder.resolve()
    if mine not in [out.resolve() for out in outs]:
        raise CheckpointError(f"{folder} shares a population with {home}, which does not know it; was it moved alone?")
    return Request(home, configs, outs, names, task, dataset)


def rebuild(values: Mapping[str, Any]) -> RunConfig[Any]:
    """The settings that `RunConfig.to_dict` gave, exactly; what an older version did not have is at its default.

    Raises:
        O2OError: A setting that is unknown or out of range.
    """
    cls = AGENTS[values["agent"]].config_class
    fresh: RunConfig[Any] = RunConfig(hyper=cls(), agent=values["agent"], task=values["task"])
    config: RunConfig[Any] = _filled(fresh, values, "run.json")
    return config


def differing(config: RunConfig[Any], values: Mapping[str, Any]) -> list[str]:
    """Settings that results depend on and in which a run differs from another's values, as JSON has them."""
    mine = [_flat(_plain(c.to_dict())) for c in (config, _rooted(config))]
    other = _flat(_plain(values))
    free = ("out", "overwrite", "memory_check")
    return [
        name
        for name in {**mine[0], **other}
        if other.get(name) not in [own.get(name) for own in mine]
        and name not in free
        and not name.startswith("checkpoints.")
    ]


def _check_links(out: Path) -> None:
    """Refuse links that lead out of a run's folder: what goes on there would write through them."""
    for place, folders, files in os.walk(out):
        if Path(place) == out:
            folders[:] = [name for name in folders if name not in ELSEWHERE]
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                try:
                    check_inside(path, out)
                except ValueError as error:
                    raise CheckpointError(f"{out}: {error}") from None


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{head}{name}.") if isinstance(value, Mapping) else {f"{head}{name}": value}
    return found


def _filled(like: Any, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass with the values of a JSON object."""
    fields = {f.name: getattr(like, f.name) for f in dataclasses.fields(like)}
    if unknown := values.keys() - fields.keys():
        raise CheckpointError(
            f"{where} has a setting that this version does not know: {', '.join(sorted(unknown))}; resume with the "
            f"version of o2o_smooth that wrote it"
        )
    own: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(fields[name]):
            own[name] = _filled(fields[name], value, f"{where}: {name}")
        else:
            own[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(like, **own)


def _rooted(config: RunConfig[Any]) -> RunConfig[Any]:
    """The same with whole paths, so that it means the same from another folder."""
    values: dict[str, Any] = {
        name: str(Path(value).expanduser().resolve())
        for name in PATHS
        if (value := getattr(config, name)) is not None and Path(value).expanduser().exists()
    }
    task, mark, row = config.task.partition("#")
    if task.endswith(".toml"):
        values["task"] = f"{Path(task).resolve()}{mark}{row}"
    return dataclasses.replace(config, **values)


def _plain(values: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(values))


def _read(folder: Path) -> dict[str, Any]:
    content = read_json(folder / FOLDER / FILE)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / FOLDER / FILE} has format {content.get('format')}, this version reads {FORMAT}; resume with "
            f"the version of o2o_smooth that wrote it"
        )
    return content


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fsync(file.parent)
