"""The page in a real browser: texts and pictures have a size, nothing is fetched, light and dark are both readable.

It needs Chromium (`apt-get install chromium`) and skips, saying so, where there is none.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from o2o_smooth.stability.compared import Settings
from o2o_smooth.stability.comparison import compare
from o2o_smooth.stability.page import POLICY, About
from o2o_smooth.stability.report_files import write_report
from tests.stability.curve_cases import FLAT, JUMP, LATE, SMOOTH, arms

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]

MEASURE = """
const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
const doc = () => DOCUMENT;
const colour = (e, name) => doc().defaultView.getComputedStyle(e)[name];
addEventListener("load", () => {
  const d = doc(), svgs = [...d.querySelectorAll("svg")];
  const found = {
    text: d.body.innerText,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    width: d.documentElement.clientWidth,
    scroll: d.documentElement.scrollWidth,
    svgs: svgs.map(svg => ({box: box(svg), texts: [...svg.querySelectorAll("text")].map(t =>
      ({text: t.textContent, box: box(t), fill: colour(t, "fill")}))})),
    pictures: svgs.map(svg => colour(svg.querySelector("path"), "fill")),
    tables: [...d.querySelectorAll("table")].map(box),
    page: colour(d.body, "backgroundColor"),
    ink: colour(d.body, "color"),
    panel: colour(d.querySelector(".sentence"), "backgroundColor"),
    dim: colour(d.querySelector(".note"), "color"),
    warn: colour(d.querySelector(".warning"), "color"),
  };
  const out = document.createElement("pre");
  out.id = "measured";
  out.textContent = JSON.stringify(found);
  document.body.appendChild(out);
});
"""


def run_browser(tmp_path: Path, *arguments: str) -> str:
    """Start it with a fresh profile, without a network, and give back what it printed."""
    assert BROWSER is not None
    profile = tmp_path / f"profile-{len(list(tmp_path.glob('profile-*')))}"
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every part that a page can have."""
    out = tmp_path_factory.mktemp("report")
    shapes = {"jump": JUMP, "linear": SMOOTH, "late": LATE, "stay": FLAT, "linear (A/A)": SMOOTH}
    steps = np.array([1.0, 10, 100, 1000])
    signals = {
        "smoothing/actor_weight": {"linear": {0: (steps, np.array([0.0, 0.1, 0.5, 1.0]))}},
    }
    audits = {
        "env_steps": {"jump": dict.fromkeys((0, 1), (steps, 64 + steps))},
        **{
            f"switch/{name}": {"jump": {s: (steps, (1 + s + i) * steps) for s in (0, 1)}}
            for i, name in enumerate(("kl", "q_drift", "td_error_online", "td_error_offline_source", "actor_cka"))
        },
    }
    about = About(
        "maze: iql → sac at the switch", "4 seeds", "o2o-smooth report a b", {"numpy": "2"}, ["a"], ["A note."]
    )
    found = compare(arms(shapes), Settings(add_controls="o2o-smooth fork X --controls"))
    found = dataclasses.replace(found, notes=("Curves end at different steps.",))
    write_report(found, signals, out, about, audits)
    return out


