"""Arms of a fork: what was written about each, the settings that it means, and the controls beside them.

All arms go on from one checkpoint with common random numbers: equal seeds see the same environments, exploration noise
and batches, so that arms differ in what is compared and their differences are paired. Only an A/A arm draws anew.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from o2o_smooth.errors import CheckpointError, ConfigError
from o2o_smooth.reading import parse_toml
from o2o_smooth.stability.arms import role_of
from o2o_smooth.training.checkpoint import find_checkpoint
from o2o_smooth.training.config import EvaluationConfig, RunConfig, SmoothingConfig, apply_values
from o2o_smooth.training.config_hygiene import TREATMENTS
from o2o_smooth.training.ramps import COMPONENT_SCHEDULES

CONTROLS = ("stay", "jump, mixed batch", "jump to floor 0.2")
"""Names of the controls, without the A/A pair's second arm."""
FLOOR = "floor:0.2+jump"
_LONGEST = 200  # characters of a name; file systems take 255 bytes, some of which our own files need
AGAIN = " (A/A)"
"""Behind the name of the arm that an A/A pair repeats."""

COMMON = frozenset(
    [
        *("task", "agent", "dataset", "provenance", "pretrained", "seeds", "offline_updates", "online_steps"),
        *("num_envs", "vectorizer", "reward_scale", "reward_shift", "device", "out", "overwrite", "memory_check"),
        *("evaluation", *(f.name for f in dataclasses.fields(EvaluationConfig))),
    ]
)
"""Settings that all arms share: what they are forked from, how they meet the environment, how they are judged."""


@dataclass(frozen=True)
class ForkArm:
    """One arm."""

    name: str
    """In tables and pictures."""
    config: RunConfig[Any]
    """Its settings."""
    control: bool = False
    """Whether it was added as a control."""

    @property
    def folder(self) -> str:
        """Its name in characters that every file system takes."""
        return re.sub(r"[^A-Za-z0-9._-]+", "-", self.name).strip("-.")


def parse_arm(text: str, base: RunConfig[Any]) -> ForkArm:
    """An arm from its text: a schedule, settings as `name=value`, or both, with commas between them.

    Args:
        text: For example `linear:5000,regime=mixed` or `name=gentle,schedule=hold:1000+linear:4000,actor-lr=1e-4`.
        base: The settings that all arms share.

    Raises:
        ConfigError: It cannot be read; the message has the text and the part.
    """
    where = f"--arm '{text}'"
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{where}: nothing before, after or between commas; write linear:5000,regime=mixed")
    values: dict[str, Any] = {}
    name = None
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key, value = (key.replace("-", "_"), value) if equals else ("schedule", part)
        if not key or not value:
            raise ConfigError(f"{where}: cannot read '{part}'; write a schedule or setting=value")
        if key in values or (key == "name" and name is not None):
            given = "two schedules" if key == "schedule" else f"'{key}' twice"
            raise ConfigError(f"{where}: {given}; an arm is one schedule and settings with commas between them")
        if key in COMMON:
            raise ConfigError(
                f"{where}: '{key}' is shared by all arms, or they could not be compared; give it once, as an option "
                f"of the command"
            )
        if key == "name":
            name = value
        else:
            values[key] = value if key.endswith("schedule") else _value(value)
    try:
        config = apply_values(base, values, where)
    except ConfigError as error:
        raise error if where in str(error) else ConfigError(f"{where}: {error}") from None
    return ForkArm(name or ", ".join(parts), config)


