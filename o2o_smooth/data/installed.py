"""The user's Minari folder: what is in it, and how something gets in whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from o2o_smooth.errors import DataError
from o2o_smooth.files import why

GENERATED = "o2o-smooth/"
"""Namespace of the datasets that are made here."""


def minari_root() -> Path:
    """The user's Minari folder, which need not exist: MINARI_DATASETS_PATH or ~/.minari/datasets."""
    configured = os.environ.get("MINARI_DATASETS_PATH")
    return Path(configured) if configured is not None else Path.home() / ".minari" / "datasets"


def is_installed(dataset_id: str) -> bool:
    """Whether a Minari dataset of this id is there, sound or not."""
    return (minari_root() / dataset_id / "data").is_dir()


def installed_ids() -> list[str]:
    """Ids of what is in the user's Minari folder, sound or not, in order."""
    root = minari_root()
    found = [folder.parent.relative_to(root) for folder in root.glob("**/data") if folder.is_dir()]
    hidden = [name for name in found if name.parts and (name.parts[0].startswith(".") or "data" in name.parts)]
    return sorted(name.as_posix() for name in found if name.parts and name not in hidden)


@contextlib.contextmanager
def staged(dataset_id: str, *, replace: bool = False) -> Iterator[Path]:
    """Let Minari write a dataset in a hidden folder of its root, and move it into place when the block succeeds.

    An interruption leaves nothing that counts as a dataset. A dataset of this id that is there already stays (another
    process may have been faster), or with `replace` goes when the new one is complete.
    """
    root = minari_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".o2o-smooth-", dir=root))
    except OSError as error:
        raise DataError(
            f"cannot write to the Minari folder {root}: {why(error, root / dataset_id)}; MINARI_DATASETS_PATH names "
            f"another one"
        ) from error
    try:
        with _minari_path(staging):
            yield staging
        _publish(staging, root, dataset_id, replace)
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise  # of the network
        raise DataError(
            f"cannot write dataset {dataset_id}: {why(error, root / dataset_id)}; MINARI_DATASETS_PATH names another "
            f"folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def _minari_path(path: Path) -> Iterator[None]:
    """Point Minari at another root; the environment variable is its only handle."""
    saved = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(path)
    try:
        yield
    finally:
        if saved is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = saved


def _publish(staging: Path, root: Path, dataset_id: str, replace: bool) -> None:
    target = root / dataset_id
    target.parent.mkdir(parents=True, exist_ok=True)
    for namespace in Path(dataset_id).parents:
        described = staging / namespace / "namespace_metadata.json"
        if described.exists() and not (root / namespace / described.name).exists():
            shutil.copy(described, root / namespace / described.name)
    old = staging / ".replaced"  # goes with the staging folder
    try:
        if replace and target.exists():
            target.rename(old)
        (staging / dataset_id).rename(target)
    except OSError as error:
        if old.exists():
            old.rename(target)
        elif is_installed(dataset_id) and not replace:
            return
        raise DataError(f"cannot write dataset {dataset_id} to {target}: {error}") from error
