"""What an attack's results look like to people."""

import io

import pytest
from rich.console import Console

from experiments.evaluation.attack import results_table
from experiments.harness.tables import markdown, on_terminal

RESULTS = {
    "dataset": {"name": "mnist", "split": "test", "num_images": 1000},
    "settings": {},
    "nominal_accuracy": 0.989,
    "nominal_interval": [0.981, 0.994],
    "adversarial_accuracy": {"1.0": 0.12, "0.5": 0.39},
    "adversarial_interval": {"1.0": [0.1, 0.14], "0.5": [0.36, 0.42]},
    "median_radius": float("inf"),
    "seconds": {"attack": 12.0, "report": 1234.5},
    "images_per_second": 83.2,
    "distance_check": {
        "measured": 980,
        "window": {"median": 0.97, "max": 1.01, "inside": 0.985},
        "inside_before_clamp": 1.0,
        "global": {"median": 0.91, "max": 1.0},
        "mass_change": {"median": 0.001, "max": 0.02},
    },
}


def rendered(results: dict) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(on_terminal(results_table(results)))
    return console.file.getvalue()


def test_table_holds_every_number():
    shown = rendered(RESULTS)
    for expected in (
        "mnist test, 1,000 images",
        "98.90 %",
        "98.10 – 99.40 %",
        "39.00 %",
        "36.00 – 42.00 %",
        "inf",
        "980",
        "0.97",
        "100.00 %",
        "98.50 %",
        "0.001",
        "1,234.5",
        "83.2",
    ):
        assert expected in shown
    assert shown.index("radius 0.5") < shown.index("radius 1.0")


@pytest.mark.parametrize("missing", sorted(RESULTS.keys() - {"dataset", "settings"}))
def test_table_does_without_what_is_missing(missing):
    some = {key: value for key, value in RESULTS.items() if key != missing}
    rows, every = results_table(some).rows, results_table(RESULTS).rows
    assert set(rows) != set(every)
    assert {name for name, *_ in rows} <= {name for name, *_ in every}
    assert "| measure | value | 95 % interval |" in markdown([results_table(some)])


def test_table_of_an_attack_in_no_ball():
    summary = {"mean": 0.25, "median": 0.2, "max": 0.5, "left_out": 0}
    results = {
        "dataset": RESULTS["dataset"],
        "settings": {"radius": 0.1},
        "attack_accuracy": 0.123,
        "attack_interval": [0.1, 0.2],
        "transport": {
            "distance": {**summary, "mean": None, "max": None},
            **{key: summary for key in ("mass_change", "moved", "unmatched", "plan_cost")},
            "within_budget": 0.75,
            "residual": 1e-4,
        },
    }
    rows = {name: (value, interval) for name, value, interval in results_table(results).rows}
    assert rows["accuracy after the attack"] == ("12.30 %", "10.00 – 20.00 %")
    assert rows["plans within the budget of 0.1"] == ("75.00 %", "")
    assert rows["mass moved, share of the plan: max"] == ("0.5", "")
    assert rows["optimality residual: max"] == ("0.0001", "")
    assert not any(name.startswith("exact distance") for name in rows)
