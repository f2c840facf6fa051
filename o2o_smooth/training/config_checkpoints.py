"""Settings of the checkpoints that a run goes on from when it was stopped."""

from __future__ import annotations

from dataclasses import dataclass

from o2o_smooth.errors import ConfigError


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept so that a run can be stopped anywhere and go on as if it had not been."""

    save_checkpoints: bool = True
    """Keep what `o2o-smooth resume` needs, in the run's folder under resume/, until the run is complete."""
    checkpoint_every: float = 300.0
    """Seconds between checkpoints. There is one at the switch, at the end of pretraining and when the run is asked to
    stop in any case. Results do not depend on it. Where writing takes long, they are as far apart as keeps it below 2 %
    of the time; not so below 1 s, which is for tests (0: at every step)."""
    keep_checkpoints: int = 2
    """How many of the newest are kept."""
    keep_best: bool = True
    """Keep the agent of the best online evaluation (mean over the run's seeds) in checkpoints/best."""
    auto_resume: bool = False
    """Where the output folder holds a run of the same settings: go on with it, or do nothing if it is complete; start
    it if there is none. For jobs that are started again, as by Slurm's --requeue."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.checkpoint_every < float("inf"):
            raise ConfigError(
                f"checkpoint_every must be a number of seconds, not negative, got {self.checkpoint_every}"
            )
        if self.keep_checkpoints < 1:
            raise ConfigError(f"keep_checkpoints must be at least 1, got {self.keep_checkpoints}")
