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

from gymnasium.vector import AsyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from o2o_smooth.envs.pool import PoolVectorEnv

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
    if not overlap:
        return InTurn(envs)
    if isinstance(envs, AsyncVectorEnv | PoolVectorEnv) and not thread:
        return Background(envs)
    return Threaded(envs)


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


class Background:
    """Leaves the step to the environments' own processes or threads."""

    def __init__(self, envs: AsyncVectorEnv[Any, Any] | PoolVectorEnv) -> None:
        self.envs = envs
        self._pending = False

    def start(self, actions: Actions) -> None:
        """See `Stepper`."""
        self.envs.step_async(actions() if callable(actions) else actions)
        self._pending = True

    def wait(self) -> Result:
        """See `Stepper`."""
        result = self.envs.step_wait()
        self._pending = False
        return result

    def close(self) -> None:
        """See `Stepper`."""
        broken = False
        if self._pending:
            try:
                self.envs.step_wait()
            except (Exception, KeyboardInterrupt):  # told already; or the processes saw the same Ctrl-C
                broken = True
        self.envs.close(terminate=broken)


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
        with contextlib.suppress(KeyboardInterrupt):  # one step; a second Ctrl-C does not wait for it
            self._thread.join()
        self.envs.close()
