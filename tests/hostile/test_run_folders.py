"""Run folders that were damaged or made to harm: reports, pictures, forks and --overwrite."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from o2o_smooth.benchmarks import fork as forks
from o2o_smooth.cli import main
from o2o_smooth.data import read_path
from o2o_smooth.errors import ConfigError, DataError, O2OError
from o2o_smooth.redaction import one_line
from o2o_smooth.stability.compared import Settings
from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.curves import read_curves
from o2o_smooth.training.forking import ForkArm, check_arms, parse_arm
from o2o_smooth.training.pictures import draw_run, read_checked
from o2o_smooth.training.prepare import check_out
from o2o_smooth.training.replacing import check_replaceable, remove_run
from o2o_smooth.training.report_runs import read_runs
from o2o_smooth.training.tracking import LocalFiles
from o2o_smooth.training.tracking.wandb_sink import _known
from tests.hostile.attacks import DEEP, HOSTILE, places, replaced, small, without

EVIL = '<script>alert(1)</script>" onload="x'
FORMULA = r"$\frac$ \undefined{"


def used(run: Path, beside: Path) -> str | None:
    """What a report reads of a run beside a sound one: the error's text, None where it was taken."""
    try:
        runs = read_runs([("a", run), ("b", beside)])
        compare(runs.arms, Settings())
    except O2OError as error:
        assert re.search(rf"{run}|arm|settings|references|task|provenance", str(error)), "the text names no file"
        return str(error)
    return None


def test_hostile_manifests_are_refused_or_harmless(victim: Path, made: Path) -> None:
    whole = json.loads((victim / "manifest.json").read_text())
    refused = 0
    for i, place in enumerate(list(places(whole))[::4]):
        for one in (replaced(whole, place, HOSTILE[i % len(HOSTILE)]), without(whole, place)):
            (victim / "manifest.json").write_text(json.dumps(one))
            refused += used(victim, made / "run") is not None
    assert refused > 5


@pytest.mark.parametrize("text", ["[" * DEEP, '{"a":' * DEEP, "[]", "{", "\udc80", '{"task": NaN}', '{"a":1,"a":2}'])
def test_a_broken_manifest_is_named(victim: Path, made: Path, text: str) -> None:
    (victim / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    told = used(victim, made / "run")
    assert told is not None and str(victim) in told
    with pytest.raises(O2OError, match=str(victim)):
        draw_run(victim)


@pytest.mark.parametrize("name", ["evaluations.jsonl", "metrics.jsonl"])
def test_hostile_rows_are_refused_or_harmless(victim: Path, made: Path, name: str) -> None:
    rows = [json.loads(line) for line in (victim / name).read_text().splitlines()]
    refused = 0
    for i, place in enumerate(places(rows[-1])):
        for value in HOSTILE[i % 2 :: 2]:
            changed = [*rows[:-1], replaced(rows[-1], place, value)]
            (victim / name).write_text("".join(json.dumps(row) + "\n" for row in changed))
            refused += used(victim, made / "run") is not None
    assert refused > 5
    for line in (b"[" * DEEP, b"\xff\xfe", b"1", b"null", b'{"env_steps": 1e999, "seed": 3, "phase": "online"}'):
        (victim / name).write_bytes(line + b"\n")
        assert used(victim, made / "run") is not None


@pytest.mark.parametrize("name", ["manifest.json", "evaluations.jsonl", "metrics.jsonl"])
def test_files_behind_links_are_refused(victim: Path, made: Path, tmp_path: Path, name: str) -> None:
    outside = (victim / name).rename(tmp_path / name)
    (victim / name).symlink_to(outside)
    told = used(victim, made / "run")
    assert told is not None and "link out of" in told


def test_online_data_behind_a_link_are_refused(victim: Path, tmp_path: Path) -> None:
    file = next((victim / "online").glob("seed-*.hdf5"))
    outside = file.rename(tmp_path / file.name)
    file.symlink_to(outside)
    with pytest.raises(DataError, match="link out of"):
        read_path(victim)


def test_a_run_does_not_write_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("kept\ntorn")
    for place in (target, tmp_path / "new"):
        folder = tmp_path / f"run-{place.name}"
        folder.mkdir()
        (folder / "metrics.jsonl").symlink_to(place)
        with pytest.raises(O2OError, match="is a link, which is not followed"):
            LocalFiles(folder)
    assert target.read_text() == "kept\ntorn" and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"id": "../../x", "next_step": 5},
        {"id": "a/b", "next_step": 5},
        {"id": "a" * 100, "next_step": 5},
        {"id": "abc", "next_step": -1},
        {"id": "abc", "next_step": True},
        {"id": "abc", "next_step": 10**30},
        {"id": ["abc"]},
        [],
    ],
)
def test_an_id_that_wandb_never_gave_is_not_used(tmp_path: Path, content: Any) -> None:
    (tmp_path / "wandb.json").write_text(json.dumps(content))
    assert _known(tmp_path / "wandb.json") == (None, 0)
    (tmp_path / "wandb.json").write_text('{"id": "a1b2c3", "next_step": 7}')
    assert _known(tmp_path / "wandb.json") == ("a1b2c3", 7)


# ---------------------------------------------------------------------------------------------------------- --overwrite


