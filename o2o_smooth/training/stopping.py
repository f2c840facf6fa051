"""Being asked to stop: SIGTERM and Ctrl-C become a request that the training loops look at between two steps.

So nothing is cut in the middle of an update or of a write: the loop keeps a checkpoint and ends. A second Ctrl-C does
not wait for that.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

TERMINATED = 75
"""Exit code after SIGTERM: stopped in good order, to be started again (EX_TEMPFAIL of sysexits.h)."""


class Stopped(Exception):
    """Somebody has asked to stop; raised where work is given up that is done again after resuming."""


class Interrupted(KeyboardInterrupt):
    """A run that was asked to stop has stopped, with a checkpoint.

    Args:
        number: The signal.
        folder: The run's; the first one's where several share a population.
    """

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(f"stopped; go on with: o2o-smooth resume {folder}")
        self.number, self.folder = number, folder

    @property
    def exit_code(self) -> int:
        """Of a command that ends with it."""
        return TERMINATED if self.number == signal.SIGTERM else 128 + signal.SIGINT


class StopRequest:
    """Whether somebody has asked to stop."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that asked, or None."""

    def check(self) -> None:
        """Give up what is being done, if so.

        Raises:
            Stopped: Somebody has asked.
        """
        if self.number is not None:
            raise Stopped


@contextlib.contextmanager
def listening(request: StopRequest, say: Callable[[str], None]) -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C are requests; a second Ctrl-C raises KeyboardInterrupt at once.

    Handlers that a program has put in place itself are left alone, and so are all of them outside of the main thread.

    Args:
        request: Takes them.
        say: Takes a line for the user.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if request.number is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        request.number = number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        say(f"asked to stop: keeping a checkpoint{again}")

    before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
