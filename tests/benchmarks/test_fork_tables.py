"""The table of paired differences: intervals as everywhere, over the seeds that both arms have."""

from __future__ import annotations

import io

from rich.console import Console

from o2o_smooth.benchmarks.fork import paired_note, paired_rows, paired_table
from o2o_smooth.stability.curves import Curve
from o2o_smooth.stability.intervals import paired_difference
from tests.stability.curve_cases import curve

DIPS = {"jump": (40, 44, 30, 36, 50, 41), "linear": (20, 30, 31, 30, 25, 29)}


def arms(n: int) -> dict[str, list[Curve]]:
    return {
        arm: [curve(arm, seed, [90, 90 - dip, 90, 90, 90, 90 + seed]) for seed, dip in enumerate(dips[:n])]
        for arm, dips in DIPS.items()
    }


def printed(curves: dict[str, list[Curve]]) -> str:
    file = io.StringIO()
    Console(file=file, width=80).print(paired_table(paired_rows(curves)))
    return file.getvalue()


def test_differences_have_the_reports_interval() -> None:
    (row,) = paired_rows(arms(6))
    assert (row["arm"], row["against"], row["n"]) == ("linear", "jump", 6)
    assert row["dip"] == paired_difference(DIPS["linear"], DIPS["jump"], higher_is_better=False)
    assert (row["dip"].better, row["final"].mean) == (5, 0.0)
    assert row["dip"].method == "sign_flip"
    note = paired_note([row])
    assert note == "Minus 'jump', seed by seed: mean over seeds [95 % interval]."
    text = printed(arms(6))
    assert f"{row['dip'].mean:+.1f}" in text
    assert f"[{row['dip'].low:+.1f}, {row['dip'].high:+.1f}]" in text
    assert "5 of 6" in text
    assert "±" not in text


def test_few_seeds_say_what_their_interval_holds() -> None:
    rows = paired_rows(arms(3))
    assert rows[0]["dip"].confidence == 0.75
    assert "[75 % interval: so few seeds allow no more]" in paired_note(rows)


def test_one_seed_has_no_interval_and_no_seed_no_difference() -> None:
    assert "-20.0" in printed(arms(1))
    assert "[" not in printed(arms(1))
    apart = arms(1)
    apart["linear"] = [curve("linear", 7, [90, 70, 90, 90, 90, 90])]
    (row,) = paired_rows(apart)
    assert (row["n"], row["dip"]) == (0, None)
    assert "0 of 0" in printed(apart)


def test_the_table_fits_a_terminal() -> None:
    curves = arms(6)
    curves["a name that is rather long, regime=mixed (A/A)"] = curves.pop("linear")
    (row,) = paired_rows(curves)
    text = printed(curves)
    assert max(map(len, text.splitlines())) <= 80
    for name in ("dip", "dip_area", "final"):
        assert f"[{row[name].low:+.1f}, {row[name].high:+.1f}]" in text  # in one piece
