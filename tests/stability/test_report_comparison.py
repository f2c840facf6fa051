"""From made-up curves with known answers to rows, differences, noise and refusals."""

from dataclasses import replace

import pytest

from o2o_smooth.errors import ConfigError, DataError
from o2o_smooth.stability.arms import arms_by_name
from o2o_smooth.stability.compared import Comparison, Settings
from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.page import arm_sentences, sentences
from o2o_smooth.stability.report_files import ramp_end
from tests.stability.curve_cases import FLAT, JUMP, LATE, SMOOTH, arms, curve

ROW = [
    "run",
    "arm",
    "seed",
    "j0",
    "dip_depth",
    "dip_area",
    "dip_time",
    "recovery_steps",
    "late_collapse",
    "final",
    "auc",
    "regret",
    "null_dip",
]


def column(comparison: Comparison, name: str) -> int:
    return [c.arm.name for c in comparison.columns].index(name)


def test_a_row_has_the_names_units_and_numbers_that_it_says() -> None:
    found = compare(arms({"jump": JUMP}, seeds=2)).columns[0].rows[1].values()
    assert list(found)[: len(ROW)] == ROW
    assert (found["run"], found["arm"], found["seed"]) == ("run-jump", "jump", 1)
    assert found["j0"] == 51
    assert found["dip_depth"] == 46  # 51 - 5
    assert found["dip_time"] == 0.1  # of the budget of 1000
    assert found["dip_time_steps"] == 100
    assert found["recovery_steps"] is None  # 51 comes once only
    assert found["recovery_censored"] is True
    assert found["final"] == 51
    assert found["late_collapse"] == 0
    assert found["drop_steps"] == 100
    area = (46 * 50 + 46 * 100 + (46 + 41) / 2 * 200 + (41 + 11) / 2 * 400 + 11 / 2 * 200) / 1000
    assert found["dip_area"] == pytest.approx(area)
    assert found["auc"] == pytest.approx(51 - area)
    assert found["regret"] == pytest.approx(1 - (51 - area) / 100)
    assert 1.3 < found["null_dip"] < 1.5  # spread 5, 20 episodes, 5 evaluations


def test_recovery_is_steps_and_a_fraction() -> None:
    (c,) = arms_by_name([curve("a", 0, (50, 5, 5, 48, 50, 50))])
    found = compare([c]).columns[0].rows[0].values()
    assert (found["recovery_steps"], found["recovery_fraction"]) == (400, 0.4)


def test_differences_are_paired_by_seed_and_count_seeds() -> None:
    found = compare(arms({"linear": SMOOTH, "jump": JUMP}, seeds=6))
    assert [c.arm.name for c in found.columns] == ["jump", "linear"]  # the jump is the baseline
    linear = found.columns[1]
    effect = linear.effects["dip_depth"]
    assert (effect.mean, effect.n, effect.up, effect.down) == (-35, 6, 0, 6)
    assert linear.differences["dip_depth"] is not None
    assert linear.differences["dip_depth"].better == 6
    assert effect.significant
    assert linear.effects["final"].mean == 10
    assert sentences(found)[1].startswith(
        "Against jump: linear made the dip 35 points smaller (74 % of it; no A/A pair)"
    )


def test_the_baseline_may_be_named_and_a_wrong_name_finds_the_right_one() -> None:
    both = arms({"linear": SMOOTH, "jump": JUMP})
    assert compare(both, Settings(baseline="linear")).columns[0].arm.name == "linear"
    with pytest.raises(ConfigError, match="no arm 'liner' to be the baseline; did you mean 'linear'"):
        compare(both, Settings(baseline="liner"))
    with pytest.raises(DataError, match="nothing to report"):
        compare([])


def test_an_effect_below_the_aa_difference_is_noise_and_the_difference_is_printed() -> None:
    """The A/A pair differs by 12 points of dip, so 10 points of another arm say nothing, 35 do."""
    shapes = {
        "jump": JUMP,
        "jump (A/A)": (50, 17, 17, 20, 40, 50),
        "cosine": (50, 15, 15, 20, 40, 50),
        "linear": SMOOTH,
    }
    found = compare(arms(shapes, seeds=6))
    assert found.aa["dip_depth"] == 12
    cosine, linear = (found.columns[column(found, name)] for name in ("cosine", "linear"))
    assert cosine.effects["dip_depth"].significant
    assert cosine.effects["dip_depth"].kind(higher_is_better=False) == "noise"
    assert linear.effects["dip_depth"].kind(higher_is_better=False) == "better"
    said = arm_sentences(found)
    assert "cosine left the dip as it was (-10 points; A/A 12: noise)" in said["cosine"]
    assert "linear made the dip 35 points smaller (74 % of it; A/A 12)" in said["linear"]
    assert said["jump (A/A)"].endswith("Control: A/A pair with jump.")


