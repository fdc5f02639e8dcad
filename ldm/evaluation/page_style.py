"""How the page looks: one stylesheet, nothing fetched."""

STYLE = """
:root { --ink: #1c1c1e; --quiet: #5a5c63; --rule: #e2e2dd; --paper: #ffffff; --wash: #f6f6f3; --plain: #a8480a; --held: #0b6e63;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.55 var(--sans); -webkit-text-size-adjust: 100%; }
main { max-width: 1000px; margin: 0 auto; padding: 40px 20px 72px; }
header { max-width: 760px; }
.kicker { margin: 0 0 12px; color: var(--quiet); font-size: 14px; letter-spacing: .02em; }
h1 { margin: 0 0 20px; font: 600 32px/1.22 var(--serif); text-wrap: pretty; }
h2 { margin: 0 0 6px; font: 600 24px/1.3 var(--serif); }
h3 { margin: 34px 0 0; font: 600 18px/1.35 var(--sans); }
p { margin: 0 0 12px; max-width: 760px; }
section { margin-top: 52px; }
.quiet, .hint, .note, dt { color: var(--quiet); }
.quiet { font-size: 15px; }
img { display: block; max-width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin-top: 34px; }
.tile { background: var(--wash); border-radius: 10px; padding: 16px 18px 12px; }
.tile h2 { font: 600 15px/1.35 var(--sans); margin-bottom: 12px; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 8px; align-items: center; font-size: 14px; }
.bar { display: contents; }
.bar-value { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { height: 8px; background: #e6e6e1; border-radius: 4px; overflow: hidden; }
.fill { display: block; height: 100%; border-radius: 4px; }
.fill.plain { background: var(--plain); }
.fill.held { background: var(--held); }
.hint { margin: 8px 0 0; font-size: 13px; }
.strip { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 14px; }
.strip img { border-radius: 6px; width: 104px; }
.scroll { overflow-x: auto; margin-top: 10px; padding-bottom: 4px; }
.scroll:focus-visible { outline: 2px solid var(--held); outline-offset: 3px; }
.row { display: grid; grid-template-columns: repeat(var(--models), minmax(104px, 1fr)); gap: 6px 10px; border-top: 1px solid var(--rule); padding: 14px 0; }
.row h4 { grid-column: 1 / -1; margin: 0 0 2px; font: 400 17px/1.4 var(--serif); overflow-wrap: anywhere; }
figure { margin: 0; }
figcaption { font-size: 13px; font-weight: 600; line-height: 1.3; margin-bottom: 5px; overflow-wrap: anywhere; }
figure img { width: 100%; max-width: 230px; border-radius: 6px; }
.note { margin: 5px 0 0; font-size: 13px; line-height: 1.3; }
table { border-collapse: collapse; width: 100%; margin-top: 6px; }
th, td { text-align: left; vertical-align: top; padding: 12px 16px 12px 0; border-top: 1px solid var(--rule); }
thead th { border-top: 0; font-size: 14px; padding-bottom: 8px; }
tbody th { font-weight: 600; min-width: 190px; }
tbody th span { display: block; font-weight: 400; font-size: 14px; line-height: 1.45; color: var(--quiet); max-width: 460px; margin-top: 2px; }
tbody th b { font-weight: 600; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; font-size: 18px; }
.of { display: none; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 18px; margin-top: 16px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 12px 0 0; font-size: 15px; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (min-width: 820px) {
  h1 { font-size: 40px; }
  .row { grid-template-columns: 210px repeat(var(--models), minmax(150px, 1fr)); gap: 6px 22px; }
  .row h4 { grid-column: 1; padding-top: 18px; }
}
@media (max-width: 560px) {
  main { padding: 26px 16px 56px; }
  h1 { font-size: 27px; }
  body { font-size: 16px; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody { display: block; }
  tbody tr { display: grid; grid-template-columns: repeat(var(--models), 1fr); gap: 8px 10px; border-top: 1px solid var(--rule); padding: 14px 0; }
  tbody th { grid-column: 1 / -1; }
  tbody th, td { display: block; border: 0; padding: 0; }
  td { font-weight: 600; }
  .of { display: block; font-size: 13px; font-weight: 600; white-space: normal; overflow-wrap: anywhere; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: 8px; }
}
@media print { .scroll { overflow: visible; } section { break-inside: avoid-page; } }
"""
