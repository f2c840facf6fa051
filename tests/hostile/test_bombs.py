"""Small files that would fill memory: refused, with little memory taken. In one process, whose peak is watched."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.hostile.attacks import DEEP

MIB = 300  # more is a bomb


def zipped(path: Path, names: tuple[str, ...], mib: int) -> Path:
    """Arrays of zeros: deflate makes a thousandth of them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<f8", "fortran_order": False, "shape": (mib << 17,)}
                )
                for _ in range(mib):
                    member.write(bytes(2**20))
    return path


def lying(path: Path, name: str, size: int) -> Path:
    """An archive whose directory claims a huge member."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00")
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", size)
    path.write_bytes(bytes(content))
    return path


def huge_header(path: Path, name: str) -> Path:
    """An array that claims 2**50 numbers and holds none."""
    with zipfile.ZipFile(path, "w") as archive, archive.open(f"{name}.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (2**50,)})
    return path


def hdf5(path: Path, shape: tuple[int, ...]) -> Path:
    """A dataset that claims a shape of which nothing was written."""
    with h5py.File(path, "w") as file:
        for name, wide in (("observations", 4), ("actions", 1), ("next_observations", 4)):
            file.create_dataset(name, (*shape, wide), dtype="f8", chunks=(1024, wide), compression="gzip")
        file.create_dataset("rewards", shape, dtype="f8", chunks=(1024,), compression="gzip")
    return path


def files(folder: Path, run: Path) -> list[tuple[str, Path]]:
    """Every bomb with who reads it."""
    made: list[tuple[str, Path]] = []
    for reader, names in (("policy", ("W0", "b0")), ("recordings", ("length",)), ("dataset", ("observations",))):
        made.append((reader, lying(folder / f"lying-{reader}.npz", names[0], 2**32 - 2)))
        made.append((reader, huge_header(folder / f"header-{reader}.npz", names[0])))
    made.append(("extent", huge_header(folder / "extent.npz", "observations")))
    made.append(("dataset", hdf5(folder / "shape.hdf5", (2**40,))))
    text = {"deep": "[" * (2**22), "wide": "[" + "[]," * 2**17 + "[]]", "digits": "1" * 2**20}
    for name, content in text.items():
        one = folder / name
        (one / "checkpoints").mkdir(parents=True)
        (one / "manifest.json").write_text(content)
        (one / "agent.json").write_text(content)
        (one / "evaluations.jsonl").write_text(content + "\n")
        made += [("manifest", one), ("agent", one), ("curves", one)]
        (one / "x.toml").write_text("x = " + content[: 2**20 - 10])
        if name != "wide":  # which is TOML
            made.append(("toml", one / "x.toml"))
    for name in ("manifest.json", "evaluations.jsonl", "agent.json", "x.csv", "x.toml", "x.npz"):
        one = folder / f"sparse-{name}"
        one.mkdir()
        with (one / name).open("wb") as hole:
            hole.truncate(2**36)
    made += [("manifest", folder / "sparse-manifest.json"), ("curves", folder / "sparse-evaluations.jsonl")]
    made += [("agent", folder / "sparse-agent.json"), ("csv", folder / "sparse-x.csv" / "x.csv")]
    made += [("toml", folder / "sparse-x.toml" / "x.toml"), ("dataset", folder / "sparse-x.npz" / "x.npz")]
    line = folder / "one line"
    line.mkdir()
    with (line / "evaluations.jsonl").open("wb") as hole:
        hole.truncate(2**31)  # no newline in it
    made.append(("curves", line))
    switch = run / "checkpoints" / "switch"
    description = json.loads((switch / "agent.json").read_text())
    changes: list[dict[str, Any]] = [{"hidden_dims": [200_000, 200_000]}, {"num_critics": 10**8}]
    for i, change in enumerate(changes):
        one = folder / f"claims-{i}"
        one.mkdir()
        (one / "agent.json").write_text(json.dumps({**description, "config": {**description["config"], **change}}))
        (one / "agent.safetensors").write_bytes((switch / "agent.safetensors").read_bytes())
        made.append(("agent", one))
    one = folder / "names"
    one.mkdir()
    (one / "agent.json").write_text(json.dumps(description))
    header = (
        b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(400_000)) + b"}"
    )
    (one / "agent.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    made.append(("agent", one))
    return made


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is told by /proc")
def test_bombs_are_refused_with_little_memory(made: Path, tmp_path: Path) -> None:
    bombs = files(tmp_path, made / "run")
    assert DEEP and len(bombs) > 25
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.bombs"],
        input=json.dumps([[reader, str(path)] for reader, path in bombs]),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "O2O_SMOOTH_KERNELS": "0"},
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (reader, path), (how, mib) in zip(bombs, json.loads(done.stdout), strict=True):
        assert how.startswith("refused: ") or reader == "extent", f"{reader} {path.name}: {how}"
        assert not how.startswith("escaped"), f"{reader} {path.name}: {how}"
        assert mib < MIB, f"{reader} {path.name}: {mib} MiB"


def test_a_compressed_archive_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from o2o_smooth.data import arrays
    from o2o_smooth.data.policies import ArrayPolicy
    from o2o_smooth.errors import DataError

    path = zipped(tmp_path / "x.npz", ("W0", "b0"), 8)
    assert path.stat().st_size < 2**16
    monkeypatch.setattr(arrays, "free_memory", lambda: 2**20)
    with pytest.raises(DataError, match="policy file"):
        ArrayPolicy(path)
