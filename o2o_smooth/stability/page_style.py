"""The style of the report's page: light and dark by the reader's preference, readable on a phone."""

from __future__ import annotations

from o2o_smooth.stability.themed import palette


def style() -> str:
    """The style sheet."""
    return _SHEET.replace("LIGHT", palette(dark=False)).replace("DARK", palette(dark=True))


_SHEET = """
:root { color-scheme: light dark; LIGHT --page: #F6F7F8; --accent: #0072B2; --warn: #8A4B00;
  --soft: #EEF1F4; --dim: #5A616B; }
@media (prefers-color-scheme: dark) {
  :root { DARK --page: #0F1114; --accent: #56A8E8; --warn: #F2B83A; --soft: #20252B; --dim: #A9AFB8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .5rem 0; }
a { color: var(--accent); }
.meta, figcaption, .note { color: var(--dim); font-size: .88rem; }
.meta, li, .sentence { overflow-wrap: anywhere; }
.sentences { list-style: none; margin: 1.2rem 0; padding: 0; display: grid; gap: .7rem; }
.sentence { background: var(--paper); border-left: 4px solid var(--accent); border-radius: 6px; padding: .7rem 1rem;
  font-size: 1.05rem; }
.sentence b { display: block; font-size: .78rem; letter-spacing: .03em; text-transform: uppercase; color: var(--dim); }
.sentence.open { border-left-color: var(--warn); }
.warning { color: var(--warn); font-weight: 600; }
figure { margin: 1rem 0; background: var(--paper); border-radius: 8px; padding: .6rem; }
.scroll { overflow-x: auto; scrollbar-width: thin; scrollbar-color: var(--axis) var(--soft); }
.picture { display: block; width: 100%; min-width: 34rem; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--paper);
  font-size: .88rem; }
.panel { background: var(--paper); border-radius: 8px; padding: .3rem .6rem .6rem; }
.panel .note { padding: .2rem .5rem; margin: 0; }
th, td { padding: .32rem .45rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--faint); }
thead th { border-top: 0; border-bottom: 1px solid var(--axis); vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
td.text { text-align: left; }
td small { color: var(--dim); font-size: .92em; white-space: normal; }
tr.first > * { border-top: 1px solid var(--axis); }
.noise { color: var(--dim); }
.sure { font-weight: 600; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .45em; }
code { background: var(--soft); border-radius: 4px; padding: .1em .3em; font-size: .88em; overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; font-weight: 600; }
dt { font-weight: 600; margin-top: .4rem; } dd { margin: 0 0 .3rem; }
@media (max-width: 36rem) { main { padding: 1rem .7rem 2rem; } h1 { font-size: 1.3rem; } }
@media print { body { background: none; } }
"""