def measure(tmp_path: Path, written: Path, *arguments: str, phone: bool = False) -> dict[str, Any]:
    """Sizes and colours of the rendered page, taken by a script that only this copy of it has."""
    page = (written / "report.html").read_text(encoding="utf-8")
    page = page.replace(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">', "")
    if phone:  # the browser's own window has a least width, so the page goes into a frame as wide as a phone
        frame = f'<iframe width="360" height="740" style="border: 0" srcdoc="{html.escape(page)}"></iframe>'
        script = MEASURE.replace("DOCUMENT", 'document.querySelector("iframe").contentDocument')
        page = f"<!doctype html><html><body>{frame}<script>{script}</script></body></html>"
    else:
        page = page.replace("</body>", f"<script>{MEASURE.replace('DOCUMENT', 'document')}</script></body>")
    copy = tmp_path / "measured.html"
    copy.write_text(page, encoding="utf-8")
    printed = run_browser(tmp_path, "--window-size=1200,900", *arguments, "--dump-dom", copy.as_uri())
    found = re.search(r'<pre id="measured">(.*?)</pre>', printed, flags=re.DOTALL)
    assert found is not None, printed[-2000:]
    measured: dict[str, Any] = json.loads(html.unescape(found[1]))
    return measured


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)" (WCAG 2)."""
    channels = [float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def overlapping(texts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Texts of one picture that lie on each other by more than a pixel."""
    boxes = [(t["text"], t["box"]) for t in texts if t["text"].strip()]
    return [
        (a, b)
        for i, (a, x) in enumerate(boxes)
        for b, y in boxes[i + 1 :]
        if min(x[2], y[2]) - max(x[0], y[0]) > 1 and min(x[3], y[3]) - max(x[1], y[1]) > 1
    ]


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_there_and_readable_in_light_and_dark(tmp_path: Path, written: Path, dark: bool) -> None:
    found = measure(tmp_path, written, *(["--force-dark-mode"] if dark else []))
    assert found["dark"] is dark
    assert "jump dropped on 4 of 4 seeds" in found["text"]
    assert "late only postponed the dip" in found["text"]
    assert len(found["svgs"]) == 4
    for svg in found["svgs"]:
        left, top, right, bottom = svg["box"]
        assert right - left > 600
        assert bottom - top > 150
        assert len(svg["texts"]) > 10
        assert overlapping(svg["texts"]) == []
        for text in svg["texts"]:
            x0, y0, x1, y1 = text["box"]
            assert left - 1 <= x0 < x1 <= right + 1, text
            assert top - 1 <= y0 < y1 <= bottom + 1, text
    assert [text["text"] for svg in found["svgs"] for text in svg["texts"]].count("online") == 1  # the weights' panel
    assert len([table for table in found["tables"] if table[2] - table[0] > 300]) == 3
    assert found["scroll"] <= found["width"]  # no sideways scrolling of the page
    assert (luminance(found["page"]) < 0.05) is dark
    for ground in (found["page"], found["panel"]):
        for words in (found["ink"], found["dim"], found["warn"]):
            assert contrast(ground, words) >= 4.5
    for svg, sheet in zip(found["svgs"], found["pictures"], strict=True):
        assert (luminance(sheet) < 0.05) is dark
        assert min(contrast(text["fill"], sheet) for text in svg["texts"]) > (4.0 if dark else 2.0)
        axis = [text["fill"] for text in svg["texts"] if re.search("steps|since", text["text"])]
        assert axis
        assert min(contrast(fill, sheet) for fill in axis) > 7


def test_no_column_is_cut_off_in_a_window_of_1100_pixels(tmp_path: Path, written: Path) -> None:
    found = measure(tmp_path, written, "--window-size=1100,900")
    assert found["width"] <= 1100
    arms_table, effects_table = found["tables"][:2]
    for table in (arms_table, effects_table):  # as wide as the picture above them, whose frame is theirs
        assert table[2] <= found["svgs"][0]["box"][2] + 1
    assert table_columns(written) == 13


def table_columns(written: Path) -> int:
    """Of the table of arms, which is wide."""
    page = (written / "report.html").read_text(encoding="utf-8")
    return page.split("<h2>Every arm</h2>")[1].split("</thead>")[0].count("<th ")


def test_a_phone_scrolls_tables_and_pictures_but_not_the_page(tmp_path: Path, written: Path) -> None:
    found = measure(tmp_path, written, phone=True)
    assert found["width"] <= 360
    assert found["scroll"] <= found["width"]
    for svg in found["svgs"]:
        assert svg["box"][2] - svg["box"][0] > 500  # wide enough to be read, inside a frame that scrolls
    assert "jump dropped on 4 of 4 seeds" in found["text"]


def asked(tmp_path: Path, page: str) -> set[str]:
    """The machines that the browser asked while it showed a page."""
    log = tmp_path / "net.json"
    run_browser(tmp_path, f"--log-net-log={log}", "--dump-dom", page)
    text = log.read_text(encoding="utf-8")
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    urls = {str(url) for event in events if (url := event.get("params", {}).get("url")) is not None}
    return {str(urlsplit(url).hostname) for url in urls if url.startswith(("http", "ws"))}


def test_no_request_leaves_the_page(tmp_path: Path, written: Path) -> None:
    """Beside what the browser asks its maker for, whatever it shows."""
    assert asked(tmp_path, (written / "report.html").as_uri()) <= asked(tmp_path, "about:blank")


def test_a_request_would_have_been_seen(tmp_path: Path) -> None:
    page = tmp_path / "leaky.html"
    page.write_text('<img src="http://leak.example/x.png">', encoding="utf-8")
    assert "leak.example" in asked(tmp_path, page.as_uri())


@pytest.mark.parametrize("dark", [False, True])
def test_a_screenshot_has_the_colours_of_its_mode(tmp_path: Path, written: Path, dark: bool) -> None:
    import matplotlib.image

    shot = tmp_path / "page.png"
    flags = ["--force-dark-mode"] if dark else []
    page = (written / "report.html").as_uri()
    run_browser(tmp_path, *flags, "--hide-scrollbars", "--window-size=1100,1600", f"--screenshot={shot}", page)
    image = matplotlib.image.imread(shot)[..., :3]
    assert image.shape[:2] == (1600, 1100)
    assert (float(np.median(image)) < 0.2) is dark
    assert len(np.unique((image[::4, ::4] * 15).astype(int).reshape(-1, 3), axis=0)) > 20  # curves, not a blank sheet
