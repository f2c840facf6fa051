"""The command `o2o-smooth dashboard`: the stability panels as a W&B workspace or report."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from o2o_smooth.cli_options import parse
from o2o_smooth.errors import ConfigError

EPILOG = """\
Log runs with o2o-smooth run --wandb first (any --wandb-project; this command's default is the same). The dashboard is
uploaded with the key that `wandb login` keeps; nothing here reads or stores one. Pictures and tables of the same runs
without W&B: o2o-smooth compare.

examples:
  o2o-smooth dashboard --entity my-team
  o2o-smooth dashboard --entity my-team --project o2o-smooth --report --title "Ramps on hopper"
  o2o-smooth dashboard --entity my-team --dry-run"""


@dataclass(frozen=True)
class DashboardConfig:
    """Create a W&B workspace or report with the stability panels: scores, dips, what the smoothing did.

    Every chart is drawn against our own steps, so that resumed runs stay whole.
    """

    entity: str | None = None
    """User or team that owns the W&B project; default: WANDB_ENTITY."""
    project: str = "o2o-smooth"
    """W&B project whose runs are shown."""
    title: str = "o2o_smooth: the switch"
    """Name of the workspace, or title of the report."""
    report: bool = False
    """A report, with what to look for beside the panels, in place of a workspace."""
    dry_run: bool = False
    """Print what would be sent and send nothing; needs no network and no account."""
    json: str | None = None
    """Write what is sent to this file too; with --dry-run only there."""

    def __post_init__(self) -> None:
        for name in ("entity", "project"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w.-]+", value):
                raise ConfigError(f"{name} must be a name as in the project's address on W&B, got '{value}'")
        if not 1 <= len(self.title) <= 128:
            raise ConfigError(f"title must have 1 to 128 characters, got {len(self.title)}")


def dashboard(arguments: list[str]) -> int:
    """Run the command; returns the exit code.

    Raises:
        O2OError: Bad input, or W&B did not take the dashboard.
    """
    config: DashboardConfig = parse(DashboardConfig, DashboardConfig(), arguments, "o2o-smooth dashboard", EPILOG)
    entity = config.entity or os.environ.get("WANDB_ENTITY")
    if not entity:
        raise ConfigError("whose W&B project is it? give --entity, the user's or team's name (or set WANDB_ENTITY)")
    from o2o_smooth.files import written_whole
    from o2o_smooth.training.tracking import dashboard as boards  # W&B's packages are slow to import

    build = boards.report if config.report else boards.workspace
    board = build(entity, config.project, config.title)
    text = json.dumps(boards.spec(board), indent=1)
    if config.json is not None:
        with written_whole(Path(config.json)) as path:
            path.write_text(text + "\n", encoding="utf-8")
        print(f"spec: {config.json}")
    elif config.dry_run:
        print(text)
    if not config.dry_run:
        print(f"{'report' if config.report else 'workspace'}: {boards.upload(board)}")
    return 0
