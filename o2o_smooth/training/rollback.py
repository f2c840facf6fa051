"""Going back to the newest good checkpoint after a fault, and on from there with other random draws.

A fault stands in the manifest of the run whose it was, as `fault`. Whoever goes on with that run (`--on-nan rollback`
by itself, `o2o-smooth resume` when asked) moves it to the list `rollbacks`, and every entry there gives the seed that
it names draws of its own from then on: batches, noise, exploration. Other seeds go on as they would have.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from o2o_smooth.agents.storage import read_json
from o2o_smooth.draws import mix64
from o2o_smooth.errors import CheckpointError, O2OError
from o2o_smooth.files import written_whole
from o2o_smooth.training.config import RunConfig
from o2o_smooth.training.keeping import FOLDER, serials
from o2o_smooth.training.manifest import now
from o2o_smooth.training.progress import ProgressSink
from o2o_smooth.training.seeding import Stream
from o2o_smooth.training.tracking.local import MANIFEST

FAULT, ROLLBACKS = "fault", "rollbacks"  # in the manifest


def rolled(seed: int, times: int) -> int:
    """What a member's named draws are seeded with after it was rolled back so many times."""
    return mix64(seed, int(Stream.ROLLBACK), times) >> 1 if times else seed


def times(manifest: Mapping[str, Any], seed: int) -> int:
    """How often a seed of a run was rolled back."""
    found = manifest.get(ROLLBACKS)
    return sum(isinstance(entry, dict) and entry.get("seed") == seed for entry in found or ())


def going_on(
    attempt: Callable[[], list[Path]], home: Path, config: RunConfig[Any], progress: ProgressSink
) -> list[Path]:
    """Do a run, or several that share a population, and after a fault go on with it if that is wanted.

    Args:
        attempt: Does it; gives the folders.
        home: The first run's folder.
        config: The first run's settings.
        progress: Takes a note about every rollback.

    Raises:
        O2OError: What `attempt` raised; a fault only where nothing is left to go back to, or after the last rollback.
    """
    from o2o_smooth.training.resume import resume_all

    try:
        return attempt()
    except O2OError as error:
        if config.faults.on_nan != "rollback":
            raise
        found = _pending(_outs(home))
        if not found:
            raise
        most = config.faults.max_rollbacks
        done = max(len(read_json(out / MANIFEST).get(ROLLBACKS) or ()) for out in found)
        if done >= most:
            raise type(error)(
                f"{error} (after {done} rollback{'s' if done != 1 else ''}, --max-rollbacks {most})"
            ) from error
        progress.note(f"rollback {done + 1} of {most}: {error}")
    gc.collect()  # the run that failed, before the next one takes as much memory
    return resume_all(home, progress)


def take_back(home: Path, outs: Sequence[Path], note: Callable[[str], None]) -> None:
    """Turn faults that runs ended with into rollbacks, before the runs go on from their newest checkpoint.

    A checkpoint that a run was rolled back to already, and failed again, makes way for the one before it.

    Raises:
        O2OError: A manifest cannot be read or written.
    """
    for out in _pending(outs):
        manifest = read_json(out / MANIFEST)
        found = manifest.get(ROLLBACKS)
        earlier = list(found) if isinstance(found, list) else []
        fault = manifest.pop(FAULT)
        kept = serials(home / FOLDER)
        if len(kept) > 1 and earlier and earlier[-1].get("checkpoint") == kept[-1]:
            shutil.rmtree(home / FOLDER / f"{kept.pop():06d}")
        manifest[ROLLBACKS] = [*earlier, {**fault, "at": now(), "checkpoint": kept[-1] if kept else None}]
        with written_whole(out / MANIFEST) as path:
            path.write_text(json.dumps(manifest, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        note(
            f"{out}: seed {fault.get('seed')} goes on with other random draws than before ({fault.get('what')}); "
            f"the others as they were"
        )


def _pending(outs: Sequence[Path]) -> list[Path]:
    """The runs that ended with a fault."""
    found = []
    for out in outs:
        try:
            manifest = read_json(out / MANIFEST)
        except CheckpointError:
            continue
        if isinstance(manifest.get(FAULT), dict):
            found.append(out)
    return found


def _outs(home: Path) -> list[Path]:
    from o2o_smooth.training.request import has_request, read_request

    return list(read_request(home).outs) if has_request(home) else []
