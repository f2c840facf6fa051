"""Several runs as the members of one batched learner: schedules, ramp lengths and settings side by side.

Each run writes the folder that it would have written alone, with the same numbers up to float rounding: members draw by
their seed, so the same seed in two runs sees the same data, noise and environments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.prepare import default_out, prepare_population
from o2o_smooth.training.progress import ProgressSink, Silent
from o2o_smooth.training.rollback import going_on
from o2o_smooth.training.run import Run
from o2o_smooth.training.sharing import groups
from o2o_smooth.training.threads import set_threads


def run_population(
    configs: Sequence[RunConfig[Any]],
    progress: ProgressSink | None = None,
    *,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Do several runs at once, as one population for all that can share a learner.

    Runs can share one if they agree on everything but their seeds, their weight curves and ramp lengths, and the
    settings in `agents.settings.PER_MEMBER`. Others run in populations of their own, one after the other; the progress
    display is told why. Without `pretrained`, a seed is pretrained once for all runs that do not differ before the
    switch.

    Args:
        configs: The runs; each with an `out` of its own.
        progress: Where progress goes; default: nowhere.
        names: What the display calls them.

    Returns:
        The folders, in the order of the configs.

    Raises:
        O2OError: Something that the user can put right.
        Diverged: A run diverged; the others of its population end with it, as interrupted.
    """
    progress = progress or Silent()
    found = groups(configs, names)
    folders: dict[int, Path] = {}
    for group in found:
        if group.reason:
            progress.note(f"{group.reason}; it gets a population of its own")
        own = [configs[i] for i in group.indices]
        set_threads(own[0], sum(len(config.seeds) for config in own))
        called = None if names is None else [names[i] for i in group.indices]
        home = Path(own[0].out) if own[0].out is not None else default_out(own[0])

        def attempt(own: list[RunConfig[Any]] = own, called: list[str] | None = called) -> list[Path]:
            return Run(prepare_population(own, progress, called), progress).do()

        folders |= dict(zip(group.indices, going_on(attempt, home, own[0], progress), strict=True))
    return [folders[i] for i in range(len(configs))]
