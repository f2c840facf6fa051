"""The picture: written whole, without global state, with no text upon text."""

import dataclasses
import warnings
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from o2o_smooth.errors import DataError, O2OError
from o2o_smooth.stability import plots
from o2o_smooth.stability.curves import Curve, PretrainCurve
from o2o_smooth.stability.lettering import spread_out, ticks
from o2o_smooth.stability.plots import plot_run, plot_switch

STEPS = np.array([0, 250, 500, 1000, 2000, 4000, 6000, 8000], dtype=float)


def arms(finals: dict[str, float]) -> dict[str, list[Curve]]:
    rng = np.random.default_rng(0)
    return {
        name: [
            Curve("r", name, s, STEPS, np.interp(STEPS, [0, 500, 8000], [56, 20, last]) + rng.normal(0, 3, 8))
            for s in range(4)
        ]
        for name, last in finals.items()
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved in a test."""
    figures: list[Figure] = []
    save = plots._save

    def keep(figure: Figure, path: Path) -> Path:
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of drawn texts whose boxes meet, and texts that leave the sheet."""
    unseen: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high:
                    unseen |= {tick.label1, tick.label2}
    texts = [t for t in figure.findobj(lambda artist: isinstance(artist, Text)) if isinstance(t, Text)]
    texts = [t for t in texts if t not in unseen and t.get_visible() and t.get_text().strip()]
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts]  # of the text, not of an annotation's line
    found = [(a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[i + 1 :] if x.overlaps(y)]
    width, height = figure.bbox.width, figure.bbox.height
    found += [(t, "the border") for t, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]
    assert len(boxes) > 8
    return found


def test_a_comparison_is_drawn_with_no_text_upon_text(tmp_path: Path, drawn: list[Figure]) -> None:
    ramp = (np.array([0.0, 5000, 8000]), np.array([0.0, 1, 1]))
    jump = (np.array([0.0, 8000]), np.array([1.0, 1]))
    path = plot_switch(
        arms({"jump": 55, "jump, mixed batch": 56, "linear": 57, "performance gate": 58}),
        tmp_path / "new" / "switch.png",
        title="IQL to SAC on PointMaze UMaze: what happens at the switch, and a title that takes more than a line",
        subtitle="D4RL/pointmaze/umaze-dense-v2, 4 seeds, " * 3,
        reference={"behaviour data": 55.5},
        weights={"jump": jump, "jump, mixed batch": jump, "linear": ramp, "performance gate": ramp},
        ramp_end=5000,
    )
    assert overlaps(drawn[0]) == []
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 600
    assert image.shape[1] > 1000
    assert image[0, 0].tolist() == [1, 1, 1, 1]


def test_a_run_is_drawn_with_its_pretraining_and_no_text_upon_text(tmp_path: Path, drawn: list[Figure]) -> None:
    pre = [PretrainCurve("r", s, np.linspace(0, 20_000, 5), np.linspace(s, 48 + s, 5)) for s in range(4)]
    ramp = (np.array([0.0, 5000, 8000]), np.array([0.0, 1, 1]))
    plot_run(
        arms({"linear": 57})["linear"],
        tmp_path / "stability.png",
        title="linear 5,000",
        subtitle="4 seeds",
        pretraining=pre,
        reference={"behaviour data": 52},
        weights=ramp,
        ramp_end=5000,
    )
    assert overlaps(drawn[0]) == []
    left, right = drawn[0].axes[:2]
    assert left.get_ylim() == right.get_ylim()


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_run_without_pretraining_or_before_its_switch_is_drawn(tmp_path: Path, seeds: int) -> None:
    curves = arms({"a": 50})["a"][:seeds]
    assert plot_run(curves, tmp_path / "a.png", title="a").is_file()
    pre = [PretrainCurve("r", 0, np.array([0.0, 10]), np.array([1.0, 2]))]
    assert plot_run([], tmp_path / "b.png", title="b", pretraining=pre).is_file()
    only_the_switch = [Curve("r", "a", 0, np.array([0.0]), np.array([50.0]))]
    assert plot_run(only_the_switch, tmp_path / "c.png", title="c").is_file()


def test_the_first_steps_after_the_switch_are_as_wide_as_the_rest(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_switch(arms({"a": 50}), tmp_path / "a.png", title="a")
    axes = drawn[0].axes[0]
    at = axes.transAxes.inverted().transform(axes.transData.transform([[t, 30] for t in (0, 250, 1000, 8000)]))[:, 0]
    assert at[1] - at[0] > 0.15
    assert at[2] - at[0] > 0.4
    assert at[3] == pytest.approx(1)


def test_the_mean_line_is_the_mean_over_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = [
        Curve("r", "a", 0, np.array([0.0, 10, 20]), np.array([50.0, 10, 30])),
        Curve("r", "a", 1, np.array([0.0, 10, 20]), np.array([60.0, 30, 10])),
    ]
    plot_switch({"a": curves}, tmp_path / "a.png", title="a")
    thick = max(drawn[0].axes[0].lines, key=lambda line: line.get_linewidth())
    assert np.asarray(thick.get_ydata()).tolist() == [55, 20, 20]


def test_seeds_evaluated_at_other_steps_are_averaged_on_their_lines(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = [
        Curve("r", "a", 0, np.array([0.0, 10, 20]), np.array([0.0, 10, 20])),
        Curve("r", "a", 1, np.array([0.0, 20, 30]), np.array([0.0, 40, 0])),
    ]
    plot_switch({"a": curves}, tmp_path / "a.png", title="a")
    thick = max(drawn[0].axes[0].lines, key=lambda line: line.get_linewidth())
    assert np.asarray(thick.get_xdata()).tolist() == [0, 10, 20]
    assert np.asarray(thick.get_ydata()).tolist() == [0, 15, 30]


def learned_from(provenance: str | None, dataset: str, behaviour: float | None, final: float = 50) -> list[Curve]:
    return [
        dataclasses.replace(curve, provenance=provenance, dataset=dataset, behaviour=behaviour)
        for curve in arms({"a": final})["a"]
    ]


def words(figure: Figure) -> list[str]:
    """The names beside the lines."""
    return [text.get_text() for text in figure.axes[0].texts]


def levels(figure: Figure) -> list[float]:
    """Heights of the horizontal lines."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in figure.axes[0].lines]
    return [float(y[0]) for y in lines if len(y) == 2]


def test_the_datas_own_mean_is_a_line_once_for_each_set(tmp_path: Path, drawn: list[Figure]) -> None:
    one = {"jump": learned_from("own", "x", 44.0), "linear": learned_from("own", "x", 44.0)}
    plot_switch(one, tmp_path / "a.png", title="a")
    assert "offline data  44" in words(drawn[0])
    assert levels(drawn[0]).count(44.0) == 1
    two = {**one, "gate": learned_from("own", "y", 30.0), "sac": learned_from(None, "z", None)}
    plot_switch(two, tmp_path / "b.png", title="b")
    assert {"data of jump and 1 more  44", "data of gate  30"} <= set(words(drawn[1]))
    assert {44.0, 30.0} <= set(levels(drawn[1]))
    assert overlaps(drawn[1]) == []


def test_data_far_from_the_curves_are_named_and_do_not_flatten_them(tmp_path: Path, drawn: list[Figure]) -> None:
    for i, value in enumerate((-5000.0, 5000.0)):
        plot_switch({"a": learned_from("own", "x", value)}, tmp_path / "a.png", title="a")
        low, high = drawn[i].axes[0].get_ylim()
        assert -10 < low < high < 80
        assert value not in levels(drawn[i])
        assert f"offline data  {value:,.0f} ({'below' if value < 0 else 'above'} the axis)" in words(drawn[i])
        assert overlaps(drawn[i]) == []


def test_data_a_little_beyond_the_curves_are_still_a_line_inside(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_switch({"a": learned_from("own", "x", 80.0)}, tmp_path / "a.png", title="a")
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 80.0 < high
    assert 80.0 in levels(drawn[0])


def test_pretraining_alone_is_drawn_beside_its_data(tmp_path: Path, drawn: list[Figure]) -> None:
    pre = [
        PretrainCurve("r", s, np.linspace(0, 20_000, 5), np.linspace(s, 48 + s, 5), behaviour=44.0, dataset="x")
        for s in (0, 1)
    ]
    plot_run([], tmp_path / "a.png", title="a", pretraining=pre)
    assert words(drawn[0]) == ["offline data  44"]


def test_pictures_of_mixed_provenance_are_refused_or_say_so(tmp_path: Path, drawn: list[Figure]) -> None:
    mixed = {"jump": learned_from("minari", "x", 44.0), "linear": learned_from("generated", "y", 30.0)}
    with pytest.raises(DataError, match="--mix-provenance"):
        plot_switch(mixed, tmp_path / "a.png", title="a")
    with pytest.raises(DataError, match="--mix-provenance"):
        plot_run([*mixed["jump"], *mixed["linear"]], tmp_path / "a.png", title="a")
    assert not list(tmp_path.iterdir())
    plot_switch(mixed, tmp_path / "a.png", title="a", subtitle="4 seeds", mix_provenance=True)
    assert any("MIXED PROVENANCE (minari, generated); 4 seeds" in text.get_text() for text in drawn[0].texts)
    plot_switch({"jump": mixed["jump"]}, tmp_path / "a.png", title="a", subtitle="4 seeds", mix_provenance=True)
    assert not any("MIXED" in text.get_text() for text in drawn[1].texts)


def test_a_picture_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "stability.png"
    target.write_bytes(b"the old one")

    def cut(self: Figure, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", cut)
    with pytest.raises(O2OError, match="disk full"):
        plot_switch(arms({"a": 50}), target, title="a")
    assert target.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["stability.png"]


def test_drawing_leaves_pyplot_alone(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_switch(arms({"a": 50}), tmp_path / "a.png", title="a")
    assert plt.get_fignums() == before


def test_a_seed_that_came_to_nan_is_drawn_as_a_gap(tmp_path: Path, drawn: list[Figure]) -> None:
    fine = Curve("r", "a", 0, np.array([0.0, 10, 20]), np.array([50.0, 40, 45]))
    lost = Curve("r", "a", 1, np.array([0.0, 10, 20]), np.array([50.0, 40, np.nan]))
    never = Curve("r", "b", 0, np.array([0.0, 10, 20]), np.full(3, np.nan))
    plot_switch({"a": [fine, lost], "b": [never]}, tmp_path / "a.png", title="a")
    plot_run([never], tmp_path / "b.png", title="b")
    assert "a  nan" in [text.get_text() for text in drawn[0].axes[0].texts]


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no arms"):
        plot_switch({}, tmp_path / "a.png", title="a")
    with pytest.raises(ValueError, match="'b' has no curves"):
        plot_switch({"b": []}, tmp_path / "a.png", title="a")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_run([], tmp_path / "a.png", title="a")


def test_labels_keep_their_distance_and_their_order() -> None:
    wanted = [10.0, 10.5, 11.0, 40.0, 59.9]
    placed = spread_out(wanted, 5.0, 0.0, 60.0)
    assert all(b - a >= 5 - 1e-9 for a, b in pairwise(placed))
    assert placed[1] == pytest.approx(10.5)
    assert placed[3:] == [40.0, 59.9]
    assert spread_out([0.0, 0.0, 0.0], 5.0, 0.0, 60.0) == [0, 5, 10]


@pytest.mark.parametrize(("first", "last"), [(250.0, 8000.0), (250.0, 1e6), (64.0, 3001.0), (1.0, 1.0)])
def test_ticks_begin_at_the_switch_and_end_with_the_budget(first: float, last: float) -> None:
    found = ticks(first, last, 0.075)
    assert found[0] == 0
    assert found[-1] == last
    assert found == sorted(set(found))
    assert len(found) <= 14
