"""One HTML page of a study: figures and tables in a single file that asks nothing of the network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

from p2pfl.analysis.style import as_svg
from p2pfl.analysis.tables import is_number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Plate:
    """A figure with its file name (without suffix) and what a reader should see in it."""

    name: str
    caption: str
    figure: "Figure"


@dataclass(frozen=True)
class Part:
    """A section of the page: text, tables of text, and figures, in this order.

    Attributes:
        folded: shown only when opened; printed open.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence["pd.DataFrame"] = ()
    plates: Sequence[Plate] = ()
    folded: bool = False
    terms: Mapping[str, str] = field(default_factory=dict)


_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --soft: #595959; --line: #d5d5d5; --back: #fff; --band: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e3; --soft: #a8a6a2; --line: #3d3d3d; --back: #181818; --band: #222; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.1rem 4rem; max-width: 62rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
header p, figcaption, .note { color: var(--soft); }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; margin: .8rem 0 0; }
a { color: inherit; text-underline-offset: .15em; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; text-align: right; vertical-align: baseline; white-space: nowrap; }
th { font-weight: 600; border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
td.text, th.text { text-align: left; }
td.long { white-space: normal; min-width: 16rem; color: var(--soft); }
tbody tr:nth-child(even) { background: var(--band); }
figure { margin: 1.2rem 0 1.8rem; }
figure img { display: block; background: #fff; border: 1px solid var(--line); border-radius: 4px; padding: .4rem;
  max-width: none; }
figcaption { font-size: .86rem; max-width: 46rem; margin-top: .4rem; }
.plates { display: flex; flex-wrap: wrap; gap: 0 1.4rem; }
.plates figure { max-width: 100%; }
.plates figcaption { max-width: min(46rem, var(--width)); }
details { margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: 1.15rem; padding: .8rem 0 .2rem; }
details.part { border-top: 1px solid var(--line); margin-top: 2.4rem; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1.2rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print {
  :root { --ink: #000; --soft: #333; --line: #bbb; --back: #fff; --band: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; } .wide { overflow: visible; } figure img { max-width: 100%; height: auto; border: 0; }
  figure, tr { break-inside: avoid; } h2, summary { break-after: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""
_LONG = 32  # characters of a cell from which on it may break into lines
_DPI = 96  # CSS pixels in an inch
_ZOOM = 1.25  # figures are made for paper; a screen is read from further off


def page(title: str, lead: str, parts: Sequence[Part], made: str) -> str:
    """The page as text.

    Args:
        lead: one sentence under the title.
        made: what wrote it, for the foot of the page.
    """
    listed = "".join(f'<li><a href="#part-{at}">{escape(part.title)}</a></li>' for at, part in enumerate(parts))
    body = "\n".join(_part(at, part) for at, part in enumerate(parts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{escape(lead)}</p>
<nav aria-label="Contents"><ol>{listed}</ol></nav>
</header>
<main>
{body}
</main>
<footer><p class="note">{escape(made)}</p></footer>
</body>
</html>
"""


def _part(at: int, part: Part) -> str:
    inside = [f"<p>{escape(text)}</p>" for text in part.text]
    inside += [_table(table) for table in part.tables]
    if part.plates:
        inside.append('<div class="plates">' + "\n".join(map(_plate, part.plates)) + "</div>")
    if part.terms:
        inside.append("<dl>" + "".join(f"<dt>{escape(t)}</dt><dd>{escape(d)}</dd>" for t, d in part.terms.items()))
        inside.append("</dl>")
    content = "\n".join(inside)
    if part.folded:
        return f'<details class="part" id="part-{at}"><summary>{escape(part.title)}</summary>\n{content}\n</details>'
    return f'<section id="part-{at}">\n<h2>{escape(part.title)}</h2>\n{content}\n</section>'


def _plate(plate: Plate) -> str:
    data = base64.b64encode(as_svg(plate.figure)).decode()
    width, height = (round(inches * _DPI * _ZOOM) for inches in plate.figure.get_size_inches())
    caption = escape(plate.caption)
    image = f'<img src="data:image/svg+xml;base64,{data}" alt="{caption}" width="{width}" height="{height}">'
    return (
        f'<figure style="--width: {width}px"><div class="wide">{image}</div><figcaption>{caption}</figcaption></figure>'
    )


def _table(table: "pd.DataFrame") -> str:
    text = [not all(is_number(str(value)) for value in table[column]) for column in table.columns]
    long = [any(len(str(value)) > _LONG for value in table[column]) for column in table.columns]
    kinds = [
        f' class="{"text" if left else ""}{" long" if wide else ""}"' if left or wide else ""
        for left, wide in zip(text, long, strict=True)
    ]
    head = "".join(
        f'<th scope="col"{kind}>{escape(str(column))}</th>' for column, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "\n".join(
        "<tr>" + "".join(f"<td{k}>{escape(str(v))}</td>" for v, k in zip(row, kinds, strict=True)) + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
