"""Every branch of the words: numbers in, the sentence that a reader must get out."""

from dataclasses import replace
from typing import Any

import pytest

from o2o_smooth.stability.verdict import (
    Change,
    Effect,
    Outcome,
    Unknowns,
    change_clause,
    postponed,
    refused,
    what_changed,
    what_happened,
    what_is_not_known,
    word,
)

T = 10_000.0
JUMP = Outcome("jump", 4, 56.2, 60.0, 7.0, 4, 2, 250.0, 54.0, ramp_steps=0.0, random=0.0)
LINEAR = replace(JUMP, name="linear", depth=22.0, final=62.0, recovered=4, dip_time=3000.0, ramp_steps=4000.0)
CLEAR = Effect(-38.0, -50.0, -20.0, 8, 0, 8, significant=True, noise=5.0, aa=5.0, base=60.0)
NONE = Effect(0.0, 0.0, 0.0, 0, 0, 0, significant=False)
SAME = Effect(0.4, -1.0, 2.0, 8, 5, 3, significant=False, noise=5.0, aa=5.0, base=60.0)


def change(arm: Outcome = LINEAR, **effects: Effect) -> Change:
    found = {"depth": CLEAR, "area": CLEAR, "final": SAME, "minimum": SAME, "onset": SAME, **effects}
    return Change(arm, **found)


@pytest.mark.parametrize(
    ("mean", "up", "down", "n", "significant", "noise", "kind"),
    [
        (-38, 0, 8, 8, True, 5, "better"),
        (+38, 8, 0, 8, True, 5, "worse"),
        (-4.9, 0, 8, 8, True, 5, "noise"),  # smaller than the A/A difference, whatever the test says
        (-5.0, 0, 8, 8, True, 5, "noise"),
        (-5.1, 0, 8, 8, True, 5, "better"),
        (-38, 0, 3, 3, False, 5, "better"),  # three seeds cannot be significant, but they can agree
        (-38, 1, 3, 4, False, 5, "undecided"),
        (-38, 0, 2, 2, False, 5, "undecided"),
        (0, 0, 0, 0, False, 5, "unpaired"),
    ],
)
def test_what_counts_as_an_effect(
    mean: float, up: int, down: int, n: int, significant: bool, noise: float, kind: str
) -> None:
    effect = Effect(mean, 0, 0, n, up, down, significant, noise)
    assert effect.kind(higher_is_better=False) == kind
    other = {"better": "worse", "worse": "better"}.get(kind, kind)
    assert effect.kind(higher_is_better=True) == other


def test_a_drop_says_how_far_on_how_many_seeds_and_whether_it_came_back() -> None:
    assert what_happened(JUMP, T) == (
        "jump dropped on 4 of 4 seeds: 60 points under its score at the switch, 56, on average over all seeds "
        "(a policy that never changed would show 7), lowest after 250 steps; 2 of these came back within 10,000 steps, "
        "and the mean final score was 54, 2.2 points below where it began."
    )


@pytest.mark.parametrize(
    ("dropped", "recovered", "says"),
    [
        (4, 0, "none of them came back"),
        (4, 4, "all of these came back"),
        (1, 0, "it did not come back"),
        (1, 1, "; it came back within"),
    ],
)
def test_coming_back_is_counted(dropped: int, recovered: int, says: str) -> None:
    assert says in what_happened(replace(JUMP, dropped=dropped, recovered=recovered), T)


def test_a_final_score_above_the_start_is_said_so() -> None:
    assert "and the mean final score was 70, 14 points above where it began." in what_happened(
        replace(JUMP, final=70.0), T
    )


def test_no_drop_is_said_with_the_noise_beside_it() -> None:
    said = what_happened(replace(JUMP, dropped=0, recovered=0, depth=5.0), T)
    assert said.startswith("jump did not drop on any of 4 seeds: its lowest evaluation lay 5 points under")
    assert "(a policy that never changed would show 7)" in said


def test_an_unknown_null_dip_is_said() -> None:
    assert "(null dip not known)" in what_happened(replace(JUMP, null_dip=None), T)


def test_returns_are_not_points() -> None:
    said = what_happened(replace(JUMP, j0=2000.0, depth=1500.0), T, "return")
    assert "1,500 of return under its return at the switch, 2,000" in said
    assert "point" not in said


def test_no_verdict_within_noise_of_random() -> None:
    near = replace(JUMP, j0=6.0, refusal="random")
    assert what_happened(near, T) == (
        "No verdict on a dip of jump: its score at the switch, 6, is within noise of the random policy's (0; null dip "
        "7), so there is nothing to lose that could be seen."
    )
    assert "dropped" not in what_happened(near, T)
    clause = change_clause(change(replace(LINEAR, refusal="random")), JUMP, T)
    assert clause == "no verdict on linear (its score at the switch is within noise of random)"


