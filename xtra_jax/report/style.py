"""How a page looks: on a phone and on a wide screen, in light and in dark, and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1b1e23; --faint: #5b626d; --line: #dde1e7;
  --link: #1f5fa8;
  --c0: #1f5fa8; --c1: #c45a00; --c2: #2b7a4b; --c3: #7a4bb0; --c4: #b02a5b; --c5: #4d6470;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e7eaee; --faint: #a3abb6; --line: #323943;
    --link: #7db4f0;
    --c0: #6cabf0; --c1: #f29a4a; --c2: #6cc48d; --c3: #b794e8; --c4: #ee83a9; --c5: #9fb4bf;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 74rem; background: var(--paper);
  color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans",
    sans-serif;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
.subtitle, .note, footer { color: var(--faint); }
.note, .notes, footer { font-size: .875rem; }
nav { margin: .9rem 0 0; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; font-size: .9375rem; }
.tiles { display: grid; gap: .75rem; margin: 1.25rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.tiles div { background: var(--card); border-radius: .6rem; padding: .7rem .9rem; }
.tiles dt { color: var(--faint); font-size: .8125rem; }
.tiles dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dd small { display: block; font-size: .8125rem; font-weight: 400; color: var(--faint); }
.charts { display: grid; gap: 1rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); }
figure { margin: 0; }
.chart { background: var(--card); border-radius: .6rem; padding: .7rem .7rem .6rem; }
.chart > svg { display: block; width: 100%; height: auto; overflow: visible; }
figcaption { font-weight: 600; font-size: .9375rem; margin: 0 0 .3rem; }
svg text { font-size: 11.5px; fill: var(--faint); font-variant-numeric: tabular-nums; }
svg .middle { text-anchor: middle; }
svg .end { text-anchor: end; }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.dashed { stroke-dasharray: 5 4; }
.dot { fill: currentColor; }
.band { fill: currentColor; opacity: .16; }
.star { fill: currentColor; stroke: var(--card); stroke-width: 1; }
.plain { color: var(--faint); }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .35rem 0 0;
  padding: 0; font-size: .8125rem; color: var(--ink); }
.legend svg { width: 26px; height: 14px; vertical-align: -2px; margin-right: .35rem;
  overflow: visible; }
.pictures { display: grid; gap: .6rem; margin: .9rem 0;
  grid-template-columns: repeat(auto-fit, minmax(4.75rem, 1fr)); }
.pictures figure { display: grid; gap: 4px; }
.pictures img { width: 100%; height: auto; display: block; image-rendering: pixelated;
  border-radius: 3px; }
.wide { overflow-x: auto; margin: .75rem 0; border: 1px solid var(--line); border-radius: .6rem; }
.wide img { display: block; }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .6rem .8rem 0; color: var(--faint); font-size: .875rem; }
th, td { padding: .45rem .7rem; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { color: var(--faint); font-weight: 500; font-size: .8125rem;
  border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--paper); }
.keys { list-style: none; margin: .5rem 0; padding: 0; columns: 3 18rem; column-gap: 2rem;
  font-size: .9375rem; }
.keys li { padding: .2rem 0; border-bottom: 1px solid var(--line); break-inside: avoid;
  overflow-wrap: anywhere; }
.keys small { color: var(--faint); }
.notes { color: var(--faint); margin: .5rem 0 1rem; padding-left: 1.1rem; max-width: 56rem; }
.notes li { margin: .2rem 0; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: .35rem 1.2rem;
  margin: .75rem 0; }
.facts dt { color: var(--faint); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
details { margin: .75rem 0; border: 1px solid var(--line); border-radius: .6rem;
  padding: 0 .9rem; }
details[open] { padding-bottom: .6rem; }
summary { cursor: pointer; padding: .6rem 0; font-weight: 500; }
pre { overflow-x: auto; background: var(--card); border-radius: .5rem; padding: .7rem .9rem;
  margin: .5rem 0; font-size: .8125rem; line-height: 1.45; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.missing { border: 1px dashed var(--faint); border-radius: .6rem; padding: .4rem .9rem;
  margin: .75rem 0; color: var(--faint); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .75rem; }
@media (max-width: 32rem) {
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .5rem; }
  th, td { padding: .4rem .6rem; }
}
@media print {
  :root { --paper: #fff; --card: #fff; --ink: #000; --faint: #444; --line: #bbb; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  .chart, .pictures figure, tr { break-inside: avoid; }
  .wide { overflow: visible; border: 0; }
}
"""
