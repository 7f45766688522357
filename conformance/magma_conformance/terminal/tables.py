"""Tables for people. Cells are never cut: if the columns do not fit side by side, a row takes several lines."""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Cell = str | Text

_GAP, _INDENT = 2, 4


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    title: str = "",
    caption: str = "",
    left: int = 1,
    lead: int = 1,
) -> None:
    """Print a table at its natural width and a blank line; if it does not fit, a paragraph per row.

    Args:
        console: where to print. For files and pipes rich assumes 80 columns, or those of COLUMNS.
        headings: of the columns.
        rows: one cell per column; strings are printed verbatim.
        title: above the table.
        caption: below it.
        left: number of leading columns aligned left.
        lead: number of leading columns that name the row and its main result: they begin its paragraph.
    """
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    widths = [max([cell_len(head), *(row[i].cell_len for row in cells)]) for i, head in enumerate(headings)]
    _line(console, Text(title, style="italic"))
    gap = _GAP if sum(widths) + _GAP * (len(widths) - 1) <= console.width else 1
    width = sum(widths) + gap * (len(widths) - 1)
    if width <= console.width:
        for row in ([Text(head, style="bold") for head in headings], None, *cells):
            line = Text("─" * width) if row is None else _aligned(row, widths, left, gap)
            _line(console, line)
    else:
        narrow = sum(widths[:lead]) + _GAP * (lead - 1) > console.width
        for row in cells:
            first = row[:lead] if narrow else [_padded(*each, True) for each in zip(row, widths[:lead], strict=False)]
            _line(console, Text(" " * _GAP).join(first))
            _paragraph(console, headings[lead:], row[lead:])
    _line(console, Text(caption, style="dim"))
    console.print()


def _aligned(row: Sequence[Text], widths: Sequence[int], left: int, gap: int) -> Text:
    cells = [_padded(cell, width, i < left) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
    return Text(" " * gap).join(cells)


def _padded(cell: Text, width: int, left: bool) -> Text:
    space = Text(" " * (width - cell.cell_len))
    return cell + space if left else space + cell


def _paragraph(console: Console, headings: Sequence[str], cells: Sequence[Text]) -> None:
    """Headings and cells in turn, as many per line as fit."""
    line = Text()
    for heading, cell in zip(headings, cells, strict=True):
        if not cell.plain:
            continue
        part = Text(f"{heading} ") + cell
        if line and line.cell_len + _GAP + part.cell_len > console.width:
            _line(console, line)
            line = Text()
        line = (line + " " * _GAP if line else Text(" " * _INDENT)) + part
    _line(console, line)


def _line(console: Console, line: Text) -> None:
    """Print a line uncut, even if it is longer than the console is wide."""
    line.rstrip()
    if line.plain:
        console.print(line, soft_wrap=True, highlight=False)
