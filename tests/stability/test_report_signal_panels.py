"""Signals have plain names, stand under the question they answer, and audits are told apart within one step."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from o2o_smooth.stability.compared import Comparison, Settings
from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.page import About
from o2o_smooth.stability.report_files import make_figures
from o2o_smooth.stability.signal_names import by_question, signal_title, told_elsewhere
from o2o_smooth.stability.signal_panels import audits_figure
from o2o_smooth.stability.signals import SignalLines, distinct
from tests.stability.curve_cases import JUMP, SMOOTH, arms


def comparison() -> Comparison:
    return compare(arms({"jump": JUMP, "linear": SMOOTH}), Settings())


def line(x: list[float], y: list[float]) -> SignalLines:
    return {seed: (np.array(x), np.array(y)) for seed in range(4)}


AUDITS = {
    "env_steps": {arm: line([0, 1, 2, 4, 8], [68, 68, 68, 68, 500]) for arm in ("jump", "linear")},
    "switch/updates": {arm: line([0, 1, 2, 4, 8], [0, 1, 2, 4, 8]) for arm in ("jump", "linear")},
    "switch/kl": {"jump": line([0, 1, 2, 4, 8], [0, 3, 4, 5, 6]), "linear": line([0, 1, 2, 4, 8], [0, 1, 1, 2, 2])},
    "switch/actor_weight": {"jump": line([0, 8], [1, 1]), "linear": line([0, 8], [0, 1])},
    "switch/actor_lr": {"jump": line([0, 8], [1, 1]), "linear": line([0, 8], [2, 2])},
    "mine/own": {"jump": line([0, 8], [1, 3])},
}


def panel(figure: Figure, title: str) -> dict[float, list[list[float]]]:
    """The lines of a panel by their width."""
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == title]
    found: dict[float, list[list[float]]] = {}
    for drawn in axes.lines:
        found.setdefault(drawn.get_linewidth(), []).append(np.asarray(drawn.get_xdata()).tolist())
    return found


def test_audits_of_one_environment_step_are_points_of_their_own_beside_the_curve() -> None:
    figure = audits_figure(comparison(), AUDITS, title="x")
    assert panel(figure, "KL from the switch")[1.6] == [[0, 1, 2, 4, 8]] * 2
    score = next(axes for axes in figure.axes if axes.get_title(loc="left") == "score")
    x = np.asarray(score.lines[0].get_xdata())
    assert x[0] == 0
    assert np.all(np.diff(x) > 0)
    assert x[-1] == 8
    scale = figure.axes[0].xaxis.get_transform()
    places = scale.transform(np.array([0.0, 1.0, 3.0, 7.0]))
    np.testing.assert_allclose(np.diff(places), np.log(2))  # logarithmic from the first update on
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert set(labels) == {"", "updates since the switch"}
    figure.draw_without_rendering()


def test_pictures_leave_out_what_stands_elsewhere_or_still() -> None:
    signals = {"smoothing/actor_weight": {"jump": line([0, 8], [1, 1]), "linear": line([0, 8], [0, 1])}}
    about = About("x", "y", "c", {}, [])
    figures = make_figures(comparison(), signals, about, AUDITS)
    titles = {axes.get_title(loc="left") for axes in figures["audits.png"][1].axes}
    assert titles == {"score", "KL from the switch", "mine/own"}
    assert figures["audits.png"][0].startswith("Signals")  # under the tables of the page
    alone = make_figures(comparison(), {}, about, AUDITS)
    assert "signals.png" not in alone
    assert "Weight of online: actor" in {axes.get_title(loc="left") for axes in alone["audits.png"][1].axes}
    assert "audits.png" not in make_figures(comparison(), signals, about)


def test_nothing_but_learning_rates_may_stand_still_at_two_values() -> None:
    rounding = {"jump": line([0, 1, 2], [1.0, 1.0000001, 0.9999999])}
    found = distinct({**AUDITS, "switch/critic_gradient_cosine": rounding, "stay": {"a": line([0, 1], [1, 1])}})
    assert not {"switch/actor_lr", "switch/critic_gradient_cosine", "stay"} & set(found)
    two = {"a": line([0, 1], [1, 1]), "b": line([0, 1], [0, 0])}
    assert list(distinct({"smoothing/actor_weight": two})) == ["smoothing/actor_weight"]
    moving = {"switch/actor_lr": {"a": line([0, 1], [1, 2])}}
    assert list(distinct(moving)) == ["switch/actor_lr"]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("smoothing/actor_weight", "Weight of online: actor"),
        ("smoothing/actor_effective_weight", "Online share of the step: actor"),
        ("switch/critic_cka", "Likeness with the switch: critic"),
        ("td_gate/td_online", "td_gate: TD error, fresh rows"),
        ("switch/mine", "switch/mine"),
    ],
)
def test_titles_are_plain_and_unknown_names_keep_theirs(name: str, title: str) -> None:
    assert signal_title(name) == title


def test_signals_stand_under_their_questions_and_the_unknown_come_last() -> None:
    names = ("mine", "switch/actor_lr", "switch/critic_cka", "switch/critic_dormant", "switch/actor_cka", "switch/kl")
    assert {question: list(own) for question, own in by_question(dict.fromkeys(names)).items()} == {
        "What the policy did": ["switch/kl"],
        "What became of the features": ["switch/critic_cka", "switch/actor_cka", "switch/critic_dormant"],
        "What the optimiser did": ["switch/actor_lr"],
        "What else was logged": ["mine"],
    }


def test_only_what_is_logged_all_the_time_is_left_out_of_audits() -> None:
    logged = ("smoothing/actor_weight", "data/offline_fraction")
    weights = dict.fromkeys(logged)
    names = ("updates", "actor_weight", "critic_weight", "offline_fraction", "kl")
    assert [told_elsewhere(f"switch/{name}", weights) for name in names] == [True, True, False, True, False]


def test_numbers_beside_the_axis_are_whole() -> None:
    audits = {"switch/kl": {"jump": line([0, 1, 2], [1000.0, 1000.2, 1000.1])}}
    figure = audits_figure(comparison(), audits, title="x")
    figure.draw_without_rendering()
    assert all(axes.yaxis.get_offset_text().get_text() == "" for axes in figure.axes)
