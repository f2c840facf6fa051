"""The page needs nothing but itself, believes no name, and its pictures take their colours from it."""

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from o2o_smooth.stability.compared import Comparison, Settings
from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.page import About, render_page
from o2o_smooth.stability.panels import bands, spread_figure
from o2o_smooth.stability.report_files import make_figures
from o2o_smooth.stability.signal_panels import signals_figure
from o2o_smooth.stability.signals import SignalLines
from o2o_smooth.stability.themed import VARIABLES, figure_svg
from tests.stability.curve_cases import FLAT, JUMP, SMOOTH, arms
from tests.stability.test_plots import overlaps

ABOUT = About("maze: iql → sac", "4 seeds", "o2o-smooth report a b", {"numpy": "2"}, ["a", "b"])
EVIL = '<script>alert("x")</script>'


def comparison(*names: str) -> Comparison:
    shapes = {"jump": JUMP, **dict.fromkeys(names or ("linear",), SMOOTH), "stay": FLAT}
    return compare(arms(shapes), Settings(add_controls="o2o-smooth fork X --controls"))


def signals(*names: str) -> dict[str, dict[str, SignalLines]]:
    steps = np.array([1.0, 10, 100, 1000])
    return {name: {arm: {s: (steps, (1 + s) * steps) for s in (0, 1)} for arm in ("jump", "stay")} for name in names}


def page(found: Comparison, about: About = ABOUT, logged: dict[str, dict[str, SignalLines]] | None = None) -> str:
    figures = make_figures(found, logged or {}, about)
    return render_page(found, {caption: figure_svg(figure, caption) for caption, figure in figures.values()}, about)


class Tags(HTMLParser):
    """All tags with their attributes, and whether they are balanced."""

    VOID = ("meta", "br", "link", "img", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_nobody_for_anything() -> None:
    parser = Tags()
    text = page(comparison(), logged=signals("switch/kl"))
    parser.feed(text)
    assert parser.open == []
    names = {tag for tag, _ in parser.found}
    assert names & {"svg", "table", "figure"} == {"svg", "table", "figure"}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in parser.found:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "action"):
                assert value is not None and value.startswith("#"), (tag, name, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_what_the_page_says_is_all_there() -> None:
    text = page(comparison())
    for words in (
        "jump dropped on 4 of 4 seeds",
        "Against jump: linear made the dip 35 points smaller",
        "o2o-smooth fork X --controls",
        "Null dip",
        "4 of 4",
        "stay: stay (the offline objective for ever)",
        "o2o-smooth report a b",
        "numpy 2",
    ):
        assert words in text, words
    assert text.count("<svg") == 2  # no panel of signals without signals
    assert page(comparison(), logged=signals("a")).count("<svg") == 3


def test_names_are_never_taken_for_markup() -> None:
    about = About(EVIL, EVIL, EVIL, {EVIL: EVIL}, [EVIL], [EVIL])
    text = page(comparison(EVIL), about, signals(EVIL))
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_same_numbers_give_the_same_page() -> None:
    assert page(comparison(), logged=signals("a")) == page(comparison(), logged=signals("a"))


def test_one_arm_alone_is_a_page_too() -> None:
    assert "nothing to compare it with" in page(compare(arms({"linear": SMOOTH}, seeds=1)))


def test_every_colour_of_a_picture_is_a_variable_of_the_page() -> None:
    many = compare(arms({"jump": JUMP, "stay": FLAT, **{f"linear {i}": SMOOTH for i in range(8)}}))
    text = page(many, logged=signals("a", "b", "c"))
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", text))
    assert {name for name, _ in VARIABLES.values()} <= used
    for picture in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        root = ET.fromstring(picture)
        assert root.attrib["role"] == "img"
        assert root[0].tag.endswith("title")
        assert not re.search(r"#[0-9a-fA-F]{6}\b", picture)
        assert "rgb(" not in picture
    for mode in (r":root \{[^}]*", r"dark\) \{\s*:root \{[^}]*"):
        declared = set(re.findall(r"--([a-z0-9-]+):", re.findall(mode, text)[0]))
        assert used <= declared


def test_texts_of_a_picture_stay_texts() -> None:
    figure = make_figures(comparison(), {}, ABOUT)["curves.png"][1]
    texts = [node.text for node in ET.fromstring(figure_svg(figure, "x")).iter() if node.tag.endswith("}text")]
    assert "environment steps since the switch" in texts
    assert any(text is not None and text.startswith("linear ") for text in texts)


def test_the_band_is_the_interval_and_one_seed_has_none() -> None:
    found = comparison()
    steps, low, high = bands(found)["jump"]
    assert steps.tolist() == [0, 100, 200, 400, 800, 1000]
    assert (low[0], high[0]) == (50, 53)  # of four seeds: the least and the greatest
    assert bands(compare(arms({"jump": JUMP}, seeds=1))) == {}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_pictures_have_no_text_upon_text(count: int) -> None:
    found = comparison("linear", "a much longer name of an arm", "cosine")
    logged = signals(*(f"switch/signal_{i}" for i in range(count)))
    for figure in (
        spread_figure(found, title="Dips", subtitle="4 seeds"),
        signals_figure(found, logged, title="Signals", subtitle="4 seeds"),
    ):
        assert isinstance(figure, Figure)
        figure.canvas.draw()
        assert overlaps(figure) == []


def test_no_signals_are_no_picture() -> None:
    with pytest.raises(ValueError, match="no signals"):
        signals_figure(comparison(), {}, title="x")