def _value(text: str) -> Any:
    """Numbers, truth values and lists as TOML has them; everything else is text."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def with_controls(arms: Sequence[ForkArm], base: RunConfig[Any]) -> list[ForkArm]:
    """The arms, and what every comparison needs beside them.

    - `stay`: the offline objective goes on; what a policy that never switches would do.
    - `jump, mixed batch`: no smoothing, but offline rows in every batch; the data's share of an effect.
    - `jump to floor 0.2`: no ramp, but a fifth of the offline objective kept; the floor's share of an effect.
    - `NAME (A/A)`: the first arm that is none of these once more, with other random numbers; what chance alone does.

    The first and the third see the data as that arm does; all else is what the arms share. A control that is among the
    arms already is not added again.

    Args:
        arms: At least one.
        base: The settings that all arms share.
    """
    compared = next((arm for arm in arms if not _is_control(arm.config, base)), arms[0])
    own = replace(
        compared.config.smoothing,
        weight_in="raw",
        actor_schedule=None,
        critic_schedule=None,
        value_schedule=None,
        temperature_schedule=None,
    )
    fresh = SmoothingConfig()
    mixed = replace(
        own,
        schedule="jump",
        regime="mixed",
        offline_fraction=fresh.offline_fraction,
        offline_fraction_end=fresh.offline_fraction_end,
        offline_fraction_schedule=fresh.offline_fraction_schedule,
    )
    smoothings = (replace(own, schedule="stay"), mixed, replace(own, schedule=FLOOR))
    controls = [
        ForkArm(name, replace(base, smoothing=smoothing), control=True)
        for name, smoothing in zip(CONTROLS, smoothings, strict=True)
    ]
    first = compared.config
    if not any(_is_again(arm.config, first) for arm in arms):
        stream = 1 + max(arm.config.online_stream for arm in arms)
        controls.append(ForkArm(compared.name + AGAIN, replace(first, online_stream=stream), control=True))
    return [*arms, *(c for c in controls if all(c.config != arm.config for arm in arms))]


def check_arms(arms: Sequence[ForkArm]) -> None:
    """Refuse arms that could not be told apart.

    Raises:
        ConfigError: No arm, two of one name or folder, or two that are the same run.
    """
    if not arms:
        raise ConfigError("a fork needs at least one arm: --arm jump --arm linear:5000")
    folders: dict[str, str] = {}
    for arm in arms:
        if not arm.folder:
            raise ConfigError(f"arm '{arm.name}' has no letter or number for the name of its folder; give name=...")
        if not arm.name.isprintable() or len(arm.folder) > _LONGEST:
            raise ConfigError(
                f"the name of arm {arm.name[:80]!r} is longer than {_LONGEST} characters or holds control characters; "
                f"give name=..."
            )
        other = folders.setdefault(arm.folder.casefold(), arm.name)
        if other is not arm.name or [a.name for a in arms].count(arm.name) > 1:
            named = f"two arms are called '{arm.name}'" if other == arm.name else f"arms '{other}' and '{arm.name}'"
            raise ConfigError(f"{named} would share the folder {arm.folder}; give one another name=...")
    for i, arm in enumerate(arms):
        same = next((other for other in arms[:i] if other.config == arm.config), None)
        if same is not None:
            raise ConfigError(
                f"arms '{same.name}' and '{arm.name}' are the same run: the same settings and random numbers; leave "
                f"one out, or give it online-stream=1 for other random numbers"
            )


def find_switch(path: Path) -> Path:
    """The checkpoint of a switch that a path means, as `find_checkpoint`.

    Raises:
        CheckpointError: There is none, or it is one from after the switch.
    """
    folder = find_checkpoint(path)
    if (folder / "controller.json").is_file():
        run = folder.parent.parent if folder.parent.name == "checkpoints" else "its run's folder"
        raise CheckpointError(f"{path} is how a run ended, not its switch; give {run}, whose switch is found")
    return folder


def _is_control(config: RunConfig[Any], base: RunConfig[Any]) -> bool:
    """Whether an arm is in itself one of the controls: nothing eases its switch but what all arms share."""
    smoothing = config.smoothing
    treated = any(getattr(smoothing, name) is not None for name in COMPONENT_SCHEDULES) or any(
        getattr(config, group) != getattr(base, group) for group in TREATMENTS
    )
    role = role_of(smoothing.schedule, smoothing.regime, smoothing.offline_fraction, treated=treated)
    return role in ("stay", "mixed", "floor")


def _is_again(config: RunConfig[Any], first: RunConfig[Any]) -> bool:
    """Whether two arms differ in their random numbers alone."""
    return config != first and replace(config, online_stream=first.online_stream) == first
