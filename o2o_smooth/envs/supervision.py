"""What happens when an environment fails: it is made anew, its episode is dropped, and somebody is told.

An environment fails when it raises, when it does not answer in time, or when its process is killed. One failure should
not cost a run of days; one that comes back should end it, and say what it was.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from o2o_smooth.errors import EnvError

DROPPED = "dropped"
"""Key of a vector step's infos: (n,), which environments failed in it. Absent where none did."""
IN_A_ROW = 3
"""Failures of one environment without a finished step between them, after which it is given up."""


@dataclass(frozen=True)
class Supervision:
    """How much of environments' failing is borne."""

    timeout_s: float = 60.0
    """Seconds that an environment in a process of its own may take for a step or a reset; in this process nothing can
    be done about one that hangs."""
    max_restarts: int = 10
    """Restarts of a vector environment, all environments together; one more failure is an error."""
    repeat: bool = False
    """Begin anew with the seed of the latest reset, so that the same episodes come again; else with a seed of the
    restart's own."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s < float("inf"):
            raise EnvError(f"timeout_s is {self.timeout_s}, expected a positive number of seconds")
        if self.max_restarts < 0:
            raise EnvError(f"max_restarts is {self.max_restarts}, expected at least 0")


@dataclass(frozen=True)
class Failure:
    """An environment's failing, before anybody has decided about it."""

    cause: str
    """In one line."""
    trace: str = ""
    """The traceback, where there is one."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What an exception says."""
        text = " ".join(str(error).split())
        name = type(error).__name__
        return cls(f"{name}: {text}" if text else name, "".join(traceback.format_exception(error)))


@dataclass(frozen=True)
class Fault:
    """A failure after which the environment was made anew."""

    env: int
    """Which environment."""
    failure: Failure
    """What it was."""
    restarts: int
    """Restarts of all environments so far, with this one."""
    allowed: int
    """How many there may be."""
    repeated: bool
    """Whether its episodes are played again; else the running one is dropped."""

    @property
    def text(self) -> str:
        """One line for the user."""
        return (
            f"environment {self.env} failed: {self.failure.cause}; it is made anew, "
            f"{'plays its episodes again' if self.repeated else 'its episode is dropped'} "
            f"(restart {self.restarts} of at most {self.allowed})"
        )


class Gone(EnvError):
    """An environment that was asked something outside of a step has no process any more; its next step notices."""


class Supervisor:
    """Counts the failures of a vector environment, and decides about them.

    Args:
        num_envs: How many environments.
        settings: What is borne.
    """

    def __init__(self, num_envs: int, settings: Supervision) -> None:
        self.settings = settings
        self.restarts = np.zeros(num_envs, dtype=np.int64)
        self.seeds: list[int | None] = [None] * num_envs  # of the latest reset that gave any
        self._faults: list[Fault] = []
        self._in_a_row = np.zeros(num_envs, dtype=np.int64)
        self._troubled = False

    def take_faults(self) -> list[Fault]:
        """The faults since the last time."""
        faults, self._faults = self._faults, []
        return faults

    def stepped(self, failed: list[int]) -> None:
        """Take note that all environments but these have finished a step."""
        if self._troubled:
            fine = np.ones(len(self._in_a_row), dtype=np.bool_)
            fine[failed] = False
            self._in_a_row[fine] = 0
            self._troubled = bool(self._in_a_row.any())

    def failed(self, env: int, failure: Failure) -> None:
        """Count a failure; on return the environment is to be made anew.

        Raises:
            EnvError: It is one too many.
        """
        total = int(self.restarts.sum())
        self._in_a_row[env] += 1
        self._troubled = True
        most = self.settings.max_restarts
        said = f"environment {env} failed: {failure.cause}"
        cure = "the environment must be repaired" if failure.trace else "look for what keeps or kills its process"
        if total >= most:
            after = f"after {total} restarts, which is as many as --env-restarts allows" if most else "no restarts"
            raise EnvError(f"{said}; {after}; {cure}{_last_lines(failure)}")
        if self._in_a_row[env] >= IN_A_ROW:
            raise EnvError(f"{said}; {IN_A_ROW} times in a row without a finished step; {cure}{_last_lines(failure)}")
        self.restarts[env] += 1
        self._faults.append(Fault(env, failure, total + 1, most, self.settings.repeat))

    def seed(self, env: int) -> int | None:
        """Seed with which an environment that was made anew begins; of its own seed and restarts alone."""
        own = self.seeds[env]
        if own is None or self.settings.repeat:
            return own
        drawn = np.random.SeedSequence([own, int(self.restarts[env])]).generate_state(1)
        return int(drawn[0]) >> 1

    def state(self, env: int) -> dict[str, int | None]:
        """What must be known to go on counting."""
        return {"seed": self.seeds[env], "restarts": int(self.restarts[env])}

    def set_state(self, env: int, state: dict[str, int | None]) -> None:
        """Go on counting from `state`."""
        self.seeds[env], self.restarts[env] = state["seed"], state["restarts"] or 0
        self._in_a_row[env] = 0


def faults_of(envs: Any) -> list[Fault]:
    """The faults of a vector environment since the last time; none where it is not supervised."""
    supervisor = getattr(envs, "supervisor", None)
    return supervisor.take_faults() if isinstance(supervisor, Supervisor) else []


def _last_lines(failure: Failure) -> str:
    """The place in the code, from the traceback, if there is one."""
    places = [line.strip() for line in failure.trace.splitlines() if line.strip().startswith("File ")]
    return f" ({places[-1]})" if places else ""


def lane_seeds(seed: int | list[int | None] | None, num_envs: int) -> list[int | None]:
    """One seed an environment: a number stands for itself and those that follow it.

    Raises:
        ValueError: The list has another length.
    """
    if seed is None:
        return [None] * num_envs
    if isinstance(seed, int | np.integer):
        return [int(seed) + i for i in range(num_envs)]
    if len(seed) != num_envs:
        raise ValueError(f"{len(seed)} seeds for {num_envs} environments")
    return [None if s is None else int(s) for s in seed]
