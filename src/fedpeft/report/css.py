"""The style sheet of a report: one column, two where there is room; light, dark and printed."""

from __future__ import annotations

from collections.abc import Mapping

from fedpeft.pictures.style import DARK, LIGHT

__all__ = ["stylesheet"]


def stylesheet() -> str:
    """Return the sheet, with the palettes as CSS variables."""
    dark = "@media (prefers-color-scheme: dark) { :root {" + _variables(DARK) + "} }"
    light = ":root { color-scheme: light dark;" + _variables(LIGHT) + "}"
    printed = "@media print { :root {" + _variables(LIGHT) + "} " + _PRINT + "}"
    return "\n".join([light, dark, _SHEET, printed])


def _variables(palette: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette.items())


_SHEET = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
header { margin-bottom: 2.5rem; }
.kind { margin: 0; color: var(--soft); font-size: .8rem; letter-spacing: .04em; }
h1 { margin: .1rem 0 .4rem; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.01em; }
h2 { margin: 0 0 1rem; padding-top: 1.1rem; border-top: 2px solid var(--ink);
  font-size: 1.25rem; line-height: 1.3; }
h3 { margin: 2rem 0 .6rem; font-size: 1rem; }
section { margin: 0 0 3rem; }
p { max-width: 44rem; }
.lead { margin: 0; color: var(--soft); }
.note { margin: 1rem 0 0; padding-left: .8rem; border-left: 3px solid var(--s4); }
.files { margin: .6rem 0 1.6rem; max-width: none; color: var(--soft); font-size: .82rem; }
.files a { margin-right: .7em; }
a { color: var(--s0); text-underline-offset: .15em; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--s0); outline-offset: 3px; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
table.compare { width: 100%; }
caption { caption-side: bottom; padding-top: .7rem; text-align: left; color: var(--soft);
  font-size: .82rem; }
th, td { padding: .5rem 0 .5rem 1.1rem; text-align: right; vertical-align: top;
  white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom: 1px solid var(--soft); font-weight: 600; }
thead th .sub { white-space: normal; }
tbody tr { border-bottom: 1px solid var(--grid); }
th:first-child { position: sticky; left: 0; padding-left: 0; padding-right: .6rem;
  background: var(--page); text-align: left; white-space: normal; }
tbody th { font-weight: 600; min-width: 6.5rem; }
.sub, .status { display: block; color: var(--soft); font-size: .76rem; font-weight: 400; }
.status { color: var(--s1); }
.swatch { display: inline-block; width: .62em; height: .62em; margin-right: .5em;
  border-radius: 50%; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 2.2rem; }
figure { margin: 0 0 1.6rem; min-width: 0; }
figure.spans { grid-column: 1 / -1; }
figcaption { max-width: 44rem; margin-top: .5rem; color: var(--soft); font-size: .85rem; }
figcaption b { color: var(--ink); font-weight: 600; }
svg { display: block; max-width: 100%; height: auto; }
table.differs td { min-width: 5rem; max-width: 34rem; white-space: normal; }
table.compare > tbody > tr > th { min-width: 12rem; }
thead th:first-child { box-shadow: inset 0 -1px var(--soft); }
table.seeds tbody th { min-width: 3rem; }
table.compare tbody { border-bottom: 1px solid var(--grid); }
table.compare tbody tr { border-bottom: 0; }
thead th button { padding: 0; border: 0; background: none; color: inherit; font: inherit;
  text-align: inherit; cursor: pointer; }
thead th button:hover { text-decoration: underline; text-underline-offset: .2em; }
thead th button:focus-visible, summary:focus-visible, a:focus-visible {
  outline: 2px solid var(--s0); outline-offset: 2px; }
