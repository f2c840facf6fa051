"""What is asked of an HDF5 file before it is believed; as a script, a reader whose death hurts nobody.

The HDF5 library can crash or hang on a damaged file. So a file is read once by a process of its own (this module as a
script: it needs numpy and h5py alone and starts in a moment), and only what survived that is read by ours.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

CACHE_BYTES = 64 * 2**20  # of decompressed chunks; h5py's own 1 MiB would decompress large ones again and again
SLICE_ROWS = 65_536
LARGEST_RATIO = 1100
"""Deflate cannot do better than 1032 : 1; who claims more lies about the size."""
LARGEST_CHUNK = 2**30
SLOWEST = 4 * 2**20  # bytes of a file per second; a reader that needs longer hangs
LEAST_S = 30.0
_BUILT_IN = (*range(1, 7), 32000)  # deflate, shuffle, fletcher32, szip, nbit, scale-offset; h5py brings lzf
_survived: set[tuple[str, int, int]] = set()


class Suspect(ValueError):
    """Something in the file is not what a dataset of numbers is made of."""


def plain(group: Any, name: str) -> Any:
    """A dataset of numbers that lies in this very file; None where there is none of the name.

    Raises:
        Suspect: It is something else, or its size cannot be true.
    """
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise Suspect(f"{name} is a link, which is not followed")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise Suspect(f"{name} is a {type(found).__name__.lower()}, expected a dataset")
    if found.external or found.is_virtual:
        raise Suspect(f"{name} is kept in another file, which is not read")
    if found.dtype.kind not in "bfiu" or found.dtype.hasobject or found.dtype.itemsize > 8:
        raise Suspect(f"{name} has dtype {found.dtype}, expected numbers")
    properties = found.id.get_create_plist()
    for i in range(properties.get_nfilters()):
        code = properties.get_filter(i)[0]
        if code not in _BUILT_IN:
            raise Suspect(f"{name} is compressed by filter {code}, which is not built in")
    stored = found.id.get_storage_size()
    if found.size and found.nbytes > LARGEST_RATIO * stored:
        raise Suspect(f"{name} claims shape {found.shape}, but only {stored:,} bytes of it are stored")
    if stored > Path(group.file.filename).stat().st_size:
        raise Suspect(f"{name} claims {stored:,} stored bytes, more than the file has: it is truncated")
    if found.chunks and np.prod(found.chunks, dtype=np.float64) * found.dtype.itemsize > LARGEST_CHUNK:
        raise Suspect(f"{name} is stored in chunks of {found.chunks}, which are too large to read")
    return found


def slice_rows(column: Any) -> int:
    """Rows to read at a time: whole chunks of the file, so that none is decompressed twice."""
    chunks = getattr(column, "chunks", None)
    return SLICE_ROWS if not chunks else int(max(chunks[0], SLICE_ROWS // chunks[0] * chunks[0]))


def survives(path: Path) -> str | None:
    """Have the file read by a process of its own; what became of that process, None where all went well."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key in _survived:
        return None
    limit = LEAST_S + stat.st_size / SLOWEST
    command = [sys.executable, "-I", __file__, str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"reading it does not end within {limit:.0f} s"
    if done.returncode < 0:
        return f"the HDF5 library crashes on it, signal {-done.returncode}"
    _survived.add(key)
    return None


def _read(node: Any, depth: int = 0) -> None:
    """Read every dataset of numbers, as the sources do."""
    for name in ("goal",) if depth == 1 and node.name == "/infos" else node:
        link = node.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or name == "metadata" or (name == "infos" and depth > 0):
            continue  # nobody reads these
        if isinstance(node[name], h5py.Group):
            if depth < 8:
                _read(node[name], depth + 1)
            continue
        with contextlib.suppress(Exception):  # one bad dataset is not all; who reads it says what is wrong
            column = plain(node, name)
            if column.ndim == 0:
                column[()]
                continue
            rows = slice_rows(column)
            for i in range(0, column.shape[0], rows):
                column[i : i + rows]


if __name__ == "__main__":
    with (
        contextlib.suppress(Exception),  # an error is for our own process to find and to explain
        h5py.File(sys.argv[1], "r", rdcc_nbytes=CACHE_BYTES, locking=False) as opened,
    ):
        dict(opened.attrs)
        _read(opened)
