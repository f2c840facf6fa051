"""The run's own files: `evaluations.jsonl`, `metrics.jsonl` and `manifest.json`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from o2o_smooth.errors import O2OError

FILES = {"evaluation": "evaluations.jsonl", "metrics": "metrics.jsonl", "audit": "audit.jsonl"}
OPENED_LATER = ("audit",)  # with the first row
MANIFEST = "manifest.json"


class LocalFiles:
    """Appends a JSON line a row, unbuffered, and replaces the manifest as a whole.

    A run that goes on in its folder appends. If the last write there was cut (no newline at the end), the torn line is
    taken away first, so that the next row does not grow onto it.

    Args:
        run_dir: The run's folder; made where it does not exist.
        positions: From `positions`, of a run that goes on from a checkpoint: what was written after it is taken away.

    Raises:
        O2OError: The folder or a file cannot be written.
    """

    def __init__(self, run_dir: Path, positions: Mapping[str, int] | None = None) -> None:
        self.run_dir = Path(run_dir)
        self._files: dict[str, FileIO] = {}
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if positions is not None:
                self._take_back(positions)
            for kind in FILES:
                if kind not in OPENED_LATER:
                    self._open(kind)
        except OSError as error:
            self.close("failed")
            raise O2OError(f"the run folder {self.run_dir} cannot be written: {error}") from error

    def _open(self, kind: str) -> FileIO:
        file = self._files[kind] = _open_for_append(self.run_dir / FILES[kind])
        return file

    def _take_back(self, positions: Mapping[str, int]) -> None:
        for kind, name in FILES.items():
            path, end = self.run_dir / name, int(positions.get(kind, 0))
            if end == 0 and kind in OPENED_LATER:
                path.unlink(missing_ok=True)
            elif path.exists() or end:
                with path.open("rb+") as file:
                    file.truncate(end)

    def positions(self) -> dict[str, int]:
        """Bytes in each file so far; they are on the disk when this returns."""
        found = {}
        for kind, name in FILES.items():
            if file := self._files.get(kind):
                os.fsync(file.fileno())
            path = self.run_dir / name
            found[kind] = path.stat().st_size if path.exists() else 0
        return found

    def log(self, kind: str, row: Mapping[str, Any]) -> None:
        """Append one row to the file of its kind, "evaluation", "metrics" or "audit"; NaN and infinity become null.

        Raises:
            O2OError: The row cannot be written, or holds something that is no plain value.
        """
        file = self._files.get(kind)
        if file is None and not (self._files and kind in OPENED_LATER):
            raise O2OError(f"no open file for rows of kind {kind!r} in {self.run_dir}")
        line = json.dumps(plain(row), allow_nan=False) + "\n"
        try:
            file = file or self._open(kind)
            rest = memoryview(line.encode())
            while rest:  # a write to a file without a buffer may take a part only
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise O2OError(f"{self.run_dir / FILES[kind]} cannot be written: {error}") from error

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace `manifest.json`; a reader sees the old one or the new one, also after a power cut.

        Raises:
            O2OError: The file cannot be written, or the manifest holds something that is no plain value.
        """
        path = self.run_dir / MANIFEST
        text = json.dumps(plain(manifest), allow_nan=False, indent=2) + "\n"
        temporary = path.with_name(f".{MANIFEST}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _fsync_folder(self.run_dir)
        except OSError as error:
            raise O2OError(f"{path} cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def close(self, status: str) -> None:
        """Close the files; `status` belongs in the manifest, which the run writes itself."""
        del status
        for file in self._files.values():
            file.close()
        self._files.clear()


def plain(value: Any) -> Any:
    """The value in what JSON knows: numpy and torch become numbers and lists, paths text, NaN and infinity null.

    Raises:
        O2OError: The value, or one inside it, is none of these.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if callable(getattr(value, "tolist", None)):
        return plain(value.tolist())
    raise O2OError(f"{value!r} ({type(value).__name__}) cannot be written to a run's files")


def _open_for_append(path: Path) -> FileIO:
    """The file, open at the end of its last whole line."""
    if path.exists() and path.stat().st_size > 0:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
    return path.open("ab", buffering=0)


def _fsync_folder(folder: Path) -> None:
    """Make a rename lasting, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
