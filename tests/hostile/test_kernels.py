"""Compiled code is loaded from a folder that nobody else can write to."""

from __future__ import annotations

from pathlib import Path

import pytest

from o2o_smooth.kernels.build import BuildError, check_folder, check_owner


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o722])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(BuildError, match=r"can be written by others: chmod go-w"):
        check_folder(tmp_path)


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o1777])
def test_a_folder_of_ones_own_or_a_sticky_one_is_taken(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    check_folder(tmp_path)
    check_folder(tmp_path / "not yet there")


def test_a_library_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    library = tmp_path / "kernels.so"
    library.write_bytes(b"\x7fELF")
    library.chmod(0o700)
    check_owner(library)
    library.chmod(0o770)
    with pytest.raises(BuildError, match="can be written by others"):
        check_owner(library)


def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "kernels.so"
    library.touch(mode=0o700)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    for check, path in ((check_owner, library), (check_folder, tmp_path)):
        if path.stat().st_uid != 0:
            with pytest.raises(BuildError, match="belongs to another user"):
                check(path)
