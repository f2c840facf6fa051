"""Secrets do not get into files and messages: what looks like one, or is one of this process's, becomes ***."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
_NAME = re.compile(
    r"(^|_)(API_?KEY|APIKEY|ACCESS_?KEY|SECRET|SECRETS|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH)($|_)"
)
_NO_SECRET = re.compile(r"_(PATH|FILE|DIR|FOLDER|ID|NAME|URL|URI|HOST|PORT|SOCK|USER|MODE|TYPE|EXPIRES?|TIMEOUT)$")
_SHORTEST = 8
"""Characters; a shorter value would take ordinary words away."""
_USERINFO = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^/\s@\"'?#]+(?::[^/\s\"'?#]*)?@")  # a path has one slash
_ASSIGNED = re.compile(
    r"""(?ix)
    ( (?:^|[\s?&;,"'{(-]) [a-z0-9_-]*
      (?: api[_-]?key | access[_-]?key | secret(?:[_-]?key)? | auth[_-]?token | access[_-]?token | token | password
        | passwd | passphrase ) ["']? \s* (?:=|:\s) \s* ["']? )
    [^\s"'&;,)}]+
    """
)
_BEARER = re.compile(r"(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_SHAPES = re.compile(
    r"\b(?:local-[0-9a-f]{40}|wandb_v1_\w{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w-]{16,}|sk-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})"
)
_FLAG = re.compile(r"(?i)^--?[\w-]*(api[_-]?key|access[_-]?key|secret|token|password|passwd|passphrase)[\w-]*$")
_BARE_KEY = re.compile(r"^[0-9a-f]{40}$")  # W&B's; as a word of its own, since commits look like it too


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """The values of variables whose name says that they hold a secret, the longest first."""
    found = {
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST and _NAME.search(name.upper()) and not _NO_SECRET.search(name.upper())
    }
    return sorted(found, key=lambda value: (-len(value), value))


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without secrets.

    Hidden are user and password of an address, what follows `key=`, `token=` or `password=`, tokens of the shapes that
    W&B, Hugging Face, GitHub, GitLab, OpenAI, Slack and AWS give out, and the values of this process's environment
    variables whose names say that they are secret (WANDB_API_KEY, HF_TOKEN, ..._PASSWORD).

    Args:
        text: Any.
        environment: Default: this process's.
    """
    for value in secrets_of(os.environ if environment is None else environment):
        text = text.replace(value, HIDDEN)
    text = _USERINFO.sub(rf"\1{HIDDEN}@", text)
    text = _ASSIGNED.sub(rf"\1{HIDDEN}", text)
    return _SHAPES.sub(HIDDEN, _BEARER.sub(rf"\1{HIDDEN}", text))


def redacted_words(words: list[str]) -> list[str]:
    """A command's words without secrets: also the word after `--api-key` and its like."""
    kept = [HIDDEN if _BARE_KEY.match(word) else redacted(word) for word in words]
    for i, word in enumerate(words[:-1]):
        if _FLAG.match(word) and not words[i + 1].startswith("-"):
            kept[i + 1] = HIDDEN
    return kept


def redacted_values(value: Any) -> Any:
    """Plain values (JSON's) with every text in them redacted; keys stay."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: redacted_values(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [redacted_values(inner) for inner in value]
    return value


def one_line(text: str) -> str:
    """A message for the terminal: one line, no secrets, and control characters spelt out, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(redacted(text).split()))
