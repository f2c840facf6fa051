"""Running several arms of one comparison, as one population or in processes, with one progress display."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from o2o_smooth.benchmarks.placement import Placement, Population, place
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.population import run_population
from o2o_smooth.training.progress import ProgressSink

_POLL_S = 0.2
_EVERY_S = 0.1  # between two messages about the same task
_GRACE_S = 5.0  # for an interrupted arm to write down that it was interrupted


class _QueueSink:
    """Sends progress to the process that shows it."""

    def __init__(self, messages: Any) -> None:
        self.messages = messages
        self._last: dict[str, float] = {}

    def update(self, name: str, done: int, total: int, remark: str = "") -> None:
        """See `ProgressSink`."""
        now = time.monotonic()
        if done < total and now - self._last.get(name, 0.0) < _EVERY_S:
            return
        self._last[name] = now
        self.messages.put(("update", name, done, total, remark))

    def note(self, text: str) -> None:
        """See `ProgressSink`."""
        self.messages.put(("note", text))


_messages: Any = None  # of a worker process


def _begin(messages: Any) -> None:
    """In a worker: end properly on SIGTERM, and leave nothing training for nobody when the parent is killed."""
    global _messages
    _messages = messages
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(configs: Sequence[RunConfig[Any]], names: Sequence[str]) -> list[Path]:
    return run_population(configs, _QueueSink(_messages), names=names)


def run_arms(
    arms: Mapping[str, RunConfig[Any]],
    progress: ProgressSink,
    *,
    population: Population = "auto",
    workers: int | None = None,
) -> dict[str, Path]:
    """Run every arm; returns their folders.

    Args:
        arms: The arms by name.
        progress: Where progress goes; it is told what was chosen and why.
        population: `stack`: one batched learner for all arms that can share one. `processes`: as many at once as there
            are cores, one thread each, which is faster than several threads taking turns. `auto`: see `place`.
        workers: Cores to use; default: all that there are.

    Raises:
        O2OError: What the first failing arm raised; the others are stopped.
    """
    configs = list(arms.values())
    placement = place(configs, how=population, cpus=workers)
    if len(configs) > 1:
        progress.note(placement.why)
    if placement.how == "stack":
        return dict(zip(arms, run_population(configs, progress, names=list(arms)), strict=True))
    return _in_processes(arms, placement, progress)


def _in_processes(arms: Mapping[str, RunConfig[Any]], placement: Placement, progress: ProgressSink) -> dict[str, Path]:
    names = list(arms)
    jobs = [[names[i] for i in job] for job in placement.jobs]
    context = multiprocessing.get_context("spawn")  # a fork would copy the learner's threads
    messages = context.Queue()
    with ProcessPoolExecutor(placement.workers, mp_context=context, initializer=_begin, initargs=(messages,)) as pool:
        futures = [
            pool.submit(_work, [dataclasses.replace(arms[n], threads=arms[n].threads or 1) for n in job], job)
            for job in jobs
        ]
        try:
            while not all(f.done() for f in futures):
                _show(messages, progress)
                for future in futures:
                    if future.done():
                        future.result()  # raises what the arm raised
            _show(messages, progress)
            done = zip(jobs, futures, strict=True)
            folders = {name: out for job, f in done for name, out in zip(job, f.result(), strict=True)}
            return {name: folders[name] for name in names}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes = multiprocessing.active_children()
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + _GRACE_S
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
                process.kill()
            raise


def _show(messages: Any, progress: ProgressSink) -> None:
    """Pass on what has come, waiting a moment for the first."""
    timeout = _POLL_S
    while True:
        try:
            kind, *content = messages.get(timeout=timeout)
        except queue.Empty:
            return
        getattr(progress, kind)(*content)
        timeout = 0.0