def test_no_verdict_before_twice_the_ramp() -> None:
    short = replace(LINEAR, ramp_steps=6000.0, refusal="short")
    assert refused(short, T) == (
        "No verdict on a dip of linear: evaluation ends at 10,000 steps, before twice its ramp (12,000), and a dip "
        "that is only postponed comes at the end of the ramp."
    )
    assert change_clause(change(short), JUMP, T) == (
        "no verdict on linear (evaluation ends before twice its ramp (12,000 steps))"
    )
    assert refused(LINEAR, T) == ""


def test_no_verdict_on_anything_where_there_is_none_on_the_baseline() -> None:
    assert change_clause(change(), replace(JUMP, refusal="random"), T) == (
        "no verdict on linear (there is none on the baseline)"
    )
    assert change_clause(change(depth=NONE), JUMP, T) == "no verdict on linear (it shares no seed with the baseline)"


def test_a_smaller_dip_says_by_how_much_of_which_and_what_chance_does() -> None:
    assert what_changed([change()], JUMP, T) == (
        "Against jump: linear made the dip 38 points smaller (63 % of it; A/A 5) on 8 of 8 seeds, and ended within "
        "noise of the baseline (+0.4; A/A 5)."
    )


def test_a_deeper_dip_is_said_so() -> None:
    worse = replace(CLEAR, mean=20.0, up=7, down=1)
    assert "made the dip 20 points deeper (33 % of it; A/A 5) on 7 of 8 seeds" in change_clause(
        change(depth=worse), JUMP, T
    )


def test_a_difference_below_the_aa_pair_is_noise() -> None:
    assert "left the dip as it was (+0.4 points; A/A 5: noise)" in change_clause(change(depth=SAME), JUMP, T)


def test_neither_dropped() -> None:
    calm = replace(JUMP, dropped=0), change(replace(LINEAR, dropped=0), depth=SAME)
    assert "did not drop either" in change_clause(calm[1], calm[0], T)


def test_seeds_that_do_not_agree_decide_nothing() -> None:
    split = Effect(-12.0, -30.0, 6.0, 4, 1, 3, significant=False, noise=5.0)
    assert change_clause(change(depth=split, final=split), JUMP, T) == (
        "linear may have changed the dip (-12 points; no A/A pair; smaller on 3 of 4 seeds), which these seeds do not "
        "decide, and ended not told apart from the baseline (-12; no A/A pair)"
    )


@pytest.mark.parametrize(("mean", "side", "k"), [(9.0, "higher", 8), (-9.0, "lower", 8)])
def test_final_scores_are_told_apart(mean: float, side: str, k: int) -> None:
    final = Effect(mean, 0, 0, 8, 8 if mean > 0 else 0, 0 if mean > 0 else 8, significant=True, noise=5.0, aa=5.0)
    assert f"ended 9 points {side} ({k} of 8 seeds; A/A 5)" in change_clause(change(final=final), JUMP, T)


LATER = Effect(2750.0, 1000.0, 4000.0, 4, 3, 1, significant=False)
DEEP = replace(LINEAR, depth=59.0)


def test_a_dip_that_only_comes_later_is_called_postponed() -> None:
    alike = replace(SAME, mean=-1.0)
    assert change_clause(change(DEEP, depth=alike, minimum=LATER, area=SAME), JUMP, T) == (
        "linear only postponed the dip: it was not smaller (59 instead of 60 points; A/A 5), but its lowest point came "
        "2,750 steps later, on 3 of 4 seeds, and it ended within noise of the baseline (+0.4; A/A 5)"
    )
    assert (
        "its drop came 2,750 steps later, on 3 of 4 seeds, so that 38 less was lost a step on average (A/A 5)"
        in change_clause(change(DEEP, depth=SAME, onset=LATER), JUMP, T)
    )


def test_two_seeds_with_a_much_smaller_dip_have_not_only_postponed_it() -> None:
    """Two seeds can decide nothing, but 36 -> 8.5 is not "it was not smaller"."""
    depth = Effect(-27.5, -30.0, -25.0, 2, 0, 2, significant=False, noise=8.0, base=36.0)
    found = change(replace(LINEAR, n=2, dropped=2), depth=depth, minimum=replace(LATER, n=2, up=2, down=0), area=SAME)
    assert postponed(found, JUMP, T) is None
    assert change_clause(found, JUMP, T) == (
        "linear may have made the dip smaller (8.5 instead of 36 points; no A/A pair) on 2 of 2 seeds, which these "
        "seeds do not decide; its lowest point came 2,750 steps later, on 2 of 2 seeds, and it ended within noise of "
        "the baseline (+0.4; A/A 5)"
    )
    deeper = replace(found, depth=replace(depth, mean=20.0, up=2, down=0))
    assert "may have made the dip deeper (56 instead of 36 points; no A/A pair) on 2 of 2" in change_clause(
        deeper, JUMP, T
    )


