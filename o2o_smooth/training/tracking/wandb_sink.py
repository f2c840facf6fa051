"""Weights & Biases as a sink."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o_smooth.errors import ConfigError
from o2o_smooth.files import written_whole
from o2o_smooth.reading import MIB, read_json
from o2o_smooth.redaction import redacted, redacted_values, redacted_words
from o2o_smooth.training.tracking.local import plain
from o2o_smooth.training.tracking.scalars import Scalars, SeedGroups

_ID_FILE = "wandb.json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")  # W&B makes folders and addresses of it
_RESERVED = 1000  # rows of W&B between two writes of that file
_FINISH_S = 300.0  # for what is still to be sent at the end of a run; without it a dead network holds the run for ever


def require() -> None:
    """Raise `ConfigError` where the package is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ConfigError("W&B is not installed: pip install 'o2o_smooth[wandb]'") from error


class WandbSink:
    """Logs a run to W&B, online or, with `WANDB_MODE=offline`, into the run folder.

    Every metric is drawn against a step of ours, `env_steps` after the switch and `updates` before it, never against
    W&B's own counter: that drops rows whose step goes backwards, which a resumed run's do. Its counter only ever rises
    here, over all the times that a run goes on, also offline, where W&B itself would begin at 0 again and `wandb sync`
    would lose the rows. It is kept with the id of the W&B run in the run folder (`wandb.json`), so that a run that goes
    on there goes on in W&B too. No key is read or stored: W&B finds its own.

    How the switch went is logged once more when the run ends, as `stability/` values, and stands in the summary.

    Args:
        run_dir: The run's folder.
        name: The run's name.
        config: The full configuration.
        seeds: The seeds of the run.
        project: The W&B project.
        group: Runs with one group are shown together.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        name: str,
        config: Mapping[str, Any],
        *,
        seeds: Sequence[int],
        project: str = "o2o_smooth",
        group: str | None = None,
    ) -> None:
        require()
        import wandb

        run_dir.mkdir(parents=True, exist_ok=True)  # W&B goes to a temporary folder where its own is missing
        self._groups = SeedGroups(seeds)
        self._defined: set[str] = set()
        self._file = run_dir / _ID_FILE
        known, self._step = _known(self._file)
        # The console is left alone: W&B's capture of it and a live progress display do not mix.
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        if redacted_words(sys.argv) != sys.argv:  # W&B would keep the command line
            settings.x_disable_meta = True
        if "finish_timeout" in type(settings).model_fields:  # not in every version
            settings.finish_timeout, settings.finish_timeout_raises = _FINISH_S, True
        offline = wandb.setup().settings.mode in ("offline", "dryrun")
        self._run = wandb.init(
            project=project,
            name=redacted(name),
            group=group,
            config=redacted_values(plain(config)),
            dir=run_dir,
            id=known,
            resume="allow" if known is not None and not offline else None,
            settings=settings,
            reinit="create_new",
        )
        self._id: str | None = None if self._run.disabled else self._run.id
        self._step = max(self._step, int(self._run.step))  # a resumed run's server may know of more
        self._reserve(self._step)
        for step in ("env_steps", "updates"):
            self._run.define_metric(step)

    def log(self, kind: str, row: Mapping[str, Any]) -> None:
        """Take one row; it is sent when the other seeds of its moment are in."""
        for scalars in self._groups.add(kind, row):
            self._send(scalars)

    def close(self, status: str) -> None:
        """Send what waits, note the status in the summary and finish: exit code 0 for "completed" alone."""
        for scalars in self._groups.flush():
            self._send(scalars)
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "completed" else 1)
        self._reserve(self._step)

    def _send(self, scalars: Scalars) -> None:
        """Log one moment, with the steps it is drawn against."""
        for name in scalars.values:
            if name not in self._defined:  # by name: a glob would match names of the other axis too
                self._defined.add(name)
                self._run.define_metric(name, step_metric=scalars.axis)
        row = {**scalars.values, "env_steps": scalars.env_steps, "updates": scalars.updates}
        if self._step >= self._reserved:
            self._reserve(self._step + _RESERVED)
        self._run.log(row, step=self._step, commit=True)
        self._step += 1
        if scalars.unknown:  # "never recovered" is a result: the name is there, without a number
            self._run.summary.update(dict.fromkeys(scalars.unknown))

    def _reserve(self, step: int) -> None:
        """Keep the id and the first step of W&B's that is still free, whatever happens to this process."""
        self._reserved = step
        if self._id is None:
            return
        with written_whole(self._file) as path:
            path.write_text(json.dumps({"id": self._id, "next_step": step}) + "\n", encoding="utf-8")


def _known(file: Path) -> tuple[str | None, int]:
    """The id under which this run folder was logged before, and W&B's step at which it goes on."""
    try:
        found = read_json(file, MIB, root=file.parent)
        name, step = found["id"], found.get("next_step", 0)
    except (OSError, ValueError, KeyError):
        return None, 0
    sound = isinstance(name, str) and _ID.fullmatch(name) and type(step) is int and 0 <= step < 2**53
    return (name, step) if sound else (None, 0)
