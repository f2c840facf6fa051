"""Running several arms of one comparison, each in a process of its own, with one progress display."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.progress import ProgressSink

_POLL_S = 0.2


class _QueueSink:
    """Sends progress to the process that shows it."""

    def __init__(self, messages: Any) -> None:
        self.messages = messages

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""
        self.messages.put(("update", name, done, total, remark))

    def note(self, text: str) -> None:
        """See `ProgressSink`."""
        self.messages.put(("note", text))


def _die_with_parent() -> None:
    """Leave no worker behind, training for nobody, when the process that shows it is killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(config: RunConfig[Any], name: str, messages: Any) -> Path:
    from o2o_smooth.training.run import run

    return run(config, _QueueSink(messages), name=name)


def run_arms(
    arms: Mapping[str, RunConfig[Any]], progress: ProgressSink, *, workers: int | None = None
) -> dict[str, Path]:
    """Run every arm; returns their folders.

    Each arm gets one CPU thread, which is faster than several threads taking turns; as many arms run at once as there
    are cores.

    Raises:
        O2OError: What the first failing arm raised; the others are stopped.
    """
    workers = workers or min(len(arms), os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")  # a fork would copy the learner's threads
    with context.Manager() as manager, _pool(workers, context) as pool:
        messages = manager.Queue()
        futures = {name: pool.submit(_work, config, name, messages) for name, config in arms.items()}
        try:
            while not all(f.done() for f in futures.values()):
                _show(messages, progress)
                _raise_first(futures)
            _show(messages, progress)
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _pool(workers: int, context: BaseContext) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent)


def _show(messages: Any, progress: ProgressSink) -> None:
    while True:
        try:
            kind, *content = messages.get(timeout=_POLL_S)
        except queue.Empty:
            return
        getattr(progress, kind)(*content)


def _raise_first(futures: Mapping[str, Future[Path]]) -> None:
    for future in futures.values():
        if future.done() and (error := future.exception()) is not None:
            raise error