def test_a_deeper_dip_that_comes_later_is_postponed_and_says_both_depths() -> None:
    worse = replace(CLEAR, mean=20.0, up=8, down=0)
    said = change_clause(change(DEEP, depth=worse, minimum=LATER), JUMP, T)
    assert "only postponed the dip: it was not smaller (80 instead of 60 points; A/A 5)" in said


def test_shares_and_sizes_are_of_the_seeds_that_both_have() -> None:
    """The baseline has more seeds here, whose mean (60) is not that of the pairs (50)."""
    half = replace(CLEAR, mean=-25.0, base=50.0)
    assert "25 points smaller (50 % of it; A/A 5)" in change_clause(change(depth=half), JUMP, T)
    alike = replace(SAME, base=50.0)
    assert "(50 instead of 50 points; A/A 5)" in change_clause(change(DEEP, depth=alike, minimum=LATER), JUMP, T)
    unknown = replace(CLEAR, base=None)
    assert "38 points smaller (A/A 5) on 8 of 8 seeds" in change_clause(change(depth=unknown), JUMP, T)


@pytest.mark.parametrize(
    ("arm", "effects", "baseline"),
    [
        (DEEP, {"minimum": replace(LATER, mean=499.0)}, JUMP),  # less than a twentieth of the budget
        (DEEP, {"minimum": replace(LATER, up=2, down=2)}, JUMP),  # half of the seeds
        (DEEP, {"minimum": replace(LATER, noise=3000.0)}, JUMP),  # an A/A pair differs as much
        (DEEP, {"minimum": replace(LATER, n=1, up=1)}, JUMP),
        (DEEP, {"minimum": LATER, "depth": CLEAR}, JUMP),  # smaller and later is smaller
        (replace(DEEP, dropped=1), {"minimum": LATER}, JUMP),
        (DEEP, {"minimum": LATER}, replace(JUMP, dropped=1)),
        (replace(DEEP, refusal="short"), {"minimum": LATER}, JUMP),
    ],
)
def test_what_is_not_postponed(arm: Outcome, effects: dict[str, Effect], baseline: Outcome) -> None:
    assert postponed(change(arm, **{"depth": SAME, **effects}), baseline, T) is None


def test_several_arms_make_one_sentence_and_many_are_counted() -> None:
    arms = [change(replace(LINEAR, name=name)) for name in "abcdef"]
    said = what_changed(arms, JUMP, T)
    assert said.startswith("Against jump: a made the dip")
    assert said.count("made the dip") == 4
    assert said.endswith("; 2 more below.")
    assert "no other arm beside jump but controls" in what_changed([], JUMP, T)


@pytest.mark.parametrize(
    ("unknown", "says"),
    [
        ({"missing_controls": ("stay", "an A/A pair"), "add_controls": "CMD"}, "stay and an A/A pair; CMD adds them"),
        ({"seeds": 1}, "how other seeds would do: there is one"),
        ({"seeds": 4, "attainable": 0.875}, "luck at 95 % confidence: 4 seeds allow 87.5 %"),
        ({"seeds": 8, "bootstrap": True}, "percentile bootstraps of 8 seeds are too narrow"),
        ({"seeds": 8, "null_unknown": ("a", "b")}, "how much of the dip of a and b is evaluation noise"),
        ({"seeds": 8, "ramp_unknown": ("a",)}, "whether evaluation went on to twice the ramp of a (--ramp"),
        ({"seeds": 8, "half_open": (("gate", 0.57),)}, "what gate does once its gate is open: its weight was 0.57"),
        ({"seeds": 8, "unforked": ("a",)}, "how much of the difference of a is pretraining"),
        ({"seeds": 8, "random_unknown": True}, "above a random one at the switch (--random-score says)"),
        ({"seeds": 8, "sparse": 25000.0}, "before the first evaluation, 25,000 steps after the switch"),
        ({"seeds": 8}, "whether this holds on other tasks"),
    ],
)
def test_each_unknown_is_named(unknown: dict[str, Any], says: str) -> None:
    said = what_is_not_known(Unknowns(**unknown))
    assert said.startswith("Not known: ")
    assert says in said
    assert said.count("Not known") == 1


@pytest.mark.parametrize(
    ("effect", "higher", "judged", "brief", "says"),
    [
        (CLEAR, False, True, False, "better"),
        (CLEAR, True, True, False, "worse"),
        (CLEAR, None, True, False, "earlier"),
        (replace(CLEAR, mean=38.0, up=8, down=0), None, True, False, "later"),
        (replace(CLEAR, significant=False), False, True, False, "better on all 8"),
        (replace(CLEAR, significant=False), False, True, True, "better"),
        (CLEAR, False, False, False, "no verdict"),
        (SAME, False, True, False, "noise"),
        (replace(SAME, mean=9.0), False, True, False, "not decided"),
        (NONE, False, True, False, "no common seeds"),
    ],
)
def test_the_word_of_a_table(effect: Effect, higher: bool | None, judged: bool, brief: bool, says: str) -> None:
    assert word(effect, higher_is_better=higher, judged=judged, brief=brief) == says
