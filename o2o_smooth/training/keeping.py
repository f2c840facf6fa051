"""Checkpoints that a run goes on from: where they lie, when they are written, which are kept, which can be trusted.

    RUN/resume/run.json       what was asked for; written before anything else
    RUN/resume/lock           held by the process at work
    RUN/resume/000012/        a checkpoint: checkpoint.json, state, agent, hygiene, and checksums.json over all of them
    RUN/resume/rows/          the replay buffer, a file for what was new at a checkpoint

Runs that share a population have one such folder, in the first of them; the others' run.json names it. A checkpoint is
on the disk, with the log files up to there, before it takes its name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from o2o_smooth import reading
from o2o_smooth.agents.storage import read_json, restore_replaced, verify_directory, write_directory
from o2o_smooth.data.replay_files import Replay, ReplayFiles, check_segments
from o2o_smooth.errors import CheckpointError, ConfigError, O2OError
from o2o_smooth.files import why
from o2o_smooth.reading import MIB
from o2o_smooth.training.config_checkpoints import CheckpointConfig
from o2o_smooth.training.trees import Arrays, Unkeepable, decode, encode

FORMAT = 1
FOLDER, ROWS = "resume", "rows"
NO_ROWS: dict[str, Any] = {"segments": [], "written": 0, "settled": 0, "unfinished": 0}
LARGEST_STATE = 256 * MIB  # of state.json; what is read again takes many times as much memory
SHARE = 50  # a checkpoint may take a fiftieth of the time


@dataclass(frozen=True)
class Kept:
    """A checkpoint that was read."""

    folder: Path
    serial: int
    state: dict[str, Any]
    """What the run gave, as `decode` gives it back."""
    rows: dict[str, Any]
    """Of the replay buffer: segments, written, unfinished."""


class Keeper:
    """Writes the checkpoints of a run.

    Args:
        folder: RUN/resume.
        config: Settings.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder, self.config = folder, config
        self._cost, self._last = 0.0, time.monotonic()
        self._lock: Any = None
        self.go_on(None)

    def go_on(self, kept: Kept | None) -> None:
        """From a checkpoint, or from none."""
        self._serial = 0 if kept is None else kept.serial
        rows = NO_ROWS if kept is None else kept.rows
        self.replay = ReplayFiles(
            self.folder / ROWS, rows["segments"], settled=int(rows["settled"]), unfinished=int(rows["unfinished"])
        )

    # When

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint; a matter of the clock, so nothing else may depend on it."""
        every = self.config.checkpoint_every
        return time.monotonic() - self._last >= (max(every, SHARE * self._cost) if every >= 1 else every)

    def put_off(self) -> None:
        """There is to be none now, but in a while."""
        self._last = time.monotonic()

    # Writing

    def write(
        self,
        state: Mapping[str, Any],
        files: Mapping[str, Any],
        replay: Replay | None = None,
        *,
        begun: float | None = None,
    ) -> Path:
        """Write a checkpoint, and let go of those that are too many.

        Args:
            state: A tree; see `trees`.
            files: Further files, as `write_directory` takes them.
            replay: The replay buffer, once there is something in it.
            begun: When its making began, as `time.monotonic` says it; default: now. What that takes counts as well.

        Raises:
            Unkeepable: The state could not be read again.
            O2OError: It cannot be written; those before it are still there.
        """
        begun = time.monotonic() if begun is None else begun
        arrays: Arrays = {}
        tree = json.dumps(encode(state, arrays), allow_nan=False)
        if len(tree) > LARGEST_STATE:
            raise Unkeepable(f"the state has {len(tree):,} characters, at most {LARGEST_STATE:,} can be kept")
        serial = self._serial + 1
        name = f"{serial:06d}"
        rows = NO_ROWS
        if replay is not None:
            rows = {
                "segments": self.replay.write(replay, name),
                "written": replay.rows.written,
                "settled": replay.settled,
                "unfinished": replay.unfinished,
            }
        path = write_directory(
            self.folder / name,
            {
                "checkpoint.json": {"format": FORMAT, "rows": rows},
                "state.json": tree,
                "state.safetensors": {key: torch.from_numpy(value) for key, value in arrays.items()},
                **files,
            },
        )
        self._serial = serial
        self.prune()
        self._last = time.monotonic()
        self._cost = self._last - begun
        return path

    def prune(self) -> None:
        """Take away what no kept checkpoint needs; what cannot be deleted stays."""
        found = serials(self.folder)
        for serial in found[: -self.config.keep_checkpoints]:
            # By another name first: half of a checkpoint must not look like one.
            with contextlib.suppress(OSError):
                gone = self.folder / f".{serial:06d}.gone.tmp"
                (self.folder / f"{serial:06d}").rename(gone)
                shutil.rmtree(gone, ignore_errors=True)
        needed: set[str] = set()
        for serial in found[-self.config.keep_checkpoints :]:
            try:
                about = read_json(self.folder / f"{serial:06d}" / "checkpoint.json")
                needed |= {str(segment["file"]) for segment in about["rows"]["segments"]}
            except (CheckpointError, KeyError, TypeError):
                continue
        for file in (self.folder / ROWS).glob("*.safetensors"):
            if file.name not in needed:
                with contextlib.suppress(OSError):
                    file.unlink()

    def forget_after(self, serial: int) -> None:
        """Take away the checkpoints after one, which are broken, and what kills have left."""
        for later in [s for s in serials(self.folder) if s > serial]:
            shutil.rmtree(self.folder / f"{later:06d}", ignore_errors=True)
        restore_replaced(self.folder)
        restore_replaced(self.folder / ROWS)
        self.prune()

    def clear(self, folders: Sequence[Path]) -> None:
        """The runs are complete: nothing is needed any more. This keeper's own folder goes last."""
        for folder in (*(f for f in folders if f != self.folder), self.folder):
            # By another name first: a kill while files go must leave something that is known for what it is.
            with contextlib.suppress(OSError):
                gone = folder.with_name(f".{folder.name}.gone.tmp")
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)

    # One process at a time

    def lock(self) -> None:
        """Become the process at work; the system gives the lock back when this process ends, however that is.

        Raises:
            ConfigError: Another one is.
        """
        try:
            import fcntl
        except ImportError:  # not a POSIX system
            return
        file = self.folder / "lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = file.open("a+")
        except OSError as error:
            raise O2OError(f"cannot write {file}: {why(error, file)}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            who = self._lock.read().strip() or "another process"
            self.unlock()
            raise ConfigError(
                f"{self.folder.parent} is being worked on ({who}); wait for it, or stop it first"
            ) from None
        with contextlib.suppress(OSError):  # on a full disk: it is for people only
            self._lock.truncate(0)
            self._lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
            self._lock.flush()

    def unlock(self) -> None:
        """Let others."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def serials(folder: Path) -> list[int]:
    """Numbers of the checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


def read_newest(
    folder: Path, note: Callable[[str], None], fits: Callable[[Mapping[str, Any]], None] | None = None
) -> Kept | None:
    """The newest checkpoint that is whole; None where there is none at all.

    Args:
        folder: RUN/resume.
        note: Told of each one that is broken.
        fits: Raises `CheckpointError` where a state does not fit what else there is.

    Raises:
        CheckpointError: There are some, and all are broken.
    """
    broken = ""
    found = serials(folder)
    for serial in reversed(found):
        try:
            kept = read_checkpoint(folder / f"{serial:06d}")
            if fits is not None:
                try:
                    fits(kept.state)
                except (LookupError, TypeError, ValueError, AttributeError) as error:
                    if isinstance(error, CheckpointError):
                        raise
                    raise CheckpointError(f"{kept.folder} does not describe a run: {error!r}") from None
        except CheckpointError as error:
            broken = broken or str(error)
            rest = "the one before it is used" if serial != found[0] else "there is none before it"
            note(f"warning: the checkpoint {folder / f'{serial:06d}'} is not used, {rest}: {error}")
        else:
            return kept
    if found:
        raise CheckpointError(f"no checkpoint in {folder} can be used ({broken}); start the run anew with --overwrite")
    return None


def read_checkpoint(path: Path) -> Kept:
    """Read a checkpoint, with everything in it checked against what was written.

    Raises:
        CheckpointError: It is absent, broken, or of another version.
    """
    verify_directory(path, required=True)
    about = read_json(path / "checkpoint.json")
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {about.get('format')}, this version reads {FORMAT}; resume with the version of "
            f"o2o_smooth that wrote it (manifest.json names it)"
        )
    try:
        rows = about["rows"]
        check_segments(path.parent / ROWS, rows["segments"])
        arrays = load_file(path / "state.safetensors")
        state = decode(reading.read_json(path / "state.json", LARGEST_STATE, root=path), arrays)
        return Kept(path, int(path.name), state, rows)
    except (OSError, SafetensorError, KeyError, TypeError, reading.Unreadable) as error:
        raise CheckpointError(f"{path} is broken: {error!r}") from None


def relative(folder: Path, start: Path) -> str:
    """A path that stays right when both are moved together."""
    return os.path.relpath(folder.resolve(), start.resolve())
