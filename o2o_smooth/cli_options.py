"""Options of the commands: tyro's parser with errors in one line, and a few that are taken by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import shlex
from collections.abc import Sequence
from typing import Any

import tyro

from o2o_smooth.errors import O2OError
from o2o_smooth.redaction import redacted_words


def command_line(name: str, arguments: Sequence[str]) -> str:
    """A command as it is written down beside what it made: without secrets."""
    return shlex.join(["o2o-smooth", *redacted_words([name, *arguments])])


def take(arguments: list[str], flag: str) -> tuple[list[str], str | None]:
    """Remove an option with its value."""
    rest, value, i = [], None, 0
    while i < len(arguments):
        if arguments[i] == flag:
            if i + 1 >= len(arguments):
                raise O2OError(f"{flag} needs a value")
            value, i = arguments[i + 1], i + 2
        elif arguments[i].startswith(f"{flag}="):
            value, i = arguments[i].partition("=")[2], i + 1
        else:
            rest.append(arguments[i])
            i += 1
    return rest, value


def take_every(arguments: list[str], flag: str) -> tuple[list[str], list[str]]:
    """Remove an option that may be given several times, with its values in order."""
    rest, values = list(arguments), []
    while flag in [argument.partition("=")[0] for argument in rest]:
        at = next(i for i, argument in enumerate(rest) if argument.partition("=")[0] == flag)
        width = 1 if "=" in rest[at] else 2
        values += [take(rest[at : at + width], flag)[1] or ""]
        del rest[at : at + width]
    return rest, values


def peek(arguments: list[str], flag: str) -> str | None:
    """The value of an option, left where it is."""
    return take(arguments, flag)[1] if flag in [a.partition("=")[0] for a in arguments] else None


def parse(kind: Any, default: Any, arguments: Sequence[str], prog: str, epilog: str = "") -> Any:
    """Parse with tyro; its boxed errors become one line.

    Raises:
        O2OError: Bad input.
    """
    captured = io.StringIO()
    help_wanted = any(a in ("-h", "--help") for a in arguments)
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                kind,
                prog=prog,
                args=list(arguments),
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if help_wanted and stop.code in (0, None):
            print(epilog)
            raise
        raise O2OError(_one_line(captured.getvalue(), prog, default)) from None


def _one_line(box: str, prog: str, default: Any) -> str:
    """The first paragraph of one of tyro's boxes."""
    paragraphs: list[list[str]] = [[]]
    for raw in box.splitlines():
        line = raw.strip("│|+ ╭╮╰╯")
        if re.search("[─-]{6}", line):
            paragraphs.append([])
        elif line:
            paragraphs[-1].append(line)
    filled = [" ".join(lines) for lines in paragraphs if lines] or ["bad options"]
    # Where the terminal has no box characters, the title is a paragraph of its own.
    titled = not box.lstrip().startswith("╭") and len(filled) > 1
    text = re.sub(r"\s+", " ", filled[1 if titled else 0]).rstrip(". ")
    text = re.sub(r"^Error parsing [A-Za-z_]+: ", "", text)  # a setting that its own check refused
    text = re.sub(r"invalid literal for int\(\) with base 10: ('.*?')", r"\1 is no whole number", text)
    unknown = re.match(r"Unrecognized options: (\S+)", text)
    if unknown:
        names = [flag.removeprefix("--") for flag in _flags(default)]  # whose dashes are like any other's
        close = difflib.get_close_matches(unknown[1].rstrip(",").removeprefix("--"), names, n=1)
        hint = f" (did you mean --{close[0]}?)" if close else ""
        text = f"unknown option {unknown[1].rstrip(',')}{hint}"
    return f"{text}; {prog} --help shows every option"


def _flags(default: Any) -> list[str]:
    flags: list[str] = []
    for field in dataclasses.fields(default):
        inner = getattr(default, field.name)
        flags += _flags(inner) if dataclasses.is_dataclass(inner) else ["--" + field.name.replace("_", "-")]
    return flags
