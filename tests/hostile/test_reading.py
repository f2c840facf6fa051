"""What bounded reading refuses, and that it takes everything that we write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth import reading
from o2o_smooth.errors import ConfigError, EnvError, O2OError
from o2o_smooth.reading import Unreadable, check_inside, parse_json, parse_toml, read_json, read_json_lines, read_text
from o2o_smooth.stability.csv_curves import read_csv_curves
from o2o_smooth.training.config import read_toml
from tests.hostile.attacks import DEEP

JSON = {
    "deep lists": ("[" * DEEP, "nested too deeply"),
    "deep tables": ('{"a":' * DEEP, "nested too deeply"),
    "65 levels": ("[" * 65 + "]" * 65, "nested too deeply"),
    "many digits": ("1" * 5000, "no JSON"),
    "NaN": ('{"a": NaN}', "holds NaN"),
    "infinity": ('{"a": -Infinity}', "holds -Infinity"),
    "beyond floats": ('{"a": 1e999}', "holds 1e999"),
    "a key twice": ('{"a": 1, "a": 2}', "'a' is there twice"),
    "two values": ("{} {}", "no JSON"),
    "nothing": ("", "no JSON"),
    "a byte order mark": ("\ufeff{}", "no JSON"),
}


@pytest.mark.parametrize("attack", JSON)
def test_hostile_json_is_refused(attack: str) -> None:
    text, why = JSON[attack]
    with pytest.raises(Unreadable, match=why):
        parse_json(text)


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, "ü\u0000"]}, json.loads("[" * 64 + "]" * 64)])
def test_what_we_write_is_read(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * DEEP,
        "a = " + "{a=" * DEEP,
        "a." * DEEP + "a = 1",
        "x = {" + "a." * DEEP + "a = 1}",
        "[" + "a." * DEEP + "a]",
        "x = " + "1" * 5000,
        "x = 1\nx = 2",
        "x = 2021-99-99",
    ],
    ids=["lists", "tables", "dotted", "dotted inside", "dotted header", "digits", "twice", "no date"],
)
def test_hostile_toml_is_refused_at_once(text: str, tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        parse_toml(text)
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"x.toml cannot be read"):
        read_toml(tmp_path / "x.toml")


def test_floats_and_comments_with_points_are_no_dotted_keys() -> None:
    text = "x = [" + "0.5, " * 500 + "]\n# " + "." * 200 + "\ny = '" + "a.b, " * 100 + "'\n"
    assert len(parse_toml(text)["x"]) == 500


def test_size_is_looked_at_before_the_content(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    with file.open("wb") as out:
        out.truncate(2**40)  # a hole, no disk is used
    with pytest.raises(Unreadable, match="more than the"):
        read_json(file)
    with pytest.raises(ConfigError, match="more than the"):
        read_toml(file)
    with pytest.raises(O2OError, match="more than the"):
        read_csv_curves(file)
    with pytest.raises(Unreadable, match="more than the"):
        next(read_json_lines(file))


def test_pipes_and_devices_neither_hang_nor_fill_memory(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/tty" if Path("/dev/tty").exists() else "/dev/null")):
        with pytest.raises((Unreadable, OSError)):
            read_json(path)
    with pytest.raises(O2OError, match="no plain file"):
        read_csv_curves(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        read_json(tmp_path)
    with pytest.raises(Unreadable, match="zero byte"):
        read_json(Path("a\0b"))


def test_a_pipe_is_cut_off_at_the_limit() -> None:
    reading_end, writing_end = os.pipe()
    os.write(writing_end, b"x" * 100)
    os.close(writing_end)
    path = Path(f"/dev/fd/{reading_end}")
    with pytest.raises(Unreadable, match="more than 99 bytes"):
        read_text(path, 99, pipes=True)
    os.close(reading_end)


def test_lines_are_bounded_and_a_torn_one_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"a": 1}\n{"a": NaN}\n{"a": 3')
    assert [number for number, _ in read_json_lines(file)] == [1, 2]
    monkeypatch.setattr(reading, "LARGEST_LINE", 16)
    file.write_text('{"a": 1}\n"' + "x" * 20 + '"\n')
    with pytest.raises(Unreadable, match="longer than 16") as caught:
        list(read_json_lines(file))
    assert caught.value.line == 2
    file.write_bytes(b'{"a": 1}\n{"\xff": 1}\n')
    with pytest.raises(Unreadable, match="UTF-8") as caught:
        list(read_json_lines(file))
    assert caught.value.line == 2


def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "secret.json").write_text("{}")
    (folder / "own.json").write_text("{}")
    (folder / "inner.json").symlink_to("own.json")
    (folder / "out.json").symlink_to(other / "secret.json")
    (folder / "below").symlink_to(other)
    (folder / "circle").symlink_to("circle")
    (tmp_path / "named").symlink_to(folder)
    for name in ("own.json", "inner.json", "absent.json"):
        check_inside(folder / name, folder)
        check_inside(tmp_path / "named" / name, tmp_path / "named")  # the user's own link to the folder
    for name in ("out.json", "below/secret.json", "../other/secret.json", "circle/x"):
        with pytest.raises(Unreadable, match="is a link"):
            check_inside(folder / name, folder)


def test_task_files_are_bounded(tmp_path: Path) -> None:
    from o2o_smooth.envs import tasks_from_toml

    (tmp_path / "t.toml").write_text("a = " + "[" * DEEP)
    with pytest.raises(EnvError, match="nested too deeply"):
        tasks_from_toml(tmp_path / "t.toml")
