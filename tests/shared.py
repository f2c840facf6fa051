"""The shared folder of datasets and tables; tests that need it skip where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared(name: str) -> Path:
    """A file of the shared folder: O2O_SMOOTH_SHARED, or the folder beside the repository."""
    root = Path(os.environ.get("O2O_SMOOTH_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / name).exists():
        pytest.skip(f"{root / name} is absent; set O2O_SMOOTH_SHARED")
    return root / name
