"""Tables: what the terminal, Markdown and JSON hold of them."""

import io
import json

import pytest
from rich.console import Console

from experiments.harness.tables import (
    Table,
    change,
    from_json,
    markdown,
    number,
    on_terminal,
    percent,
    share,
)
from wasserstein_adv.errors import InputError

PLAIN = Table("digits, 3 images", ("measure", "value", "95 %"), [("a", "1", ""), ("b", "", "2–3")])
GROUPED = Table(
    "",
    ("attack", "", "left %", "claim", "W"),
    [
        ("sinkhorn", "", "57.4", "0.643", "–"),
        ("wu-frank-wolfe", "ε = 0.1", "12.5", "0.1", "0.0938"),
        ("wu-frank-wolfe", "ε = 0.5", "0.0", "0.5", "0.4711"),
        ("flow", "far", "3.1", "–", "0.2"),
    ],
    notes="W: exact distance.",
    short="W, in short.",
    grouped=True,
)


def shown(table: Table, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(on_terminal(table))
    return console.file.getvalue()


@pytest.mark.parametrize("table", [PLAIN, GROUPED])
def test_terminal_and_markdown_hold_every_cell(table):
    cells = {cell for row in table.rows for cell in row}
    on_screen, written = shown(table), markdown([table])
    assert all(cell in on_screen for cell in (*cells, *table.columns, table.title))
    rows = [
        tuple(cell.strip() for cell in line[1:-1].split("|"))
        for line in written.splitlines()
        if line.startswith("|")
    ]
    assert rows[0] == table.columns
    assert set(rows[1]) == {"---", "---:"} and len(rows[1]) == len(table.columns)
    assert rows[2:] == list(table.rows)
    assert all(text in written for text in (table.title, table.notes))


def test_markdown_holds_tables_one_below_the_other():
    written = markdown([PLAIN, GROUPED])
    assert written.startswith("digits, 3 images:\n\n| measure | value | 95 % |\n| --- | ---: |")
    assert "| b |  | 2–3 |\n\n| attack |" in written
    assert written.endswith("| flow | far | 3.1 | – | 0.2 |\n\nW: exact distance.\n")


def test_rows_of_a_group_stand_below_its_name():
    lines = [line.rstrip() for line in shown(GROUPED).splitlines()]
    assert [line for line in lines if line == "wu-frank-wolfe"] == ["wu-frank-wolfe"]
    at = lines.index("wu-frank-wolfe")
    assert lines[at + 1].startswith("  ε = 0.1 ") and lines[at + 2].startswith("  ε = 0.5 ")
    assert lines[at + 3] == "flow" and lines[at + 4].startswith("  far ")
    assert any(line.startswith("sinkhorn ") and "57.4" in line for line in lines)
    assert "W, in short." in lines[-1] and GROUPED.notes not in shown(GROUPED)


def test_wide_tables_fit_80_columns():
    columns = (
        "attack",
        "",
        "left %",
        "claim",
        "W ¹",
        "W ²",
        "W ³",
        "mass %",
        "inside %",
        "s/image",
    )
    rows = [
        ("unbalanced, published", "ε = 0.01", "57.4", *["0.643"] * 4, "-12.3", "100.0", "0.123")
    ]
    wide = Table("title", columns, rows, "note " * 40, grouped=True)
    lines = shown(wide).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in shown(wide)
    assert any(line.count("0.643") == 4 for line in lines)


@pytest.mark.parametrize("table", [PLAIN, GROUPED])
def test_json_round_trip(table):
    kept = json.loads(json.dumps(table._asdict()))
    found = from_json(kept)
    assert shown(found) == shown(table)
    assert markdown([found]) == markdown([table])


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "table",
        {},
        {"title": "t", "columns": ["a"]},
        {**PLAIN._asdict(), "rows": [("a", "1")]},
        {**PLAIN._asdict(), "rows": [("a", "1", 2)]},
        {**PLAIN._asdict(), "rows": 3},
        {**PLAIN._asdict(), "rows": [3]},
        {**PLAIN._asdict(), "columns": None},
        {**PLAIN._asdict(), "columns": [1, 2, 3]},
        {**PLAIN._asdict(), "title": None},
        {**PLAIN._asdict(), "colour": "red"},
    ],
)
def test_what_is_no_table_is_refused(entry):
    with pytest.raises(InputError, match="no table"):
        from_json(entry)


def test_numbers_as_people_read_them():
    assert number(None, ".3f") == percent(None) == change(None) == "–"
    assert number(0.12345, ".3f") == "0.123" and number("inf", ".3f") == "inf"
    assert percent(0.5) == "50.0 %" and percent(0.12345, 2, "") == "12.35"
    assert change(0.0123) == "+1.2 %" and change(-0.5) == "-50.0 %"
    assert change(-0.0001) == "+0.0 %"  # no change has no sign of its own
    part = {"accuracy": 0.5741, "interval": [0.543, 0.6042]}
    assert share(part) == "57.4 (54.3–60.4)"
