"""A sink that cannot hold a run up for long: it is served in a thread of its own, and given up when it falls silent."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from o2o_smooth.training.tracking import Sink

LOG_S = 30.0  # for one row
CLOSE_S = 330.0  # for the end: a little more than W&B gives itself


class TimedSink:
    """Hands rows to a sink and waits for it, but not for ever; a silent one is left behind with its thread.

    Args:
        sink: Who gets the rows.
        log_s: Seconds for a row.
        close_s: Seconds for the end.
    """

    def __init__(self, sink: Sink, *, log_s: float = LOG_S, close_s: float = CLOSE_S) -> None:
        self.name = type(sink).__name__
        self._sink, self._log_s, self._close_s = sink, log_s, close_s
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name=f"o2o-smooth {self.name}", daemon=True)
        self._thread.start()

    def log(self, kind: str, row: Mapping[str, Any]) -> None:
        """See `Sink`.

        Raises:
            TimeoutError: The sink has not taken the row in time; it must not be called again.
        """
        kept = dict(row)
        self._do(lambda: self._sink.log(kind, kept), self._log_s)

    def close(self, status: str) -> None:
        """See `Sink`.

        Raises:
            TimeoutError: The sink has not come to an end in time.
        """
        try:
            self._do(lambda: self._sink.close(status), self._close_s)
        finally:
            self._calls.put(None)

    def _do(self, call: Callable[[], None], patience: float) -> None:
        self._done.clear()
        self._calls.put(call)
        if not self._done.wait(patience):
            self._calls.put(None)
            raise TimeoutError(f"no answer for {patience:g} s; what it has not got is in the files")
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # raised where the call was asked for
                self._error = error
            self._done.set()
