"""Files that appear whole or not at all, and that are known again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from o2o_smooth.errors import CheckpointError, O2OError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which becomes `path` when the block succeeds and is gone when it does not.

    Raises:
        O2OError: The folder cannot be written, or the disk is full; what was there before still is.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise O2OError(f"cannot write {path}: {' '.join(str(error.strerror or error).split())}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Bring a file, or a folder's list of files, to the disk."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe_file(file: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with file.open("rb") as content:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}


def verify_file(file: Path, expected: Any) -> None:
    """Check a file against what `describe_file` said of it.

    Raises:
        CheckpointError: It is absent or has other contents.
    """
    try:
        size, digest = int(expected["bytes"]), str(expected["sha256"])
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} is broken: it has {file.stat().st_size:,} bytes, and had {size:,}")
        if describe_file(file)["sha256"] != digest:
            raise CheckpointError(f"{file} is broken: its contents are not those that were written (SHA-256)")
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from None
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"nothing says what {file} should be: its size and SHA-256 are missing") from None
