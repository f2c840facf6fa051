"""What `--overwrite` may delete: a run's folder, and nothing that only looks like one."""

from __future__ import annotations

import shutil
from pathlib import Path

from o2o_smooth.errors import ConfigError
from o2o_smooth.reading import read_json

MANIFEST = "manifest.json"
_KEYS = ("format", "status", "config", "seeds")
"""Of every run's manifest; browser extensions and web pages have a manifest.json too."""


def check_replaceable(out: Path) -> None:
    """Refuse to delete what is no run, or is reached or held by something else.

    Raises:
        ConfigError: It is a link, the current folder or one above it, a mount, a home, or holds no run's manifest.
    """
    if out.is_symlink():
        raise ConfigError(
            f"{out} is a link to {out.readlink()}, and --overwrite deletes no folder through a link; give the "
            f"folder itself as --out"
        )
    real = out.resolve()
    if Path.cwd().is_relative_to(real) or Path.home().resolve().is_relative_to(real) or real.is_mount():
        raise ConfigError(
            f"{out} is the current or the home folder, one above it, or a disk: --overwrite does not delete it; choose "
            f"another --out"
        )
    manifest = out / MANIFEST
    cure = "--overwrite replaces runs only, choose another --out"
    if not manifest.is_file():
        raise ConfigError(f"{out} is not empty and not a run; {cure}")
    try:
        found = read_json(manifest, root=out)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{out} is not known to be a run: its manifest.json cannot be read ({error}); {cure}"
        ) from None
    missing = [key for key in _KEYS if key not in found]
    if missing:
        raise ConfigError(f"{out} is not empty and not a run: its manifest.json has no {missing[0]!r}; {cure}")


def remove_run(out: Path) -> None:
    """Delete a run's folder, if it is there.

    Raises:
        ConfigError: See `check_replaceable`; or it cannot be deleted.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return
    check_replaceable(out)
    try:
        shutil.rmtree(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be replaced ({error.strerror}); delete it, or choose another --out") from None
