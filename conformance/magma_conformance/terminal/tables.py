"""Tables for people. No cell is ever cut: where the columns do not fit side by side, a row takes several lines."""

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
    """Print a table as wide as it must be, and a blank line; where that does not fit, a paragraph for each row.

    Args:
        console: where to print; a file or a pipe has the 80 columns that rich gives it, or those of COLUMNS.
        headings: of the columns.
        rows: a cell for each column; strings are printed as they are.
        title: above the table.
        caption: below it.
        left: the first columns, so many, are aligned on the left.
        lead: the first columns, so many, name the row and say what matters most: they begin its paragraph.
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
    """Heading and cell beside each other, as many to a line as there is room for."""
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
    """A line that is longer than the console is wide is left to it: nothing is cut."""
    line.rstrip()
    if line.plain:
        console.print(line, soft_wrap=True, highlight=False)