th[aria-sort] .name::after { content: "↕"; margin-left: .3em; color: var(--soft); }
th[aria-sort="ascending"] .name::after { content: "▲"; color: var(--ink); }
th[aria-sort="descending"] .name::after { content: "▼"; color: var(--ink); }
thead th .sub { font-weight: 400; }
.scroll { container-type: inline-size; }
tr.fold td { padding: 0 0 .5rem; text-align: left; white-space: normal; }
tr.fold details { position: sticky; left: 0; width: 100cqi; margin: 0; padding-left: 1.1rem; }
.inside { padding-bottom: .8rem; }
.inside .scroll { container-type: normal; }
h4 { margin: 1.2rem 0 .4rem; font-size: .85rem; }
pre { margin: 0; padding: .7rem .9rem; max-height: 22rem; overflow: auto; background: var(--wash);
  border-radius: 4px; font: .78rem/1.5 ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace; }
.left { text-align: left; }
table.seeds th:first-child, table.claims thead th:first-child { white-space: nowrap; }
table.seeds code { font-size: .72rem; overflow-wrap: normal; }
table.claims { width: 100%; }
table.claims tbody th { min-width: 14rem; max-width: 26rem; font-weight: 400; }
table.claims td.left { white-space: normal; min-width: 18rem; }
.verdict { font-weight: 600; }
.verdict.pass { color: var(--s2); }
.verdict.fail { color: var(--s1); }
.verdict.undecided, .verdict.not-in-this-grid { color: var(--soft); }
nav { margin-bottom: 3rem; }
nav h2 { padding-top: 0; border-top: 0; margin-bottom: .4rem; font-size: 1rem; }
nav ol { margin: 0; columns: 3 16rem; font-size: .92rem; }
.summary { max-width: 52rem; margin: 1rem 0 0; }
.note p { margin: 0 0 .3rem; }
.note ul { margin: 0; }
.lead + .note, .note + .scroll { margin-top: 1rem; }
.narrow { display: none; }
.narrow svg { width: 100%; }
table.compare td:last-child { min-width: 4.2rem; white-space: normal; }
dl { margin: 0; }
section > dl:not(.pairs) { display: grid; grid-template-columns: 11rem 1fr; gap: .5rem 1.2rem;
  max-width: 56rem; }
dt { font-weight: 600; font-size: .9rem; }
dd { margin: 0; font-size: .9rem; }
.pairs { columns: 3 17rem; column-gap: 2.2rem; }
.pairs div { display: flex; justify-content: space-between; gap: 1rem; padding: .16rem 0;
  border-bottom: 1px solid var(--grid); break-inside: avoid; }
.pairs dt { color: var(--soft); font-weight: 400; font-size: .82rem; }
.pairs dd { font-size: .82rem; text-align: right; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
details { margin-top: 1.6rem; font-size: .85rem; }
summary { cursor: pointer; color: var(--soft); }
code { font: .92em ui-monospace, "Cascadia Mono", Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; }
@media (max-width: 60rem) { .pair { grid-template-columns: 1fr; } }
@media (max-width: 34rem) {
  main { padding: 1.4rem 1rem 3rem; }
  h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
  h2, h3 { overflow-wrap: anywhere; }
  table.compare > tbody > tr > th { min-width: 7rem; max-width: 9rem;
    overflow-wrap: anywhere; }
  table.claims tbody th { min-width: 11rem; max-width: 11rem; }
  .wide { display: none; }
  .narrow { display: block; }
  section > dl:not(.pairs) { grid-template-columns: 1fr; gap: .1rem; }
  section > dl:not(.pairs) dd { margin-bottom: .7rem; }
}
"""

_PRINT = """
body { font-size: 9.5pt; }
main { max-width: none; padding: 0; }
.scroll { overflow: visible; }
table { font-size: 7.2pt; }
th, td { padding: .25rem 0 .25rem .5rem; white-space: normal; }
.sub, .status, caption { font-size: 6.4pt; }
th:first-child { position: static; }
figure, tr, dl div { break-inside: avoid; }
h2, h3 { break-after: avoid; }
.files, nav, details { display: none; }
th[aria-sort] .name::after { content: none; }
@page { margin: 12mm; }
"""
