"""A file that HDF5 can write to on a full disk without taking the process with it."""

from __future__ import annotations

from typing import IO, Any


class PatientFile:
    """A file for HDF5 to write to that remembers its first error instead of raising it.

    The library keeps what it could not write, tries again at unforeseen moments and can take the process with it: a
    full disk was seen to end in a segmentation fault. So it is let finish, and the error is raised after that.

    Args:
        file: Open for reading and writing, without a buffer.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of it, or remember why not."""
        rest = memoryview(content).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Cut or lengthen the file, or remember why not."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return 0 if size is None else size

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.IOBase`."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """See `io.IOBase`."""
        return self._file.read(size)

    def readinto(self, buffer: Any) -> int:
        """Read; what could not be written before is zeros."""
        view = memoryview(buffer).cast("B")
        found: int = self._file.readinto(view)  # type: ignore[attr-defined]
        view[found:] = bytes(len(view) - found)
        return len(view)

    def flush(self) -> None:
        """There is no buffer."""

    def __enter__(self) -> PatientFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
