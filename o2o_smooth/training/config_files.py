"""Settings from files: TOML in, values checked against the fields of the config dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from o2o_smooth.errors import ConfigError
from o2o_smooth.reading import read_toml as parse


def unknown(kind: str, name: str, choices: Mapping[str, object]) -> str:
    """Text for an unknown name, with the closest ones, or all where they are few."""
    close = difflib.get_close_matches(name, list(choices), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else ""
    every = f"available: {', '.join(choices)}" if len(choices) <= 12 or not close else ""
    return f"there is no {kind} '{name}'; " + " ".join(part for part in (hint, every) if part)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a config file.

    Raises:
        ConfigError: The file is absent or not TOML.
    """
    try:
        return parse(path)
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None


def apply_values(config: Any, values: Mapping[str, Any], where: str) -> Any:
    """A copy of a config dataclass with values put in by name.

    A name is a flag's name (with - or _), at the top level or inside its group's table; groups may be left out because
    names are unique.

    Raises:
        ConfigError: An unknown key or a value of the wrong type, named together with `where` it stands.
    """
    own: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for raw_key, value in values.items():
        path = _find(config, raw_key.replace("-", "_"))
        if path is None:
            raise ConfigError(f"{where}: " + unknown("setting", raw_key, dict.fromkeys(_names(config))))
        head = getattr(config, path[0])
        if len(path) > 1:
            groups.setdefault(path[0], {})[raw_key] = value
        elif not dataclasses.is_dataclass(head):
            own[path[0]] = _convert(path[0], value, _hint(config, path[0]), where)
        elif isinstance(value, Mapping):
            groups.setdefault(path[0], {}).update(value)
        else:
            raise ConfigError(f"{where}: '{path[0]}' is a group of settings, write [{path[0]}] and its settings below")
    # All at once, since settings are checked against each other.
    own |= {name: apply_values(getattr(config, name), inner, where) for name, inner in groups.items()}
    return dataclasses.replace(config, **own)


def _hint(config: Any, name: str) -> str:
    return next(str(f.type) for f in dataclasses.fields(config) if f.name == name)


def _names(config: Any) -> list[str]:
    names: list[str] = []
    for f in dataclasses.fields(config):
        inner = getattr(config, f.name)
        names += [f.name] if not dataclasses.is_dataclass(inner) else [f.name, *_names(inner)]
    return names


def _find(config: Any, key: str) -> list[str] | None:
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if key in fields:
        return [key]
    for name, inner in fields.items():
        if dataclasses.is_dataclass(inner) and (path := _find(inner, key)) is not None:
            return [name, *path]
    return None


def _convert(name: str, value: Any, hint: str, where: str) -> Any:
    """Check a TOML value against a field's annotation (as text; annotations are postponed)."""
    if hint.startswith("tuple[int"):
        items = value if isinstance(value, list | tuple) else [value]
        if all(isinstance(v, int) and not isinstance(v, bool) for v in items):
            return tuple(items)
    elif hint.startswith("bool"):
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool):
        pass
    elif hint.startswith("int"):
        if isinstance(value, int):
            return value
    elif hint.startswith("float"):
        if isinstance(value, int | float):
            return float(value)
    elif hint.startswith("Literal") or hint == "Regime":
        choices = (
            ("retain", "mixed", "discard")
            if hint == "Regime"
            else tuple(part.strip().strip("\"'") for part in hint[hint.index("[") + 1 : hint.rindex("]")].split(","))
        )
        if value in choices:
            return value
        raise ConfigError(f"{where}: {name} must be one of {', '.join(choices)}, got {value!r}")
    elif isinstance(value, str):
        return value
    words = {
        "tuple[int, ...]": "a list of integers",
        "bool": "true or false",
        "int": "an integer",
        "float": "a number",
        "str": "a string",
    }
    raise ConfigError(f"{where}: {name} must be {words.get(hint.split(' |')[0], hint)}, got {value!r}")
