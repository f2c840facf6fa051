"""Fetching Minari datasets, or saying in one line why that cannot be and what to do."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import minari

from o2o_smooth.data.installed import minari_root, staged
from o2o_smooth.errors import DataError

PROBE_S = 5.0
_REPORT_S = 1.0

Report = Callable[[int], None]  # bytes that have arrived


def download(dataset_id: str, *, report: Report | None = None, log: Callable[[str], None] | None = None) -> None:
    """Fetch a dataset with Minari into the user's Minari folder, whole or not at all.

    Args:
        dataset_id: Of Minari's server, or of the remote that MINARI_REMOTE names.
        report: Called about every second with the bytes that have arrived.
        log: Called with a line for people when it begins.

    Raises:
        DataError: There is no network, no such set, or no client library; the text names the cures.
    """
    hindrance = _hindrance()
    if hindrance is None:
        if log is not None:
            log(f"downloading {dataset_id}")
        try:
            with staged(dataset_id) as folder, _watched(folder, report), contextlib.redirect_stdout(io.StringIO()):
                minari.download_dataset(dataset_id)
        except Exception as error:  # whatever the network, the server or its client library raises
            hindrance = " ".join(str(error).split()) or type(error).__name__
        else:
            return
    raise DataError(
        f"dataset {dataset_id} is not installed in {minari_root()} and cannot be downloaded ({hindrance}): run "
        f"`minari download {dataset_id}` where there is a network, point MINARI_DATASETS_PATH at a folder that has it, "
        f"or name another one with --dataset ID"
    )


@contextlib.contextmanager
def _watched(folder: Path, report: Report | None) -> Iterator[None]:
    """Tell how much has arrived; Minari's own bars are for a terminal that is ours alone."""
    if report is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_REPORT_S):
            report(_size(folder))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        report(_size(folder))


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # files come and go while they are fetched
            total += file.stat().st_size if file.is_file() else 0
    return total


def _hindrance() -> str | None:
    """What stands in the way of a download; None where the server answers."""
    remote = os.environ.get("MINARI_REMOTE", "hf://farama-minari")
    if remote.startswith("hf://"):
        if importlib.util.find_spec("huggingface_hub") is None:
            return "downloading needs huggingface_hub: pip install 'o2o_smooth[download]'"
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            return "HF_HUB_OFFLINE is set"
        url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    else:
        url = "https://storage.googleapis.com"
    return None if _answers(url) else f"no answer from {url}, is there a network?"


def _answers(url: str) -> bool:
    """Whether a server answers within seconds; in a thread, since a name look-up has no time limit of its own."""
    answered = threading.Event()

    def probe() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_S).close()
        except urllib.error.HTTPError:
            pass  # an answer, if not a kind one
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    deadline = time.monotonic() + PROBE_S + 1.0
    while thread.is_alive() and not answered.is_set() and time.monotonic() < deadline:
        thread.join(0.1)
    return answered.is_set()
