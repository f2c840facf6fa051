"""Where jobs run: processes of this machine, a Ray cluster, Slurm; all behind `Launcher`."""

from o2o_smooth.benchmarks.launchers.base import Ended, Job, Launcher, Outcome

__all__ = ["Ended", "Job", "Launcher", "Outcome"]
