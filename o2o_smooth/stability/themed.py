"""A figure as SVG whose colours are CSS variables, so that the page decides between light and dark."""

from __future__ import annotations

import html
import io
import re

import matplotlib
from matplotlib.figure import Figure

from o2o_smooth.stability.lettering import GREY, INK
from o2o_smooth.stability.sheet import AXIS, COLOURS, FAINT, PAPER

DARK = ("#56A8E8", "#FF8F4A", "#35C79D", "#E3A0C8", "#F2B83A", "#9AD7FF", "#F0F0F0")
"""`COLOURS` as they are told apart on a dark page."""

VARIABLES: dict[str, tuple[str, str]] = {
    INK: ("ink", "#E7E9EC"),
    GREY: ("grey", "#A3A9B2"),
    FAINT: ("faint", "#2C3138"),
    AXIS: ("axis", "#5A626D"),
    PAPER: ("paper", "#16191D"),
    **{light: (f"arm-{i}", DARK[i]) for i, light in enumerate(COLOURS)},
}
"""By the colour of a light picture: its variable, and its colour in the dark."""


def figure_svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element for the inside of a page: texts are texts, nothing is fetched from anywhere.

    Args:
        figure: A drawn figure.
        description: What somebody is told who cannot see it.
    """
    out = io.StringIO()
    # Texts as texts, and names that are the same every time; matplotlib has no other place to say so.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description, "text.parse_math": False}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", _variable, text)
    size = re.search(r'viewBox="([^"]*)"', text)
    assert size is not None
    head = f'<svg class="picture" role="img" viewBox="{size[1]}" xmlns="http://www.w3.org/2000/svg" '
    head += f'xmlns:xlink="http://www.w3.org/1999/xlink"><title>{html.escape(description)}</title>'
    return head + text[text.index(">") + 1 :].strip()


def palette(*, dark: bool) -> str:
    """The variables as CSS declarations."""
    return " ".join(f"--{name}: {other if dark else light};" for light, (name, other) in VARIABLES.items())


def _variable(found: re.Match[str]) -> str:
    colour = found[0].upper()
    return f"var(--{VARIABLES[colour][0]})" if colour in VARIABLES else found[0]
