"""TensorBoard as a sink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o_smooth.errors import ConfigError
from o2o_smooth.training.tracking.scalars import Scalars, SeedGroups

FOLDER = "tensorboard"


def require() -> None:
    """Raise `ConfigError` where the package is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError("TensorBoard is not installed: pip install 'o2o_smooth[tensorboard]'") from error


class TensorBoardSink:
    """Writes event files under `tensorboard/` in the run folder, with the names and steps that W&B gets.

    Args:
        run_dir: The run's folder.
        name: The run's name (TensorBoard names a run by its folder; it is kept beside the configuration).
        config: The full configuration, shown in the text tab.
        seeds: The seeds of the run.

    Raises:
        ConfigError: The package is not installed.
    """

    def __init__(self, run_dir: Path, name: str, config: Mapping[str, Any], *, seeds: Sequence[int]) -> None:
        require()
        from torch.utils.tensorboard import SummaryWriter

        self._groups = SeedGroups(seeds)
        self._writer = SummaryWriter(str(run_dir / FOLDER))
        lines = "\n".join(f"    {key}: {value}" for key, value in config.items())
        self._writer.add_text("config", f"    name: {name}\n{lines}")

    def log(self, kind: str, row: Mapping[str, Any]) -> None:
        """Take one row; it is written when the other seeds of its moment are in."""
        for scalars in self._groups.add(kind, row):
            self._write(scalars)

    def close(self, status: str) -> None:
        """Write what waits and the status, and close the file."""
        for scalars in self._groups.flush():
            self._write(scalars)
        self._writer.add_text("status", status)
        self._writer.close()

    def _write(self, scalars: Scalars) -> None:
        """Write one moment; evaluations are rare and dear, so it is flushed."""
        for name, value in scalars.values.items():
            self._writer.add_scalar(name, value, scalars.step)
        self._writer.flush()
