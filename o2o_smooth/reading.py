"""Reading files that may be broken, or made to harm: bounded in size and depth, without links out of their folder.

Nothing that is read here can run code, and no file makes us hold much more than it has bytes. The size is looked at
before the content; what has none (a pipe, a device) is refused or cut off at the limit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

from o2o_smooth.errors import O2OError

MIB = 2**20
LARGEST_JSON = 64 * MIB
"""Bytes of a manifest or another single JSON file."""
LARGEST_TOML = MIB
LARGEST_LINE = 8 * MIB
"""Bytes of a line of a .jsonl file: one evaluation, or the metrics of one moment."""
LARGEST_LINES = 4096 * MIB
"""Bytes of a whole .jsonl file, which is read line by line."""
_DEEPEST = 64
_DOTTED = re.compile(rf"(?:[^.,=\n]{{1,40}}\.){{{_DEEPEST},}}")
_MAL_FORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Unreadable(O2OError, ValueError):
    """A file that is not read; the text says why, without the file's name.

    Args:
        text: What is wrong.
        line: The number of the line that is, where the others could be read.
    """

    def __init__(self, text: str, line: int | None = None) -> None:
        super().__init__(text)
        self.line = line


@contextlib.contextmanager
def opened(path: Path, limit: int, *, pipes: bool = False) -> Iterator[IO[bytes]]:
    """A file open for reading that is a plain one, of at most so many bytes.

    Args:
        path: The file.
        limit: Bytes.
        pipes: Take a pipe too, as `<(command)` is one. Its size is not known: read no more than the limit.

    Raises:
        OSError: It cannot be opened.
        Unreadable: It is too large, or no plain file.
    """
    try:
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) * (not pipes)
        )  # a pipe nobody writes to hangs
    except ValueError:
        raise Unreadable("its name holds a zero byte") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(21, "it is a folder", str(path))
        if not stat.S_ISREG(found.st_mode) and not (pipes and stat.S_ISFIFO(found.st_mode)):
            raise Unreadable("it is no plain file (a device, a socket or a pipe)")
        if found.st_size > limit:
            raise Unreadable(f"it has {found.st_size:,} bytes, more than the {limit:,} that such a file can have")
        yield file


def read_text(path: Path, limit: int, *, pipes: bool = False) -> str:
    """A text in UTF-8, of at most so many bytes; see `opened`.

    Raises:
        OSError: It cannot be read.
        Unreadable: It is too large, no plain file, or not UTF-8.
    """
    with opened(path, limit, pipes=pipes) as file:
        content = file.read(limit + 1)
    if len(content) > limit:  # it has grown, or is a pipe
        raise Unreadable(f"it has more than {limit:,} bytes")
    return _decoded(content)


def read_json(path: Path, limit: int = LARGEST_JSON, *, root: Path | None = None) -> dict[str, Any]:
    """A JSON object as `parse_json` takes it.

    Args:
        path: The file.
        limit: Bytes.
        root: The folder that the file belongs to; see `check_inside`.

    Raises:
        OSError: It cannot be read.
        Unreadable: It is too large, nested too deeply, broken, no object, or led to by a link out of its folder.
    """
    if root is not None:
        check_inside(path, root)
    content = parse_json(read_text(path, limit))
    if not isinstance(content, dict):
        raise Unreadable("it does not hold a JSON object")
    return content


def read_json_lines(path: Path, *, limit: int = LARGEST_LINES) -> Iterator[tuple[int, Any]]:
    """The values of a .jsonl file with the numbers of their lines; NaN and infinity may stand there.

    A last line without its end is a write that was cut, and not counted.

    Raises:
        OSError: It cannot be read.
        Unreadable: It is too large, or no plain file. Of a line: too long, broken, or nested too deeply; then the error
            has its number.
    """
    with opened(path, limit) as file:
        number = 0
        while line := file.readline(LARGEST_LINE + 1):
            number += 1
            if len(line) > LARGEST_LINE:
                raise Unreadable(f"it is longer than {LARGEST_LINE:,} bytes", number)
            if not line.endswith(b"\n"):
                return
            try:
                yield number, parse_json(_decoded(line), finite=False)
            except Unreadable as error:
                raise Unreadable(str(error), number) from None


def parse_json(text: str, *, finite: bool = True) -> Any:
    """JSON as we write it: no key twice, not nested deeper than 64 levels, and (`finite`) no NaN and no infinity.

    Raises:
        Unreadable: Otherwise.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant if finite else None,
            parse_float=_finite if finite else None,
        )
    except Unreadable:
        raise
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(f"it is no JSON ({' '.join(str(error).split())})") from None
    if _deeper(value, _DEEPEST):
        raise Unreadable("it is nested too deeply")
    return value


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of sane size and depth.

    Raises:
        OSError: It cannot be read.
        Unreadable: It is too large, broken, or nested too deeply.
    """
    return parse_toml(read_text(path, LARGEST_TOML))


def parse_toml(text: str) -> dict[str, Any]:
    """TOML from a text.

    Raises:
        Unreadable: It is broken, or nested too deeply.
    """
    try:
        if _DOTTED.search(text):  # a key of many parts takes time that grows with their square
            raise RecursionError
        value = tomllib.loads(text)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except ValueError as error:
        raise Unreadable(" ".join(str(error).split())) from None
    if _deeper(value, _DEEPEST):
        raise Unreadable("it is nested too deeply")
    return value


def check_inside(path: Path, root: Path) -> None:
    """A file that is reached through a folder must lie in it: no link leads out.

    The folder itself may be reached by a link, since the user named it.

    Raises:
        Unreadable: The file is a link, or below one, that leads out of the folder or in circles.
    """
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        raise Unreadable(f"{path.name} is a link that leads in circles; put the file itself there") from None
    if not inside:
        raise Unreadable(
            f"{path.name} is a link out of {root}, which is not followed; put the file itself there (cp -L copies it)"
        )


@contextlib.contextmanager
def understood(path: Path, what: str) -> Iterator[None]:
    """What a file's values do not allow inside the block becomes an error that names the file.

    Raises:
        O2OError: A value is missing, of another kind or out of range.
    """
    try:
        yield
    except O2OError:
        raise
    except _MAL_FORMED as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise O2OError(f"{path} does not describe {what} ({reason[:200]}): it is broken or was edited") from None


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not text in UTF-8 ({error.reason} at byte {error.start:,})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise Unreadable(f"the key {next(n for n in names if names.count(n) > 1)[:40]!r} is there twice")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise Unreadable(f"it holds {text}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Unreadable(f"it holds {text[:40]}, which no number can hold")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and tables are nested deeper than so many levels."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True
