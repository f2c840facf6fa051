"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from o2o_smooth.errors import O2OError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to, which becomes `path` when the block succeeds and is gone when it does not.

    Raises:
        O2OError: The folder cannot be written, or the disk is full; what was there before still is.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if temporary.is_symlink():  # not ours: it would be written through
            temporary.unlink()
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise O2OError(f"cannot write {path}: {' '.join(str(error.strerror or error).split())}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
