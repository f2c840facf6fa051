"""Stepping a vector environment while the caller does something else.

Every stepper takes one step at a time: `start` gives the actions, `wait` brings the result. Which one is used changes
when the work is done and by whom, never the result; an environment's error is raised by `wait`, whoever met it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from o2o_smooth.envs.pool import PoolVectorEnv
from o2o_smooth.envs.workers import WorkerVectorEnv

Actions = NDArray[Any] | Callable[[], NDArray[Any]]  # or what brings them, where they come from another device
Result = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]  # as of `VectorEnv.step`
Vector = VectorEnv[Any, Any, Any]


class Stepper(Protocol):
    """Takes vector steps, one at a time."""

    def start(self, actions: Actions) -> None:
        """Begin a step; the actions must stay as they are until `wait` has returned."""

    def wait(self) -> Result:
        """Finish the step."""

    def close(self) -> None:
        """Close the environments, also in the middle of a step."""


def make_stepper(envs: Vector, *, overlap: bool, thread: bool = False) -> Stepper:
    """Choose a stepper.

    Args:
        envs: The environments.
        overlap: Step while the caller goes on; otherwise in `wait`.
        thread: Wait for the actions in a thread too; needed where they come from a device that is still busy.
    """
    if overlap and (thread or not isinstance(envs, WorkerVectorEnv | PoolVectorEnv)):
        return Threaded(envs)
    return Elsewhere(envs, overlap) if isinstance(envs, WorkerVectorEnv | PoolVectorEnv) else InTurn(envs)


class InTurn:
    """Steps in `wait`, in the caller's thread."""

    def __init__(self, envs: Vector) -> None:
        self.envs = envs
        self._actions: Actions | None = None

    def start(self, actions: Actions) -> None:
        """See `Stepper`."""
        self._actions = actions

    def wait(self) -> Result:
        """See `Stepper`."""
        actions, self._actions = self._actions, None
        if actions is None:
            raise RuntimeError("wait() without start()")
        return self.envs.step(actions() if callable(actions) else actions)

    def close(self) -> None:
        """See `Stepper`."""
        self.envs.close()


class Elsewhere:
    """Leaves the step to the environments' own processes or threads, from `start` on or, without overlap, in `wait`."""

    def __init__(self, envs: WorkerVectorEnv | PoolVectorEnv, overlap: bool) -> None:
        self.envs, self.overlap = envs, overlap
        self._actions: Actions | None = None
        self._stepping = False

    def start(self, actions: Actions) -> None:
        """See `Stepper`."""
        self._actions = actions
        if self.overlap:
            self._begin()

    def _begin(self) -> None:
        actions, self._actions = self._actions, None
        if actions is None:
            raise RuntimeError("wait() without start()")
        self.envs.step_async(actions() if callable(actions) else actions)
        self._stepping = True

    def wait(self) -> Result:
        """See `Stepper`."""
        if not self._stepping:
            self._begin()
        self._stepping = False  # interrupted in the next line, nobody must wait again: nothing more may come
        return self.envs.step_wait()

    def close(self) -> None:
        """See `Stepper`."""
        if self._stepping and isinstance(self.envs, PoolVectorEnv):  # its threads cannot be left alone
            with contextlib.suppress(Exception, KeyboardInterrupt):  # told already; or a second Ctrl-C
                self.wait()
        self.envs.close()


class Threaded:
    """Steps in a thread of its own. Simulators release Python's lock while they compute, and so does the learner."""

    def __init__(self, envs: Vector) -> None:
        self.envs = envs
        self._orders: SimpleQueue[Actions | None] = SimpleQueue()
        self._results: SimpleQueue[Result | BaseException] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="o2o-smooth-envs", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (actions := self._orders.get()) is not None:
            try:
                self._results.put(self.envs.step(actions() if callable(actions) else actions))
            except BaseException as error:
                self._results.put(error)

    def start(self, actions: Actions) -> None:
        """See `Stepper`."""
        self._orders.put(actions)

    def wait(self) -> Result:
        """See `Stepper`."""
        result = self._results.get()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        """See `Stepper`."""
        self._orders.put(None)
        with contextlib.suppress(KeyboardInterrupt):  # a step takes a moment; a second Ctrl-C does not wait for it
            self._thread.join()
            self.envs.close()
