"""`o2o-smooth report` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import pytest

from o2o_smooth.cli import main
from o2o_smooth.cli_report import USAGE
from tests.training.test_pictures import fake_run
from tests.training.test_report_runs import made

COLUMNS = ["run", "arm", "seed", "j0", "dip_depth", "dip_area", "dip_time", "recovery_steps"]
COLUMNS += ["late_collapse", "final", "auc", "regret", "null_dip"]


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """A jump and a smoothed arm; a fake run has J0 55 and then 30, 40, 50, 60, plus four points a seed."""
    return [
        str(made(tmp_path / "jump", schedule="jump")),
        str(made(tmp_path / "linear", schedule="linear:400")),
    ]


def csv(tmp_path: Path, arms: dict[str, list[float]], seeds: int = 3) -> str:
    lines = ["run,arm,seed,env_steps,score"]
    lines += [
        f"r,{arm},{s},{250 * i},{v + s}"
        for arm, scores in arms.items()
        for s in range(seeds)
        for i, v in enumerate(scores)
    ]
    path = tmp_path / "curves.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_run_folders_become_a_page_pictures_and_numbers(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "report"
    assert main(["report", *runs, "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "curves.png",
        "dips.png",
        "report.html",
        "signals.png",
        "stability.json",
    ]
    for name in ("curves", "dips", "signals"):
        assert matplotlib.image.imread(out / f"{name}.png").shape[1] > 1000
    numbers = json.loads((out / "stability.json").read_text())
    assert [list(row)[:13] for row in numbers["rows"]] == [COLUMNS] * 4
    assert [(row["arm"], row["seed"], row["dip_depth"]) for row in numbers["rows"]] == [
        ("jump", 0, 25),
        ("jump", 1, 25),
        ("linear", 0, 25),
        ("linear", 1, 25),
    ]
    assert numbers["rows"][0]["dip_time"] == 0.25
    assert numbers["rows"][0]["recovery_steps"] == 750
    assert numbers["budget"] == 1000
    assert numbers["provenance"] == ["generated"]
    assert numbers["command"].startswith("o2o-smooth report ")
    assert {"o2o_smooth", "numpy", "python"} <= set(numbers["versions"])
    assert numbers["commit"] == numbers["versions"].get("commit")
    assert "fraction" in numbers["units"]["dip_time"]
    printed = capsys.readouterr().out
    assert "jump dropped on 2 of 2 seeds" in " ".join(printed.split())
    assert "Against jump: linear left the dip as it was" in " ".join(printed.split())
    assert f"page: {out / 'report.html'}" in printed
    page = (out / "report.html").read_text()
    assert f"o2o-smooth fork {runs[0]} --arm jump --controls" in page


def test_what_the_audits_showed_stands_in_the_second_sentence(tmp_path: Path) -> None:
    folders = []
    for name, schedule, kl in (("jump", "jump", 9.0), ("linear", "linear:400", 1.0)):
        folders.append(made(tmp_path / name, seeds=3, schedule=schedule))
        rows = [
            {"env_steps": 64 + u, "updates": 50 + u, "seed": seed, "switch/updates": u, "switch/kl": kl * u}
            for u in (0, 1, 2, 4)
            for seed in range(3)
        ]
        (folders[-1] / "audit.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folders[1] / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for row in lines:  # an arm that never dips
        row["score"] = max(row["score"], 55.0) if row["phase"] == "online" else row["score"]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    out = tmp_path / "report"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    second = json.loads((out / "stability.json").read_text())["sentences"][1]
    assert "linear made the dip" in second
    assert "the KL from the policy at the switch was 21 in jump and 2.3 in linear" in second
    assert "does not say that one made the other" in (out / "report.html").read_text()


def test_names_of_arms_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = csv(tmp_path, {"jump": [50, 5, 20, 50, 50], "td_gate:100:": [50, 40, 45, 50, 52]})
    assert main(["report", "--curves", file, "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("td_gate:100:") >= 3  # two tables and the sentences
    assert "💯" not in printed


def test_curves_of_any_library_become_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = csv(
        tmp_path, {"ppo then x": [50, 5, 20, 50, 50], "stay": [50, 50, 50, 50, 50], "soft": [50, 40, 45, 50, 52]}
    )
    out = tmp_path / "report"
    ramps = ["--ramp", "soft=400", "--ramp=ppo then x=0.5"]
    assert main(["report", "--curves", file, "--baseline", "ppo then x", *ramps, "--out", str(out)]) == 0
    numbers = json.loads((out / "stability.json").read_text())
    assert [arm["arm"] for arm in numbers["arms"]] == ["ppo then x", "soft", "stay"]
    assert [arm["ramp_steps"] for arm in numbers["arms"]] == [0.5, 400, 0]
    assert numbers["sentences"][1].startswith("Against ppo then x: soft made the dip 35 points smaller")
    assert not (out / "signals.png").exists()
    assert "null dip not known" in " ".join(capsys.readouterr().out.split())


def test_one_ramp_is_for_all_that_have_none_and_refuses_what_ends_too_early(tmp_path: Path) -> None:
    file = csv(tmp_path, {"jump": [50, 5, 20, 50, 50], "soft": [50, 40, 45, 50, 52]})
    out = tmp_path / "report"
    assert main(["report", "--curves", file, "--ramp", "501", "--out", str(out)]) == 0
    numbers = json.loads((out / "stability.json").read_text())
    assert "no verdict on soft (evaluation ends before twice its ramp (1,002 steps))" in numbers["sentences"][1]
    assert numbers["arms"][0]["ramp_steps"] == 0  # known of a jump


def test_runs_and_curves_share_a_report_and_names_can_be_given(runs: list[str], tmp_path: Path) -> None:
    file = csv(tmp_path, {"theirs": [55, 5, 20, 50, 50]}, seeds=2)
    out = tmp_path / "report"
    assert main(["report", f"a={runs[0]}", f"b={runs[1]}", "--curves", file, "--out", str(out)]) == 0
    assert [a["arm"] for a in json.loads((out / "stability.json").read_text())["arms"]] == ["a", "b", "theirs"]


def test_a_folder_of_runs_is_all_of_them(runs: list[str], tmp_path: Path) -> None:
    (tmp_path / "RESULTS.md").write_text("beside them")
    out = tmp_path / "elsewhere" / "report"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    assert [a["arm"] for a in json.loads((out / "stability.json").read_text())["arms"]] == ["jump", "linear"]


def test_the_pretraining_beside_its_forks_is_no_arm(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_run(tmp_path / "base", "generated", online=0)
    out = tmp_path / "elsewhere" / "report"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    numbers = json.loads((out / "stability.json").read_text())
    assert [a["arm"] for a in numbers["arms"]] == ["jump", "linear"]
    note = f"Left out: {tmp_path / 'base'} has no evaluations after the switch."
    assert note in numbers["notes"]
    assert note.replace(" ", "") in "".join(capsys.readouterr().out.split())
    assert note in (out / "report.html").read_text()


def test_a_report_replaces_its_own_and_nothing_else(runs: list[str], tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert main(["report", *runs, "--out", str(out)]) == 0
    (out / "mine.txt").write_text("kept")
    file = csv(tmp_path, {"jump": [50, 5, 20, 50, 50]})
    assert main(["report", "--curves", file, "--out", str(out)]) == 0
    assert not (out / "signals.png").exists()  # of the report that is replaced
    assert (out / "mine.txt").read_text() == "kept"
    (out / "stability.json").write_text('{"mine": 1}')
    before = (out / "report.html").read_text()
    assert main(["report", *runs, "--out", str(out)]) == 2
    assert (out / "stability.json").read_text() == '{"mine": 1}'
    assert (out / "report.html").read_text() == before


def test_provenances_are_mixed_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = made(tmp_path / "a", provenance="minari"), made(tmp_path / "b", provenance="d4rl")
    out = tmp_path / "report"
    assert main(["report", str(a), str(b), "--out", str(out)]) == 2
    assert "--mix-provenance" in capsys.readouterr().err
    assert not out.exists()
    assert main(["report", str(a), str(b), "--mix-provenance", "--out", str(out)]) == 0
    assert "MIXED PROVENANCE (d4rl, minari)" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--out", "x"], "report needs run folders, or --curves FILE.csv"),
        (["RUN", "--curve", "x.csv"], "unknown option --curve (did you mean --curves?)"),
        (["RUN", "--baseline", "jumb"], "there is no arm 'jumb' to be the baseline; did you mean 'jump'?"),
        (["RUN", "--interval", "t"], "--interval t: choose from auto, bootstrap, studentised, sign_flip"),
        (["RUN", "--budget", "-3"], "--budget -3: give a positive number"),
        (["RUN", "--window", "x"], "--window x: give a number"),
        (["RUN", "--confidence", "1.5"], "confidence must lie between 0 and 1, got 1.5"),
        (["RUN", "--ramp", "lin=30"], "--ramp lin=30: there is no arm 'lin'"),
        (["RUN", "--budget", "5000"], "budget must lie in (0, 1000]"),
        (["=RUN"], "write NAME=FOLDER"),
        (["nowhere"], "nowhere is not a run folder"),
        (["--curves", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["RUN", "--out"], "--out needs a value"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    given = [argument.replace("RUN", runs[0]) for argument in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "report")]
    assert main(["report", *given, *out]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert says in captured.err
    assert not (tmp_path / "report").exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--help"]) == 0
    assert capsys.readouterr().out == USAGE
    assert "examples:" in USAGE
    assert all(len(line) <= 120 for line in USAGE.splitlines())