def test_without_an_aa_pair_the_margin_of_a_drop_stands_in() -> None:
    found = compare(arms({"jump": JUMP, "linear": (50, 12, 12, 10, 40, 50)}, seeds=6))
    assert found.columns[1].effects["dip_depth"].mean == -5
    assert found.columns[1].effects["dip_depth"].kind(higher_is_better=False) == "noise"
    assert not found.aa


def test_a_dip_that_is_only_postponed_is_said_in_plain_words() -> None:
    found = compare(arms({"jump": JUMP, "linear": LATE}))
    assert "linear only postponed the dip: it was not smaller (46 instead of 46 points" in sentences(found)[1]
    assert "its lowest point came 700 steps later, on 4 of 4 seeds" in sentences(found)[1]


def test_a_late_drop_is_seen_where_the_baseline_stays_down() -> None:
    """Its minimum is later still than that of the arm, so only the moment of the drop tells."""
    down = (50, 8, 8, 7, 6, 5)
    found = compare(arms({"jump": down, "linear": (50, 50, 48, 8, 5, 6)}))
    assert found.columns[1].effects["dip_time_steps"].mean < 0
    assert "linear only postponed the dip" in sentences(found)[1]
    assert "its drop came 300 steps later" in sentences(found)[1]


@pytest.mark.parametrize(("low", "refusal"), [(9.3, "random"), (9.5, None)])
def test_no_verdict_within_noise_of_random(low: float, refusal: str | None) -> None:
    """A null dip of 1.39 and a margin of 8 points: under 9.39 a fall down to the random score would not stand out."""
    shape = (low - 0.5, 0, 0, 0, 0, 0)
    found = compare(arms({"jump": shape}, seeds=2))
    assert found.baseline.outcome.refusal == refusal


def test_another_random_score_can_be_told() -> None:
    assert compare(arms({"jump": JUMP}), Settings(random_score=45.0)).baseline.outcome.refusal == "random"


def test_no_verdict_before_twice_the_ramp() -> None:
    jump, linear = arms({"jump": JUMP, "linear": SMOOTH})
    at_limit = compare([jump, replace(linear, ramp_steps=500.0)])
    assert at_limit.columns[1].outcome.refusal is None
    beyond = compare([jump, replace(linear, ramp_steps=501.0)])
    assert beyond.columns[1].outcome.refusal == "short"
    assert "no verdict on linear (evaluation ends before twice its ramp (1,002 steps))" in sentences(beyond)[1]
    assert "No verdict on a dip of linear" in arm_sentences(beyond)["linear"]
    window = compare([jump, replace(linear, ramp_steps=500.0)], Settings(window=800))
    assert window.columns[1].outcome.refusal == "short"


def test_the_end_of_the_ramps_is_shown_where_they_share_it_and_jumps_have_none() -> None:
    warm = [replace(arm, ramp_steps={"jump": 100.0}.get(arm.name, 300.0)) for arm in arms({"jump": JUMP, "a": SMOOTH})]
    assert ramp_end(compare(warm)) == 300.0
    two = [*warm, *(replace(arm, ramp_steps=400.0) for arm in arms({"b": SMOOTH}))]
    assert ramp_end(compare(two)) is None


def test_controls_are_no_arms_to_recommend_and_missing_ones_are_named() -> None:
    found = compare(arms({"jump": JUMP, "stay": FLAT, "linear": SMOOTH}), Settings(add_controls="CMD --controls"))
    assert [c.arm.name for c in found.columns] == ["jump", "linear", "stay"]
    assert "stay" not in sentences(found)[1]
    unknown = sentences(found)[2]
    assert "jump with a mixed batch, jump straight to a floor and an A/A pair" in unknown
    assert "stay (the" not in unknown
    assert "CMD --controls adds them" in unknown


def test_few_seeds_and_bootstraps_carry_their_warning() -> None:
    both = arms({"jump": JUMP, "linear": SMOOTH})
    assert "4 seeds allow 87.5 %" in sentences(compare(both))[2]
    assert "percentile bootstraps of 4 seeds" in sentences(compare(both, Settings(method="bootstrap")))[2]
    many = arms({"jump": JUMP, "linear": SMOOTH}, seeds=9)
    assert "bootstrap" not in sentences(compare(many, Settings(method="bootstrap")))[2]


