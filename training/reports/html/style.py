"""How a report looks: light and dark, wide and narrow, on paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1d232b; --soft: #5b6572; --faint: #8a94a1; --paper: #f5f6f8; --card: #fff; --line: #dfe3e8;
  --train: #8a94a1; --val: #1f5fbf; --best: #d1495b; --heat: 31 95 191; --wrong: 209 73 91; --warn: #fff4dc; --warn-ink: #6d4a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a5afbc; --faint: #7e8896; --paper: #14171c; --card: #1c2027;
  --line: #313843; --train: #8a94a1; --val: #6ea4f4; --best: #f0788a; --heat: 78 137 226; --wrong: 224 96 114; --warn: #3a2f14;
  --warn-ink: #f3d999; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%; }
main, header, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 14px; margin: 18px 0 6px; color: var(--soft); font-weight: 600; }
p { margin: 4px 0 10px; max-width: 75ch; }
.soft { color: var(--soft); } .small { font-size: 13px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 18px; font-size: 13.5px; }
a { color: var(--val); text-decoration: none; } a:hover { text-decoration: underline; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin: 0 0 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(126px, 1fr)); gap: 12px; margin: 0 0 16px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 19px; white-space: nowrap; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 12.5px; color: var(--soft); }
.tile .name { color: var(--ink); font-weight: 600; }
.warning { background: var(--warn); color: var(--warn-ink); border-radius: 10px; padding: 10px 16px; margin: 0 0 16px; }
.warning ul { margin: 4px 0; padding-left: 20px; } .warning li { overflow-wrap: anywhere; }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 8px 28px; }
.side > * { min-width: 0; }
.scroll { overflow-x: auto; } .tall { max-height: 560px; overflow: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
table.wide { width: 100%; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.value { overflow-wrap: anywhere; min-width: 11ch; } td.name { overflow-wrap: break-word; min-width: 9ch; }
th.part { text-align: center; border-bottom: 0; padding-bottom: 0; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
.tall thead { position: sticky; top: 0; z-index: 1; background: var(--card); box-shadow: 0 1px var(--line); }
td.bar { position: relative; text-align: right; min-width: 74px; white-space: nowrap; }
td.bar i { position: absolute; left: 6px; bottom: 3px; height: 3px; border-radius: 2px; background: rgb(var(--heat) / .75); }
.matrix td, .matrix th { border: 0; padding: 0; }
.matrix td { width: 46px; min-width: 34px; height: 34px; text-align: center; vertical-align: middle; border: 1px solid var(--card);
  border-radius: 5px; }
.matrix th { font-weight: 500; font-size: 12.5px; max-width: 150px; overflow: hidden; text-overflow: ellipsis; }
.matrix tbody th { text-align: right; padding-right: 8px; vertical-align: middle; }
.matrix thead th { text-align: center; vertical-align: bottom; padding: 0 2px 6px; }
.matrix thead th div { margin: 0 auto; max-height: 130px; overflow: hidden; text-overflow: ellipsis; }
.matrix.many thead th div { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix .none { color: var(--faint); } .matrix .full { color: #fff; }
.pixels { width: min(100%, 460px); image-rendering: pixelated; border: 1px solid var(--line); background: #fff; display: block; }
svg { width: 100%; max-width: 560px; height: auto; display: block; font: 11.5px system-ui, sans-serif; }
svg text { fill: var(--soft); } svg .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .dotted { stroke: var(--faint); stroke-dasharray: 3 3; }
svg .train { stroke: var(--train); fill: none; stroke-width: 1.8; } svg .val { stroke: var(--val); fill: none; stroke-width: 2.2; }
svg circle.train { fill: var(--train); stroke: none; } svg circle.val { fill: var(--val); stroke: none; }
svg circle.best { fill: var(--best); stroke: var(--card); stroke-width: 2; }
svg .right { fill: rgb(var(--heat) / .85); } svg .score { fill: var(--best); } svg .count { fill: var(--train); }
.key { font-size: 12.5px; color: var(--soft); margin: 0; } .key i { display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  margin: 0 5px 3px 12px; vertical-align: middle; } .key i:first-child { margin-left: 0; }
.key .train { background: var(--train); } .key .val { background: var(--val); }
.key .best { background: var(--best); width: 8px; height: 8px; border-radius: 4px; margin-bottom: 2px; }
.key .right { background: rgb(var(--heat) / .85); height: 9px; } .key .score { background: var(--best); }
figure { margin: 0; } figure img.sheet { width: 100%; border-radius: 8px; background: #fff; display: block; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 8px 0; font-size: 13px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre span { display: inline-block; max-width: 100%; vertical-align: top; }
code { font-size: 13px; overflow-wrap: anywhere; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--val); }
footer { color: var(--soft); font-size: 13px; padding-bottom: 40px; }
@media (max-width: 560px) { main, header, footer { padding: 0 12px; } header { padding-top: 20px; } section { padding: 14px 12px; }
  .tiles { grid-template-columns: 1fr 1fr; }  h1 { font-size: 22px; } svg { font-size: 13px; }
  .matrix td { width: 36px; } .matrix th { max-width: 90px; } }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } nav { display: none; } .tall { max-height: none; } }
"""