def test_overwrite_deletes_runs_alone(victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = tmp_path / "extension"
    extension.mkdir()
    (extension / "manifest.json").write_text('{"manifest_version": 3, "name": "mine"}')
    (extension / "work.js").write_text("precious")
    config = small(tmp_path / "pendulum.npz", extension, overwrite=True)
    with pytest.raises(ConfigError, match=r"not a run: its manifest.json has no 'format'"):
        check_out(extension, config)
    with pytest.raises(ConfigError, match="not a run"):
        remove_run(extension)
    assert (extension / "work.js").read_text() == "precious"
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(ConfigError, match="is a link to"):
        check_out(tmp_path / "link", config)
    monkeypatch.chdir(victim / "checkpoints")
    with pytest.raises(ConfigError, match="current or the home folder"):
        check_replaceable(victim)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(victim))
    with pytest.raises(ConfigError, match="current or the home folder"):
        check_replaceable(victim)
    monkeypatch.undo()
    assert (victim / "evaluations.jsonl").is_file()
    check_out(victim, config)
    remove_run(victim)
    assert not victim.exists()
    remove_run(victim)  # nothing to do


def test_deleting_a_run_leaves_what_its_links_lead_to(victim: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    (victim / "checkpoints" / "more").symlink_to(outside)
    remove_run(victim)
    assert (outside / "precious").read_text() == "kept"


@pytest.mark.parametrize("where", ["../other", "/etc", "..", "", ".", "a/b", 5, None])
def test_a_fork_record_that_points_elsewhere_is_refused(made: Path, tmp_path: Path, where: Any) -> None:
    out = tmp_path / "fork"
    out.mkdir()
    base = small(made / "pendulum.npz", out, pretrained=str(made / "run"))
    (out / "fork.json").write_text(
        json.dumps(
            {"checkpoint": str((made / "run").resolve()), "commands": [], "arms": {"old": where}, "controls": []}
        )
    )
    with pytest.raises(ConfigError, match=r"fork.json is broken .*choose another --out"):
        forks._earlier([ForkArm("jump", base)], out)


# ---------------------------------------------------------------------------------------------------------------- names


def test_names_of_arms_stay_in_the_folder(made: Path) -> None:
    base = small(made / "pendulum.npz", made / "x", pretrained=str(made / "run"))
    for name in ("../../up", "/etc/passwd", "..", "a/../b", "C:\\x", "~root", "a\\b", "-rf"):
        arm = dataclasses.replace(parse_arm("jump", base), name=name)
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*|", arm.folder), name
    for name in ("a\x1b[2J", "a\nb", "x" * 300, ".."):
        with pytest.raises(ConfigError, match="name"):
            check_arms([dataclasses.replace(parse_arm("jump", base), name=name)])


def test_control_characters_of_files_do_not_reach_the_terminal(victim: Path) -> None:
    manifest = json.loads((victim / "manifest.json").read_text())
    (victim / "manifest.json").write_text(json.dumps({**manifest, "arm": "a\x1b[2Jb"}))
    with pytest.raises(O2OError, match="control characters"):
        read_curves(victim)
    assert one_line("a\x1b[2J\nb\x00") == "a\\x1b[2J b\\x00"


def test_a_manifest_without_a_group_is_named_not_traced(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((victim / "manifest.json").read_text())
    del manifest["config"]["smoothing"]
    (victim / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(O2OError, match=r"does not describe a run .*smoothing is no table"):
        read_checked(victim)
    assert main(["report", str(victim), "--out", str(victim / "report")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "smoothing is no table" in error


def test_a_page_shows_hostile_names_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["run,arm,seed,env_steps,score"]
    for arm in (EVIL, FORMULA, "]]></svg><img src=x onerror=alert(1)>", "[bold]x[/bold]", "jump"):
        name = arm.replace('"', '""')
        rows += [f'"r","{name}",{seed},{step},{step + seed}' for seed in (0, 1) for step in (0, 10)]
    (tmp_path / "x.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "page"
    assert main(["report", "--curves", str(tmp_path / "x.csv"), "--out", str(out), "--title", "<b>T</b>"]) == 0
    page = (out / "report.html").read_text()
    for bad in ("<script>alert", "<img src", "<b>T</b>", 'onload="x"', "]]></svg>"):
        assert bad not in page
    assert "$\\frac$" in page and "[bold]x[/bold]" in capsys.readouterr().out


def test_csv_names_with_control_characters_are_refused(tmp_path: Path) -> None:
    from o2o_smooth.stability.csv_curves import read_csv_curves

    (tmp_path / "x.csv").write_text("run,arm,seed,env_steps,score\nr,a\x1b[2J,0,0,1\nr,a\x1b[2J,0,1,1\n")
    with pytest.raises(O2OError, match=r"line 2, column arm: .*control characters"):
        read_csv_curves(tmp_path / "x.csv")


def test_temporary_files_are_not_written_through_links(tmp_path: Path) -> None:
    from o2o_smooth.files import written_whole

    (tmp_path / "precious").write_text("kept")
    (tmp_path / f".x.{os.getpid()}.tmp.json").symlink_to(tmp_path / "precious")
    (tmp_path / "y.json").symlink_to(tmp_path / "precious")
    for name in ("x.json", "y.json"):
        with written_whole(tmp_path / name) as temporary:
            temporary.write_text("{}")
        assert (tmp_path / name).read_text() == "{}" and not (tmp_path / name).is_symlink()
    assert (tmp_path / "precious").read_text() == "kept"
