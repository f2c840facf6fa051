"""What is asked of an HDF5 file before it is believed; as a script, a reader whose death hurts nobody.

The HDF5 library can crash or hang on a damaged file. So a file is read once by a process of its own (this module as a
script: it needs numpy and h5py alone and starts in a moment), and only what survived that is read by ours.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py

CACHE_BYTES = 4 * 2**20  # of decompressed chunks, for every column: slices are whole chunks, so few are read twice
SLICE_ROWS = 65_536
SLICE_BYTES = 64 * 2**20
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
    label = " ".join(f"{group.name}/{name}".strip("/").split())
    if not isinstance(link, h5py.HardLink):
        raise Suspect(f"{label} is a link, which is not followed")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise Suspect(f"{label} is a {type(found).__name__.lower()}, expected a dataset")
    if found.external or found.is_virtual:
        raise Suspect(f"{label} is kept in another file, which is not read")
    if found.dtype.kind not in "bfiu" or found.dtype.hasobject or found.dtype.itemsize > 8:
        raise Suspect(f"{label} has dtype {found.dtype}, expected numbers")
    if found.shape is None:
        raise Suspect(f"{label} is empty, expected rows")
    properties = found.id.get_create_plist()
    for i in range(properties.get_nfilters()):
        code = properties.get_filter(i)[0]
        if code not in _BUILT_IN:
            raise Suspect(f"{label} is compressed by filter {code}, which is not built in")
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > LARGEST_CHUNK:
        raise Suspect(f"{label} is stored in chunks of {found.chunks}, which are too large to read")
    _check_stored(label, found, compressed=properties.get_nfilters() > 0)
    return found


def _check_stored(label: str, found: Any, *, compressed: bool) -> None:
    """What a dataset claims must lie in the file: h5py would read as zeros what was never written."""
    stored = found.id.get_storage_size()
    claimed = math.prod(found.shape) * found.dtype.itemsize  # found.nbytes overflows
    if claimed > stored * (LARGEST_RATIO if compressed else 1):
        raise Suspect(f"{label} claims shape {found.shape}, but only {stored:,} bytes of it are stored")
    if stored > Path(found.file.filename).stat().st_size:
        raise Suspect(f"{label} claims {stored:,} stored bytes, more than the file has: it is truncated")
    if found.chunks and claimed:
        parts = math.prod(-(-rows // chunk) for rows, chunk in zip(found.shape, found.chunks, strict=True))
        if found.id.get_num_chunks() != parts:
            raise Suspect(f"{label} has {found.id.get_num_chunks():,} of {parts:,} chunks: it was never written whole")


def slice_rows(column: Any) -> int:
    """Rows to read at a time: whole chunks of the file, so that none is decompressed twice."""
    size: int = max(1, math.prod(column.shape[1:]) * column.dtype.itemsize)
    most: int = max(1, min(SLICE_ROWS, SLICE_BYTES // size))
    chunks = getattr(column, "chunks", None)
    if not chunks:
        return most
    whole: int = max(chunks[0], most // chunks[0] * chunks[0])
    return most if whole * size > LARGEST_CHUNK else whole


def survives(path: Path) -> str | None:
    """Have the file read by a process of its own; what became of that process, None where all went well."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
    if key in _survived:
        return None
    limit = LEAST_S + stat.st_size / SLOWEST
    command = [sys.executable, "-P", __file__, str(path)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"reading it does not end within {limit:.0f} s"
    if done.returncode < 0:
        return f"the HDF5 library crashes on it, signal {-done.returncode}"
    if done.returncode > 0:
        words = done.stderr.decode(errors="replace").split("\n")
        return " ".join(next((line for line in reversed(words) if line.strip()), "the reader fails").split())
    _survived.add(key)
    return None


def read(path: str) -> None:
    """Read every dataset of numbers, as the sources do; an error is for our own process to find and to explain."""
    with contextlib.suppress(Exception), h5py.File(path, "r", rdcc_nbytes=CACHE_BYTES, locking=False) as file:
        _read(file)


def _read(file: Any) -> None:
    _read_attributes(file)
    groups, seen = [file], {_address(file)}  # hard links can make loops
    while groups:
        node = groups.pop()
        at_root = node.name == "/"
        try:
            names = list(node)
        except Exception as error:
            sys.exit(f"the table of contents of {node.name} is damaged, {type(error).__name__}: {error}")
        for name in names:
            with contextlib.suppress(Exception):  # one bad dataset is not all; who reads it says what is wrong
                if name == "metadata" or not isinstance(node.get(name, getlink=True), h5py.HardLink):
                    continue
                found = node[name]
                if name == "infos":  # nobody reads the others
                    _read_rows(plain(found, "goal") if at_root else None)
                    continue
                if _address(found) in seen:
                    continue
                seen.add(_address(found))
                if isinstance(found, h5py.Group):
                    groups.append(found)
                else:
                    _read_rows(plain(node, name))


def _address(node: Any) -> int:
    return int(h5py.h5o.get_info(node.id).addr)


def _read_attributes(file: Any) -> None:
    with contextlib.suppress(Exception):
        for name in file.attrs:
            if file.attrs.get_id(name).dtype.kind == "S":  # the others are nobody's concern
                file.attrs[name]


def _read_rows(column: Any) -> None:
    if column is None:
        return
    if column.ndim == 0:
        column[()]
        return
    rows = slice_rows(column)
    for i in range(0, column.shape[0], rows):
        column[i : i + rows]


if __name__ == "__main__":
    read(sys.argv[1])
