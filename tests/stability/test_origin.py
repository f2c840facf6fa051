"""Where a score comes from: what is refused, what is let through, and what the tables say of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.console

from o2o_smooth.errors import DataError
from o2o_smooth.stability.curves import Curve, read_curves, read_pretraining
from o2o_smooth.stability.origin import References, offline_data, score_block
from o2o_smooth.stability.report import arm_table, render_table, rich_table, switch_line, table_note

TASK = {"id": "maze", "ref_random": 10.0, "ref_expert": 210.0, "ref_source": "measured"}
DATASET = {"id": "o2o-smooth/maze-v0", "provenance": "generated", "return_mean": 110.0}


def curve(seed: int = 0, scores: tuple[float, ...] = (50, 10, 55), **origin: Any) -> Curve:
    return Curve("r", "a", seed, np.arange(0.0, 100.0 * len(scores), 100.0), np.array(scores, dtype=float), **origin)


def learned_from(provenance: str | None, dataset: str = "maze", behaviour: float = 44.0, **more: Any) -> list[Curve]:
    return [curve(s, provenance=provenance, dataset=dataset, behaviour=behaviour, **more) for s in (0, 1)]


def shown(rows: list[dict[str, Any]], width: int = 80) -> str:
    out = io.StringIO()
    rich.console.Console(file=out, width=width).print(rich_table(rows))
    return out.getvalue()


# Refused, and let through


def test_two_provenances_in_one_table_are_refused_and_the_cure_is_named() -> None:
    arms = {"a": learned_from("minari"), "b": learned_from("generated"), "c": learned_from("minari")}
    with pytest.raises(DataError) as refusal:
        arm_table(arms)
    text = str(refusal.value)
    assert "learned from minari data (a, c) and from generated data (b) do not belong in one table" in text
    assert "--mix-provenance" in text
    assert "\n" not in text
    assert len(arm_table({name: arms[name] for name in "ac"})) == 2


def test_seeds_of_one_arm_are_no_hiding_place_for_a_second_provenance() -> None:
    arm = [*learned_from("d4rl"), *learned_from("own")]
    with pytest.raises(DataError, match=r"from d4rl data \(a\) and from own data \(a\)"):
        arm_table({"a": arm})
    (row,) = arm_table({"a": arm}, mix_provenance=True)
    assert row["provenance"] == "d4rl + own"
    assert "MIXED PROVENANCE (d4rl, own)" in table_note([row])


def test_mixed_by_flag_every_arm_is_marked_and_the_note_warns() -> None:
    arms = {"jump": learned_from("minari", "X", 44.0), "linear": learned_from("generated", "Y", 61.0), "sac": [curve()]}
    rows = arm_table(arms, mix_provenance=True)
    assert [row["provenance"] for row in rows] == ["minari", "generated", None]
    note = table_note(rows)
    assert note.startswith("MIXED PROVENANCE (minari, generated): these scores cannot be compared. ")
    assert "X (minari), mean score 44.0 (jump); Y (generated), mean score 61.0 (linear)." in note
    names = [line.split("|")[1].strip() for line in render_table(rows).splitlines()[2:]]
    assert names == ["jump (minari)", "linear (generated)", "sac"]
    assert "jump (minari)" in shown(rows, 120)
    assert "MIXED PROVENANCE" in shown(rows)


def test_arms_without_offline_data_stand_beside_any() -> None:
    arms = {"iql": learned_from("minari"), "sac": [curve()]}
    rows = arm_table(arms)
    assert [(row["provenance"], row["dataset"], row["behaviour"]) for row in rows] == [
        ("minari", "maze", 44.0),
        (None, None, None),
    ]
    assert "MIXED" not in table_note(rows)
    assert table_note(rows).startswith("Offline data: maze (minari), mean score 44.0 (iql). ")
    with pytest.raises(DataError, match=r"from minari data \(iql\) and from own data \(td3_bc\)"):
        arm_table({**arms, "td3_bc": learned_from("own")})


def test_scores_of_other_references_are_refused_whatever_the_flag() -> None:
    old, new = References(10.0, 210.0, "measured once"), References(12.5, 210.0, "measured again")
    arms = {"a": learned_from("own", references=old), "b": learned_from("own", references=new)}
    for mix in (False, True):
        with pytest.raises(DataError) as refusal:
            arm_table(arms, mix_provenance=mix)
        assert "10 and 210 in a (measured once) and 12.5 and 210 in b (measured again)" in str(refusal.value)
    reworded = learned_from("own", references=References(10.0, 210.0, "the same, in other words"))
    assert len(arm_table({"a": arms["a"], "b": reworded})) == 2


# What tables say


def test_both_tables_report_the_datas_own_score_beside_the_policies() -> None:
    arms = {"jump": learned_from("generated", "X", 44.04), "linear": learned_from("generated", "X", 44.04)}
    rows = arm_table(arms)
    assert [row["behaviour"] for row in rows] == [44.04, 44.04]
    assert table_note(rows).startswith("Offline data: X (generated), mean score 44.0. J0: ")
    assert "Offline data: X (generated), mean score 44.0." in shown(rows)
    json.dumps(rows, allow_nan=False)


def test_returns_and_sets_of_one_name_and_other_contents_are_told_apart() -> None:
    arms = {
        "a": [curve(scores=(5, 2, 4), unit="return", provenance="own", dataset="my.npz", behaviour=3.14159)],
        "b": [curve(scores=(5, 2, 4), unit="return", provenance="own", dataset="my.npz", behaviour=4.0)],
        "c": [curve(scores=(5, 2, 4), unit="return", provenance="own", dataset="my.npz")],
    }
    note = table_note(arm_table(arms))
    assert (
        "Offline data: my.npz (own), mean return 3.14 (a); my.npz (own), mean return 4.00 (b); "
        "my.npz (own), mean return not known (c). " in note
    )


def test_a_row_without_offline_data_says_nothing_of_any() -> None:
    assert "Offline data" not in table_note(arm_table({"sac": [curve()]}))


@pytest.mark.parametrize("mix", [False, True])
def test_80_columns_are_kept_with_the_data_beside_the_policies(mix: bool) -> None:
    known: dict[str, Any] = {"spread": np.full(3, 18.0), "episodes": np.full(3, 20)}
    names = ("jump", "jump, mixed batch", "linear", "performance gate")
    kinds = ("minari", "generated") if mix else ("generated", "generated")
    arms = {
        name: [curve(s, provenance=kind, dataset="o2o-smooth/pointmaze/umaze-dense-v0", **known) for s in range(16)]
        for name, kind in zip(names, kinds * 2, strict=True)
    }
    lines = shown(arm_table(arms, mix_provenance=mix)).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("16 of 16" in line for line in lines) == 4


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    rows = arm_table({"run[1]": learned_from("own", "/data/[bold]/x.npz"), "[red]": learned_from("own", "/d/y.npz")})
    text = shown(rows, 200)
    assert [line.split()[0] for line in text.splitlines() if "100" in line] == ["run[1]", "[red]"]
    assert "/data/[bold]/x.npz (own)" in text


def test_a_run_that_stopped_at_the_switch_is_one_line_with_its_data() -> None:
    curves = [curve(s, (60.0 + s,), provenance="generated", behaviour=44.0) for s in (0, 1, 2)]
    assert switch_line(curves) == "score at the switch 61.0 ± 1.0 (3 seeds); offline data 44.0 (generated)"
    assert switch_line([curve(0, (61.0,))]) == "score at the switch 61.0 (1 seed)"
    returns = [curve(0, (-1234.5,), unit="return", provenance="own", behaviour=-3.0)]
    assert switch_line(returns) == "return at the switch -1234.5 (1 seed); offline data -3.00 (own)"


# From manifests


def write(folder: Path, manifest: dict[str, Any] | None, *, score: bool = True, **columns: Any) -> Path:
    """A run folder of one seed; return 110 is score 50."""
    folder.mkdir(parents=True)
    rows = [
        {"phase": phase, "env_steps": step, "updates": 5, "seed": 0, "return_mean": 110.0, "score": score and 50.0}
        for phase, step in (("offline", 0), ("switch", 0), ("online", 10))
    ]
    for row in rows:
        row |= columns | ({} if score else {"score": None})
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def test_the_score_block_says_what_the_score_was_learned_from_and_counts_from() -> None:
    assert score_block(TASK, DATASET) == {
        "provenance": "generated",
        "references": {"random": 10.0, "expert": 210.0, "source": "measured"},
        "behaviour_return": 110.0,
        "behaviour_score": 50.0,
    }
    assert score_block({"id": "other", "ref_random": None}, DATASET)["behaviour_score"] is None
    assert score_block({"id": "other"}, DATASET)["behaviour_return"] == 110.0
    online = score_block(TASK, None)
    assert (online["provenance"], online["behaviour_return"], online["behaviour_score"]) == (None, None, None)
    assert online["references"]["expert"] == 210.0


@pytest.mark.parametrize("older", [False, True], ids=["with score block", "without"])
def test_curves_carry_provenance_and_behaviour_in_their_unit(older: bool, tmp_path: Path) -> None:
    manifest: dict[str, Any] = {"task": TASK, "dataset": DATASET}
    if not older:
        manifest["score"] = score_block(TASK, DATASET)
    in_scores = write(tmp_path / "a", manifest)
    for one in (*read_curves(in_scores), *read_pretraining(in_scores)):
        assert (one.provenance, one.dataset, one.behaviour) == ("generated", "o2o-smooth/maze-v0", 50.0)
        assert one.references == (10.0, 210.0, "measured")
    in_returns = write(tmp_path / "b", manifest, score=False)
    assert [one.unit for one in read_curves(in_returns)] == ["return"]
    for one in (*read_curves(in_returns), *read_pretraining(in_returns)):
        assert (one.provenance, one.behaviour, one.references) == ("generated", 110.0, None)


def test_without_a_manifest_nothing_is_known_but_what_the_rows_tell(tmp_path: Path) -> None:
    (bare,) = read_curves(write(tmp_path / "a", None))
    assert (bare.provenance, bare.dataset, bare.behaviour, bare.references) == (None, None, None, None)
    (told,) = read_curves(write(tmp_path / "b", None, provenance="minari"))
    assert (told.provenance, told.dataset, told.behaviour) == ("minari", None, None)
    (online,) = read_curves(write(tmp_path / "c", {"task": TASK, "dataset": None}, provenance=None))
    assert (online.provenance, online.behaviour, online.references) == (None, None, (10.0, 210.0, "measured"))


def test_one_set_of_data_is_counted_once_however_many_runs_had_it() -> None:
    arms = {"a": learned_from("own"), "b": [curve()], "c": learned_from("own", behaviour=44.0 + 1e-9)}
    (data,) = offline_data(arms)
    assert (data.name, data.behaviour, data.arms) == ("maze (own)", 44.0, ("a", "c"))
