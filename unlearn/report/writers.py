"""A table of text as Markdown, LaTeX (booktabs) or HTML, and raw numbers as CSV."""

import csv
import html
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """Text, and whether it is printed bold."""

    text: str
    bold: bool = False


class Table(NamedTuple):
    """A title, heads of columns, of which the `left` first are left-aligned, lines of cells, and notes below."""

    title: str
    head: Sequence[str]
    left: int
    lines: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()


LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
}


def written_markdown(table: Table) -> str:
    """A pipe table under its title, the notes as a list."""

    def cell(its: Cell) -> str:
        return f"**{its.text}**" if its.bold and its.text else its.text

    lines = [
        table.title,
        "",
        f"| {' | '.join(table.head)} |",
        f"|{'---|' * table.left}{'---:|' * (len(table.head) - table.left)}",
        *(f"| {' | '.join(cell(its) for its in line)} |" for line in table.lines),
    ]
    if table.notes:
        lines += ["", *(f"- {note}" for note in table.notes)]
    return "\n".join(lines)


def latex(text: str) -> str:
    """Text with everything escaped that LaTeX would not print as it stands."""
    return "".join(LATEX.get(character, character) for character in text)


def written_latex(table: Table) -> str:
    """A `table` environment with booktabs' rules (`\\usepackage{booktabs}`), notes below the rules."""

    def cell(its: Cell) -> str:
        return rf"\textbf{{{latex(its.text)}}}" if its.bold and its.text else latex(its.text)

    # A line that begins with [ or * would be taken for an argument of the \\ before it
    body = [" & ".join(cell(its) for its in line) for line in table.lines]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(table.title)}}}",
        rf"\begin{{tabular}}{{{'l' * table.left}{'r' * (len(table.head) - table.left)}}}",
        r"\toprule",
        rf"{' & '.join(latex(head) for head in table.head)} \\",
        r"\midrule",
        *(rf"{'{}' if line[:1] in '[*' else ''}{line} \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\smallskip {{\footnotesize {latex(note)}\par}}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines)


def written_html(table: Table) -> str:
    """A plain `<table>` with a caption, the notes as a list after it."""

    def side(column: int) -> str:
        return "" if column < table.left else ' style="text-align: right"'

    def cell(column: int, its: Cell) -> str:
        text = html.escape(its.text)
        return f"<td{side(column)}>{f'<strong>{text}</strong>' if its.bold and text else text}</td>"

    head = "".join(f"<th{side(column)}>{html.escape(text)}</th>" for column, text in enumerate(table.head))
    lines = [
        "<table>",
        f"<caption>{html.escape(table.title)}</caption>",
        f"<thead><tr>{head}</tr></thead>",
        "<tbody>",
        *(f"<tr>{''.join(cell(column, its) for column, its in enumerate(line))}</tr>" for line in table.lines),
        "</tbody>",
        "</table>",
    ]
    if table.notes:
        lines += ["<ul>", *(f"<li>{html.escape(note)}</li>" for note in table.notes), "</ul>"]
    return "\n".join(lines)


def written_csv(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Comma-separated values; None is empty, and numbers have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return text.getvalue().removesuffix("\n")