def test_what_a_curve_does_not_tell_is_said() -> None:
    curves = [
        curve(arm, s, [v + (30 if arm == "x" else 0) for v in JUMP], STEPS_SPARSE, spread=None, episodes=None)
        for arm in ("jump", "x")
        for s in (0, 1, 2)
    ]
    unknown = sentences(compare(arms_by_name(curves)))[2]
    assert "how much of the dip of jump and x is evaluation noise" in unknown
    assert "twice the ramp of x" in unknown
    assert "the difference of x is pretraining" in unknown
    assert "before the first evaluation, 25,000 steps after the switch" in unknown


STEPS_SPARSE = (0, 25_000, 50_000, 75_000, 100_000, 125_000)


def test_curves_of_several_lengths_are_measured_over_what_all_have() -> None:
    curves = [curve("jump", 0, JUMP), curve("jump", 1, JUMP[:5], (0, 100, 200, 400, 800))]
    found = compare(arms_by_name(curves))
    assert found.budget == 800
    assert "all are measured over the first 800" in found.notes[0]
    assert [row.values()["final"] for row in found.columns[0].rows] == [40, 40]
    assert compare(arms_by_name(curves), Settings(budget=400)).notes == ()
    with pytest.raises(DataError, match=r"arm 'jump', seed 1: budget must lie in \(0, 800\]"):
        compare(arms_by_name(curves), Settings(budget=1000))


def test_arms_without_common_seeds_have_no_difference() -> None:
    curves = [curve("jump", 0, JUMP), curve("jump", 1, JUMP), curve("linear", 2, SMOOTH), curve("linear", 1, SMOOTH)]
    found = compare(arms_by_name(curves))
    assert found.columns[1].effects["dip_depth"].n == 1
    assert "do not have the same seeds; differences are over the 1 they share" in found.notes[0]
    apart = compare(arms_by_name([curve("jump", 0, JUMP), curve("linear", 1, SMOOTH)]))
    assert apart.columns[1].differences["dip_depth"] is None
    assert "no verdict on linear (it shares no seed with the baseline)" in sentences(apart)[1]


def test_the_share_of_a_dip_is_of_the_seeds_that_both_arms_have() -> None:
    """A third baseline seed with a far deeper dip says nothing of a difference over the other two."""
    jump = [curve("jump", seed, [90, 90 - dip, *[90] * 4]) for seed, dip in ((0, 40), (1, 40), (2, 40), (3, 88))]
    ramp = [curve("linear", seed, [90, 70, *[90] * 4]) for seed in (0, 1, 2)]
    found = compare(arms_by_name([*jump, *ramp], {"linear": 200.0}))
    (change,) = found.changes
    assert found.baseline.outcome.depth == 52.0
    assert (change.depth.mean, change.depth.base) == (-20.0, 40.0)
    assert "made the dip 20 points smaller (50 % of it;" in sentences(found)[-2]


def test_returns_have_no_regret_and_no_random_score() -> None:
    curves = [
        curve(arm, s, [40.0 * v for v in shape], unit="return", spread=None, episodes=None)
        for arm, shape in (("jump", JUMP), ("linear", SMOOTH))
        for s in range(3)
    ]
    found = compare(arms_by_name(curves, {"linear": 100}))
    row = found.columns[0].rows[0].values()
    assert row["regret"] is None
    assert row["dip_depth_relative"] is None
    assert "above a random one at the switch" in sentences(found)[2]
    assert "1,400 of return smaller" in sentences(found)[1]
    with pytest.raises(DataError, match="cannot share a table"):
        compare(arms_by_name([curves[0], curve("linear", 0, SMOOTH)]))


def test_provenances_are_mixed_only_when_asked() -> None:
    curves = [curve("jump", 0, JUMP, provenance="d4rl"), curve("linear", 0, SMOOTH, provenance="minari")]
    with pytest.raises(DataError, match="--mix-provenance"):
        compare(arms_by_name(curves))
    assert "MIXED PROVENANCE (d4rl, minari)" in compare(arms_by_name(curves), Settings(mix_provenance=True)).notes[0]


def test_a_gate_that_is_not_open_is_said() -> None:
    jump, gate = arms({"jump": JUMP, "gate": SMOOTH})
    assert (
        "what gate does once its gate is open: its weight was 0.57"
        in sentences(compare([jump, replace(gate, weight_at_end=0.57)]))[2]
    )
    assert "once its gate is open" not in sentences(compare([jump, replace(gate, weight_at_end=1.0)]))[2]


def test_one_seed_has_no_interval_and_decides_nothing() -> None:
    found = compare(arms({"jump": JUMP, "linear": SMOOTH}, seeds=1))
    assert "there is one" in sentences(found)[2]
    assert "which these seeds do not decide" in sentences(found)[1]
