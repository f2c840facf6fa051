"""What `--overwrite` may delete: a run's folder, and nothing that only looks like one."""

from __future__ import annotations

import shutil
from pathlib import Path

from o2o_smooth.errors import ConfigError
from o2o_smooth.reading import read_json

MANIFEST = "manifest.json"
FOLDER = "resume"  # its checkpoints, and who works on it; see `keeping`
_BEFORE_IT = {FOLDER, "wandb", "wandb.json", "tensorboard"}
"""What a run may leave that was killed before it had a manifest."""
_KEYS = ("format", "status", "config", "seeds")
"""Of every run's manifest; browser extensions and web pages have a manifest.json too."""


def check_replaceable(out: Path) -> None:
    """Refuse to delete what is no run, or is reached or held by something else.

    Raises:
        ConfigError: It is a link, the current folder or one above it, a mount, a home, holds no run's manifest, or a
            run that is being worked on.
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
    if (who := _at_work(out)) is not None:
        raise ConfigError(f"{out} is being worked on ({who}); wait for it, or stop it first")
    manifest = out / MANIFEST
    cure = "--overwrite replaces runs only, choose another --out"
    if not manifest.is_file():
        if (out / FOLDER / "run.json").is_file() and {path.name for path in out.iterdir()} <= _BEFORE_IT:
            return
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


def _at_work(out: Path) -> str | None:
    """Who works on a run, or on one that it shares a learner with; None where nobody does, or it cannot be told."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    home = out
    try:
        home = out / str(read_json(out / FOLDER / "run.json", root=out).get("home", "."))
        with (home / FOLDER / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return lock.read(200).decode("utf-8", "replace").strip() or "another process"
    except (OSError, ValueError):
        return None
    return None


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
