"""One page of HTML that needs nothing beside it: tables, the trade-off, and pictures of what the means hide.

A pure function of row files and of what the store holds beside them: the same rows and the same store give the same
bytes.
"""

import base64
import html
from collections.abc import Iterator, Sequence

from matplotlib.figure import Figure

from unlearn.report.kept import answers, neighbours
from unlearn.report.pictures import neighbourhoods, per_class, per_image, roc_curves, shared_run
from unlearn.report.plot import AXES, as_svg, trade_off
from unlearn.report.rows import Lines, Row, chosen, line_names, settings
from unlearn.report.table import tabled
from unlearn.report.writers import written_html
from unlearn.settings import SettingError
from unlearn.store import Store

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { display: none; }
th { vertical-align: bottom; text-align: left; border-bottom: 1px solid #111; }
th, td { padding: 2px 8px; }
tbody tr:hover { background: #f3f3f3; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #444; font-size: 13px; max-width: 46rem; }
code { font-size: 12px; }
"""

INTRODUCTION = """Means over runs with their 95 % t-intervals. <em>original</em> is the model before unlearning,
<em>retrained</em> the reference that never saw what is forgotten; <em>none</em> and <em>retrain</em>, where they are
shown, are the contestants that an audit must find and must pass."""

OF_ROC = """The loss attack's ROC curves, means over runs; at the left are the few false positives that an attacker
cares for. Blue: the model that the panel names; black: retrained, in grey what its runs span; dotted: guessing."""

OF_CLASSES = """In the first line the retrained models' accuracy, below it what the others' differ from that."""

OF_IMAGES = """the margin log p/(1-p) of each forgotten image's own class against that under the retrained model. A
model that is told from the retrained one has a cloud beside the dotted line; <em>retrain</em>, where it is shown, has
the scatter of exact unlearning."""

OF_NEIGHBOURS = """How far the nearest adversarial image was found from each image to forget, a line a run, and which
class the model takes it for; the method fine-tunes on these."""

MISSING = """Not drawn: these rows, or the store beside them (<code>--store</code>), lack what it shows. Of a row that
an earlier version made, remove its folder in the store and give its command again: nothing is trained for it."""


def page(rows: Sequence[Row], store: Store | None, columns: Sequence[str]) -> str:
    """The page of these rows. Without a store, or where it lacks what a picture shows, the page says so.

    Raises `SettingError` for what no table can be made of.
    """
    every = settings(rows)
    chosen(columns)
    sections = [_section(its, number, store, columns) for number, its in enumerate(every)]
    links = [
        f'<li><a href="#setting{number}">{html.escape(str(its.title))}</a></li>' for number, its in enumerate(every)
    ]
    contents = ["<ul>", *links, "</ul>"] if len(every) > 1 else []
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8"><title>unlearn: report</title>',
            '<meta name="viewport" content="width=device-width">',
            f"<style>{STYLE}</style></head><body>",
            "<h1>Machine unlearning: report</h1>",
            f"<p>{INTRODUCTION}</p>",
            *contents,
            *sections,
            "</body></html>",
            "",
        ]
    )


def _section(its: Lines, number: int, store: Store | None, columns: Sequence[str]) -> str:
    shown = [f'<h2 id="setting{number}">{html.escape(str(its.title))}</h2>']
    shown += ['<div class="table">', written_html(tabled(its, chosen(columns))), "</div>"]
    shown += [_shown(*each) for each in _pictures(its, store)]
    return "\n".join([*shown, _provenance(its)])


def _pictures(its: Lines, store: Store | None) -> Iterator[tuple[str, str, Figure | None]]:
    """Heading, caption and picture of each figure of a setting; no picture where what it shows is not there."""
    try:
        yield "Utility, forgetting and cost", "", trade_off(its.rows, AXES)
    except SettingError:  # rows without these audits
        yield "Utility, forgetting and cost", "", None
    known = {} if store is None else answers(its, store)
    yield "Can a loss tell forgotten images from unseen ones?", OF_ROC, roc_curves(known)
    for part, words in (("forget", "forgotten images"), ("test", "test images")):
        yield f"Accuracy by class, {words}", OF_CLASSES, per_class(known, part)
    run = shared_run(known)
    which = "" if run is None else f"Seed {run[0]}, split {run[1]}: "
    yield "Image by image", f"{which}{OF_IMAGES}", None if run is None else per_image(known, run)
    for line, found in ({} if store is None else neighbours(its, store)).items():
        yield f"Adversarial neighbours: {line}", OF_NEIGHBOURS, neighbourhoods(found)


def _shown(heading: str, caption: str, drawn: Figure | None) -> str:
    head = f"<h3>{html.escape(heading)}</h3>"
    if drawn is None:
        return f'{head}\n<p class="note">{MISSING}</p>'
    image = base64.b64encode(as_svg(drawn)).decode()
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'{head}\n<figure><img alt="{html.escape(heading)}" src="data:image/svg+xml;base64,{image}">{below}</figure>'


def _provenance(its: Lines) -> str:
    """Where each row of a setting comes from: the command, the code, the machine."""
    names = line_names(its.rows)
    lines = ["<details><summary>Rows</summary>", '<div class="table"><table>']
    heads = ("row", "model", "seed", "split", "command", "code", "device", "made")
    lines += ["<thead><tr>", *(f"<th>{head}</th>" for head in heads), "</tr></thead><tbody>"]
    for row in sorted(its.rows, key=lambda row: (names[row["id"]], row["seed"], row["split"])):
        start = [row["id"], names[row["id"]], row["seed"], row["split"]]
        command = f"<code>{html.escape(' '.join(['run.py', *(row.get('overrides') or [])]))}</code>"
        made = [(row.get("commit") or "")[:12], row.get("device") or "", row.get("created") or ""]
        cells = [*(html.escape(str(its)) for its in start), command, *map(html.escape, made)]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "\n".join([*lines, "</tbody></table></div></details>"])
