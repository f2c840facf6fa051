"""Weights & Biases as a sink."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o_smooth.errors import ConfigError
from o2o_smooth.training.tracking.local import plain
from o2o_smooth.training.tracking.scalars import Scalars, SeedGroups

_ID_FILE = "wandb.json"


def require() -> None:
    """Raise `ConfigError` where the package is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ConfigError("W&B is not installed: pip install 'o2o_smooth[wandb]'") from error


class WandbSink:
    """Logs a run to W&B, online or, with `WANDB_MODE=offline`, into the run folder.

    Every metric is drawn against a step of ours, `env_steps` after the switch and `updates` before it, never against
    W&B's own counter: that drops rows whose step goes backwards, which a resumed run's do. The id of the W&B run is
    kept in the run folder, so that a run that goes on there goes on in W&B too. No key is read or stored: W&B finds its
    own.

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
        known = _known_id(run_dir)
        # The console is left alone: W&B's capture of it and a live progress display do not mix.
        settings = wandb.Settings(console="off", silent=True, disable_git=True, save_code=False)
        offline = wandb.setup().settings.mode in ("offline", "dryrun")
        self._run = wandb.init(
            project=project,
            name=name,
            group=group,
            config=plain(config),
            dir=run_dir,
            id=known,
            resume="allow" if known is not None and not offline else None,
            settings=settings,
            reinit="create_new",
        )
        if not self._run.disabled:
            (run_dir / _ID_FILE).write_text(json.dumps({"id": self._run.id}) + "\n", encoding="utf-8")
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

    def _send(self, scalars: Scalars) -> None:
        """Log one moment, with the steps it is drawn against."""
        for name in scalars.values:
            if name not in self._defined:  # by name: a glob would match names of the other axis too
                self._defined.add(name)
                self._run.define_metric(name, step_metric=scalars.axis)
        self._run.log({**scalars.values, "env_steps": scalars.env_steps, "updates": scalars.updates})


def _known_id(run_dir: Path) -> str | None:
    """The id under which this run folder was logged before."""
    try:
        found = json.loads((run_dir / _ID_FILE).read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None
