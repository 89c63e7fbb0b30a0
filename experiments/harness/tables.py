"""Tables: built once, shown on the terminal, written as Markdown, kept as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.table import Table as RichTable

from wasserstein_adv.errors import InputError

_FEW = 3  # columns, for which there is room to draw lines


class Table(NamedTuple):
    """Text in rows and columns: the first column to the left, the others to the right."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: str = ""
    """What the columns mean, below."""
    short: str = ""
    """The same for the terminal, where it should be shorter."""
    grouped: bool = False
    """Whether rows whose first cell is the same belong together."""


def on_terminal(table: Table) -> RichTable:
    """Lay out a table for the terminal, as narrow as it goes: it has to fit into 80 columns."""
    few = len(table.columns) <= _FEW
    shown = RichTable(
        title=table.title,
        caption=table.short or table.notes or None,
        box=HEAVY_HEAD if few else SIMPLE_HEAD,
        collapse_padding=not few,
        padding=(0, 1) if few else 0,
        pad_edge=few,
        show_edge=few,
    )
    columns = table.columns[1:] if table.grouped else table.columns
    for number, column in enumerate(columns):
        shown.add_column(
            table.columns[0] if number == 0 else column,
            justify="right" if number else "left",
            no_wrap=not few,
        )
    before = None
    for group, *cells in table.rows:
        if not table.grouped:
            shown.add_row(group, *cells)
            continue
        label, *rest = cells
        if label and group != before:
            shown.add_row(group)
        shown.add_row(f"  {label}" if label else group, *rest)
        before = group
    return shown


def markdown(tables: Sequence[Table]) -> str:
    """Lay out tables as Markdown, one below the other."""
    lines: list[str] = []
    for table in tables:
        rule = ("---", *("---:" for _ in table.columns[1:]))
        lines += [f"{table.title}:", ""] if table.title else []
        lines += [f"| {' | '.join(cells)} |" for cells in (table.columns, rule, *table.rows)]
        lines += ["", table.notes, ""] if table.notes else [""]
    return "\n".join(lines)


def from_json(entry: Any) -> Table:
    """The table that a run's results hold.

    Raises:
        InputError: it is none.
    """
    try:
        found = Table(**{**entry, "rows": [tuple(row) for row in entry["rows"]]})
        texts = [found.title, found.notes, found.short, *found.columns, *sum(found.rows, ())]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        if any(len(row) != len(found.columns) for row in found.rows):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("its results hold no table that could be shown") from error
    return found


# Numbers as the tables have them ------------------------------------------------------------------


def number(value: float | str | None, form: str, unit: float = 1.0, sign: str = "") -> str:
    """A number in a format; a dash where there is none."""
    return "–" if value is None else f"{unit * float(value):{form}}{sign}"


def percent(value: float | None, digits: int = 1, sign: str = " %") -> str:
    """A share in percent; a dash where there is none."""
    return number(value, f".{digits}f", 100.0, sign)


def change(value: float | None, sign: str = " %") -> str:
    """A change in percent, with its sign."""
    return number(value, "+z.1f", 100.0, sign)


def share(
    part: Mapping[str, Any], name: str = "accuracy", interval: str = "interval", digits: int = 1
) -> str:
    """A share in percent with the ends of its interval: `57.4 (54.3–60.4)`."""
    low, high = (100 * end for end in part[interval])
    return f"{100 * part[name]:.{digits}f} ({low:.1f}–{high:.1f})"


def heading(results: Mapping[str, Any]) -> str:
    """The images that a run is of: `mnist test, 1,000 images`."""
    dataset = results["dataset"]
    return f"{dataset['name']} {dataset['split']}, {dataset['num_images']:,} images"
