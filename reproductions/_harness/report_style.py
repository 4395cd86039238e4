"""How the report looks: one column on a phone, two on a desk, light or dark as readers have it."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --paper: #ffffff;
  --card: #f6f8fa; --line: #d0d7de; --link: #0550ae; --good: #0b6e4f; --bad: #a40e26; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9ba6b1; --paper: #0d1117;
  --card: #161b22; --line: #30363d; --link: #79b8ff; --good: #56d4a4; --bad: #ff9492; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main, header, footer { max-width: 1320px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 28px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 1.35rem; margin: 44px 0 4px; padding-top: 14px; border-top: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 18px 0 6px; }
p { margin: 6px 0; max-width: 80ch; }
a { color: var(--link); }
code { font: 0.88em ui-monospace, "DejaVu Sans Mono", monospace; }
.soft { color: var(--soft); }
.claim { border-left: 4px solid var(--line); padding-left: 12px; margin: 10px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; margin: 10px 0; }
caption { text-align: left; color: var(--soft); padding-bottom: 4px; }
th, td { text-align: left; vertical-align: top; padding: 5px 10px 5px 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; overflow-wrap: normal; }
td.n, th.n { text-align: right; padding-left: 14px; font-variant-numeric: tabular-nums; }
.pass { color: var(--good); font-weight: 600; white-space: nowrap; }
.miss { color: var(--bad); font-weight: 700; white-space: nowrap; }
.grid { display: grid; gap: 18px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); }
figure { margin: 8px 0; max-width: 900px; }
figcaption { color: var(--soft); font-size: 0.9rem; }
img { display: block; width: 100%; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 6px 12px; margin: 8px 0; }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 8px 0;
  font-size: 0.9rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
footer { padding-bottom: 40px; color: var(--soft); }
@media (max-width: 960px) {
  main, header, footer { padding: 0 14px; }
  .wide { overflow-x: auto; } .wide img { width: 620px; max-width: none; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: 4px; }
  table.rows thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  table.rows, table.rows tbody, table.rows tr, table.rows td, table.rows caption {
    display: block; width: 100%; }
  table.rows tr { border: 1px solid var(--line); border-radius: 6px; padding: 6px 10px;
    margin: 8px 0; background: var(--card); }
  table.rows td { border: 0; padding: 2px 0; display: flex; justify-content: space-between;
    gap: 14px; text-align: right; }
  table.rows td::before { content: attr(data-label); color: var(--soft); text-align: left;
    flex: none; max-width: 45%; }
  table.rows td:first-child { display: block; text-align: left; font-weight: 600; }
  table.rows td:first-child::before { content: none; }
  table.rows td:has(span:empty) { display: none; }
}
@media print { details { border: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""
