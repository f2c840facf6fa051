"""One process that builds configurations of one implementation and times slices of them on request.

It needs the standard library alone, so that it also runs in an interpreter without this package:

    python speed_worker.py TARGET        TARGET: a module, or a file, with make(configuration) -> advance

`advance(n)` does at least n updates, waits until they are finished and returns how many they were. Requests come on
standard input and answers go to standard output, one JSON object a line:

    {"do": "build", "name": N, "configuration": {...}}  ->  {"first_update_s": s}
    {"do": "slice", "name": N, "seconds": s}            ->  {"updates": n, "seconds": s}
    {"do": "drop", "name": N}                           ->  {}

A request that fails is answered by {"error": text}; the process goes on.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Advance = Callable[[int], int]
SETTLE_S = 0.03  # before a slice: threads that wait by spinning, of whoever worked before, have gone to sleep by then
SMALLEST_SLICE = 2  # updates: where the actor moves every second one, both kinds are in every slice


def load(target: str) -> Callable[[dict[str, Any]], Advance]:
    """The function `make` of a module or file."""
    if target.endswith(".py"):
        make: Callable[[dict[str, Any]], Advance] = runpy.run_path(target)["make"]
        return make
    module: Any = importlib.import_module(target)
    return module.make  # type: ignore[no-any-return]


class Bench:
    """The configurations that a process has built.

    Args:
        make: Builds one.
    """

    def __init__(self, make: Callable[[dict[str, Any]], Advance]) -> None:
        self.make = make
        self._advance: dict[str, Advance] = {}
        self._rate: dict[str, float] = {}  # updates per second so far

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what one request asks."""
        name = str(request["name"])
        if request["do"] == "build":
            return self.build(name, request["configuration"])
        if request["do"] == "slice":
            return self.slice(name, float(request["seconds"]))
        if request["do"] == "drop":
            self._advance.pop(name, None)
            return {}
        raise ValueError(f"there is no request {request['do']!r}")

    def build(self, name: str, configuration: dict[str, Any]) -> dict[str, Any]:
        """Build a configuration and warm it up; times from nothing to the end of the first update."""
        begin = time.perf_counter()
        advance = self.make(configuration)
        advance(1)
        first_update_s = time.perf_counter() - begin
        begin = time.perf_counter()
        done = advance(SMALLEST_SLICE)
        if time.perf_counter() - begin < 1.0:
            begin = time.perf_counter()
            done = advance(SMALLEST_SLICE)
        self._rate[name] = done / max(time.perf_counter() - begin, 1e-9)
        self._advance[name] = advance
        return {"first_update_s": first_update_s}

    def slice(self, name: str, seconds: float) -> dict[str, Any]:
        """Updates for about `seconds`, at least `SMALLEST_SLICE`."""
        advance, done, elapsed = self._advance[name], 0, 0.0
        time.sleep(SETTLE_S)
        self._advance[name](SMALLEST_SLICE)  # caches and threads are those of whoever worked before
        begin = time.perf_counter()
        while elapsed < 0.9 * seconds:
            done += advance(max(SMALLEST_SLICE, int((seconds - elapsed) * self._rate[name])))
            elapsed = time.perf_counter() - begin
            self._rate[name] = done / elapsed
        return {"updates": done, "seconds": elapsed}


def serve(make: Callable[[dict[str, Any]], Advance], requests: TextIO, answers: TextIO) -> None:
    """Answer requests until they end."""
    bench = Bench(make)
    for line in requests:
        try:
            answer = bench.answer(json.loads(line))
        except Exception as error:  # whatever a library raises belongs to this request alone
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    """Serve the target named on the command line."""
    here = str(Path(__file__).parent)
    if sys.path and sys.path[0] == here:  # run as a file: its neighbours are no top-level modules
        del sys.path[0]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    begin = time.perf_counter()
    make = load(sys.argv[1])
    answers.write(json.dumps({"import_s": time.perf_counter() - begin}) + "\n")
    answers.flush()
    serve(make, sys.stdin, answers)


if __name__ == "__main__":
    main()
