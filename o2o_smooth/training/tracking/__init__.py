"""Where the numbers of a run go: local files, which are the source of truth, and sinks, which may fail.

A sink receives the same rows as the files. One that raises is dropped with one warning; it never stops training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from o2o_smooth.errors import ConfigError
from o2o_smooth.redaction import one_line, redacted
from o2o_smooth.training.tracking import tensorboard_sink, wandb_sink
from o2o_smooth.training.tracking.local import LocalFiles
from o2o_smooth.training.tracking.scalars import SUMMARY
from o2o_smooth.training.tracking.timed import TimedSink

__all__ = ["LocalFiles", "Sink", "Tracker", "check_sinks", "open_sinks"]

Warn = Callable[[str], None]


class Sink(Protocol):
    """Something that takes rows."""

    def log(self, kind: str, row: Mapping[str, Any]) -> None:
        """Take one row of kind "evaluation", "metrics", "audit" or "summary"."""

    def close(self, status: str) -> None:
        """Write out what is left; `status` is "completed", or says how else the run ended."""


class Tracker:
    """Writes every row to the local files first and hands it to the sinks after that.

    Args:
        local: The files; a failure to write them raises `O2OError`.
        sinks: From `open_sinks`.
        warn: Takes one line for each sink that fails.
    """

    def __init__(self, local: LocalFiles, sinks: Sequence[Sink] = (), warn: Warn = print) -> None:
        self._local = local
        self._sinks = list(sinks)
        self._warn = warn

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One evaluation of one seed."""
        self._log("evaluation", row)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """The metrics of one seed at one logging step."""
        self._log("metrics", row)

    def summary(self, row: Mapping[str, Any]) -> None:
        """How the switch went for one seed, for the sinks alone: it follows from what the files hold."""
        self._to_sinks(SUMMARY, row)

    def audit(self, row: Mapping[str, Any]) -> None:
        """One audit of one seed."""
        self._log("audit", row)

    def manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace `manifest.json`, whole or not at all."""
        self._local.write_manifest(manifest)

    def positions(self) -> dict[str, int]:
        """Where the local files end, for a checkpoint."""
        return self._local.positions()

    def close(self, status: str) -> None:
        """Close the sinks and the files; a second call does nothing."""
        for sink in list(self._sinks):
            self._guard(sink, lambda sink=sink: sink.close(status))  # type: ignore[misc]
        self._sinks.clear()
        self._local.close(status)

    def _log(self, kind: str, row: Mapping[str, Any]) -> None:
        self._local.log(kind, row)
        self._to_sinks(kind, row)

    def _to_sinks(self, kind: str, row: Mapping[str, Any]) -> None:
        for sink in list(self._sinks):
            self._guard(sink, lambda sink=sink: sink.log(kind, row))  # type: ignore[misc]

    def _guard(self, sink: Sink, call: Callable[[], None]) -> None:
        """Run one call of a sink; where it raises, drop the sink and say so once."""
        try:
            call()
        except Exception as error:
            if sink in self._sinks:
                self._sinks.remove(sink)
            self._warn(_dropped(getattr(sink, "name", type(sink).__name__), error))


def check_sinks(*, wandb: bool, tensorboard: bool, project: str) -> None:
    """Refuse what no sink can be opened for, before anything is written.

    Raises:
        ConfigError: See `open_sinks`.
    """
    if wandb and redacted(project) != project:  # the server and W&B's own log would show it
        raise ConfigError(
            "the name of the W&B project looks like a secret, or holds one; choose another --wandb-project"
        )
    for asked, require in ((wandb, wandb_sink.require), (tensorboard, tensorboard_sink.require)):
        if asked:
            require()


def open_sinks(
    run_dir: Path,
    *,
    name: str,
    config: Mapping[str, Any],
    seeds: Sequence[int],
    wandb: bool = False,
    tensorboard: bool = False,
    project: str = "o2o_smooth",
    group: str | None = None,
    warn: Warn = print,
) -> list[Sink]:
    """Open the sinks that were asked for.

    Args:
        run_dir: The run's folder; what a sink writes locally goes under it.
        name: The run's name in W&B.
        config: The full configuration, for W&B's table of runs.
        seeds: The seeds of the run: a mean over them is logged as soon as all are in.
        wandb: Open Weights & Biases (`WANDB_MODE=offline` works without a network or an account).
        tensorboard: Write TensorBoard's event files.
        project: The W&B project.
        group: Runs with one group are shown together in W&B.
        warn: Takes one line for each sink that could not be opened.

    Raises:
        ConfigError: The package of a sink is not installed; the text names the extra that brings it. Or the project's
            name holds a secret. Nothing has been written then, and no sink was opened.
    """
    check_sinks(wandb=wandb, tensorboard=tensorboard, project=project)

    def open_wandb() -> Sink:
        return TimedSink(wandb_sink.WandbSink(run_dir, name, config, seeds=seeds, project=project, group=group))

    def open_tensorboard() -> Sink:
        return tensorboard_sink.TensorBoardSink(run_dir, name, config, seeds=seeds)

    sinks: list[Sink] = []
    for title, asked, build in (("WandbSink", wandb, open_wandb), ("TensorBoardSink", tensorboard, open_tensorboard)):
        if not asked:
            continue
        try:
            sinks.append(build())
        except Exception as error:
            warn(_dropped(title, error))
    return sinks


def _dropped(name: str, error: Exception) -> str:
    """The one line about a sink that failed."""
    cause = one_line(str(error)) or "no reason given"
    return f"{name} is dropped, the run goes on with its local files: {type(error).__name__}: {cause}"
