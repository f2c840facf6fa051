"""As a script: reads hostile files one after another, and tells of each how it ended and what memory it took."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from o2o_smooth.agents.storage import load_agent
from o2o_smooth.data import read_path
from o2o_smooth.data.extent import _of_npz
from o2o_smooth.data.policies import ArrayPolicy
from o2o_smooth.data.rollout import read_recordings
from o2o_smooth.errors import O2OError
from o2o_smooth.stability.csv_curves import read_csv_curves
from o2o_smooth.stability.curves import read_curves
from o2o_smooth.training.config import read_toml
from o2o_smooth.training.pictures import read_manifest

READERS: dict[str, Callable[[Path], object]] = {
    "agent": load_agent,
    "dataset": read_path,
    "extent": _of_npz,
    "policy": ArrayPolicy,
    "recordings": read_recordings,
    "csv": read_csv_curves,
    "curves": read_curves,
    "toml": read_toml,
    "manifest": read_manifest,
}


def peak_mib() -> int:
    """The most memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def main() -> None:
    """Read JSON [[reader, path], ...] from stdin; write [[how, MiB], ...]."""
    told = []
    for reader, path in json.load(sys.stdin):
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = peak_mib()
        try:
            READERS[reader](Path(path))
            how = "read"
        except O2OError as error:
            how = f"refused: {error}"
        except BaseException as error:
            how = f"escaped: {error!r}"
        told.append([how[:500], peak_mib() - before])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
