"""Where jobs run: processes of this machine, a Ray cluster, Slurm; all behind `Launcher`."""

from o2o_smooth.benchmarks.launchers.base import Ended, Job, Launcher, Outcome
from o2o_smooth.benchmarks.launchers.choose import make_launcher

__all__ = ["Ended", "Job", "Launcher", "Outcome", "make_launcher"]
