"""One small run, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from o2o_smooth.agents.storage import CHECKSUMS
from o2o_smooth.training.run import run
from tests.hostile.attacks import pendulum, small


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and a finished run of two seeds."""
    folder = tmp_path_factory.mktemp("made")
    run(small(pendulum(folder), folder / "run"))
    return folder


@pytest.fixture
def victim(made: Path, tmp_path: Path) -> Path:
    """A copy of the run that may be damaged, without checksums: who can write files can write those too."""
    folder = Path(shutil.copytree(made / "run", tmp_path / "victim"))
    for sums in folder.glob(f"checkpoints/*/{CHECKSUMS}"):
        sums.unlink()
    return folder
