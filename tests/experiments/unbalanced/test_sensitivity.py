"""The command that changes one parameter of the unbalanced attack at a time."""

import io
import shutil

import numpy as np
import pytest
from rich.console import Console
from run_files import arrays_of, contents, disagreeing, result, results_of

from experiments.evaluation import cells
from experiments.evaluation.subjects import Subject
from experiments.harness.arguments import run_command
from experiments.harness.tables import markdown, on_terminal
from experiments.unbalanced import sensitivity as command_module
from wasserstein_adv.data import load
from wasserstein_adv.metrics import exact_distance, wilson_interval

_NAMES = ("tau 0.1", "gamma 5")
_COUNT, _MEASURED = 6, 2


@pytest.fixture(scope="module")
def command(weights):
    """Runs the command on six digits at two settings; returns its exit status."""

    def run(out, *arguments):
        basic = ["--data", "mnist-5k", "--num-images", str(_COUNT), "--image", "1"]
        values = ["--taus", "0.1", "--etas", "--gammas", "5"]
        measured = ["--distance-images", str(_MEASURED)]
        weighted = [] if "--checkpoint" in arguments else ["--checkpoint", str(weights)]
        argv = [*basic, *values, *measured, *weighted, "--out", str(out), *arguments]
        return run_command(command_module.main, command_module.SensitivityConfig, argv)

    return run


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The folder of a run that was stopped once."""
    run, run_cell, titles = tmp_path_factory.mktemp("sensitivity") / "run", cells._run, []

    def interrupted(*arguments):
        titles.append(arguments[-1])
        if len(titles) == 2:
            raise KeyboardInterrupt
        return run_cell(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_run", interrupted)
        assert command(run) == 130
        assert titles == ["1/2 tau 0.1", "2/2 gamma 5"]
        assert not (run / "results.json").exists()
        kept = (run / "tau-0.1.npz").read_bytes()
        assert command(run) == 0
    assert titles[2:] == ["2/2 gamma 5"]
    assert (run / "tau-0.1.npz").read_bytes() == kept
    return run


def test_goes_on_after_an_interruption_and_leaves_evidence(command, finished, capsys):
    results = results_of(finished)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": _COUNT}
    assert {"environment", "seed", "command", "model", "settings"} <= set(results)
    assert (finished / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert list(results["cells"]) == list(_NAMES)
    before = contents(finished)
    assert command(finished) == 0
    printed = capsys.readouterr().out
    assert "finished before" in printed
    x = load("mnist-5k", "test").images[:_COUNT]
    for (name, part), title in zip(results["cells"].items(), ("τ = 0.1", "γ = 5"), strict=True):
        stored = arrays_of(finished, name)
        right = int((~stored["success"]).sum())
        assert part["accuracy"] == right / _COUNT
        assert part["interval"] == list(wilson_interval(right, _COUNT))
        exact = [
            exact_distance(a, b, lambda r, c: (abs(r) + abs(c)) / 27).total
            for a, b in zip(x[:_MEASURED], stored["image"], strict=False)
        ]
        assert len(stored["distance"]) == _MEASURED
        assert part["distance"]["mean"] == pytest.approx(np.mean(exact), rel=1e-4)
        assert part["residual"]["max"] == pytest.approx(stored["residual"].max())
        assert title in printed and f"| {title} |" in (finished / "table.md").read_text()
    assert command(finished, "--variant", "published") == 2
    assert "another protocol" in capsys.readouterr().err
    assert contents(finished) == before


def test_a_sound_run_agrees_and_a_changed_figure_is_named(finished, check, tmp_path):
    status, printed = check(finished)
    assert status == 0 and "agree" in printed.out
    copy = shutil.copytree(finished, tmp_path / "run")
    result("cells", "gamma 5", "interval", 1, value=0.999)(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert disagreeing(printed.out) == {("gamma 5", "interval")}


def test_a_row_has_one_parameter_changed():
    config = command_module.SensitivityConfig(taus=(), etas=(0.5,), gammas=(1.0, 2.0))
    assert command_module.lines(config) == {"eta": (0.5,), "gamma": (1.0, 2.0)}
    protocol = command_module.PAPER._replace(step_size=0.07, variant="published", steps=3)
    subject = Subject("mnist", np.zeros((1, 28, 28, 1), np.float32), np.zeros(1, int), None, "")
    cell = command_module._cell("eta", 0.5, protocol, subject)
    assert cell.steps == 3 and list(cell.rulers) == ["distance"]
    cost = cell.rulers["distance"].ground.cost
    assert cost(np.array(27.0), np.array(27.0)) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--taus", "0"], "--taus"),
        (["--etas", "nan"], "--etas"),
        (["--gammas", "1", "1"], "--gammas"),
        (["--taus", "--etas", "--gammas"], "--taus"),
        (["--step-size", "-0.1"], "--step-size"),
        (["--image", "6"], "--image"),
        (["--image", "-1"], "--image"),
        (["--num-images", "1001"], "--num-images"),
        (["--distance-images", "0"], "--distance-images"),
        (["--batch-size", "0"], "--batch-size"),
        (["--seed", "-1"], "--seed"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, arguments, named):
    assert command(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def a_part(residual=0.0005, left_out=0, distance=0.1234):
    mean = {"mean": 0.9999, "max": 1.0, "left_out": 0}
    return {
        "accuracy": 1.0, "interval": [0.8388, 1.0],
        "mass_change": mean, "moved": mean, "unmatched": mean,
        "distance": {**mean, "mean": distance},
        "residual": {"max": residual, "mean": residual, "left_out": left_out},
    }  # fmt: skip


def some_table(**parts):
    """Of results, by their settings with underscores: a_part."""
    protocol = command_module.PAPER._asdict()
    return command_module.results_table({
        "dataset": {"name": "fashion_mnist", "split": "test", "num_images": 10_000},
        "settings": {"protocol": protocol, "distance_images": 500},
        "nominal_accuracy": 1.0, "nominal_interval": [0.8388, 1.0],
        "cells": {name.replace("_", " "): part for name, part in parts.items()},
    })  # fmt: skip


def test_the_table_fits_a_terminal():
    console = Console(width=80, file=io.StringIO())
    console.print(on_terminal(some_table(**{"eta 0.0001": a_part()})))
    text = console.file.getvalue()
    assert "η = 0.0001 100.0 (83.9–100.0)" in text and "…" not in text
    assert "+100.0 %" in text and "0.0005" in text


def test_what_has_not_converged_is_named():
    text = markdown([some_table(eta_1=a_part(), tau_1=a_part(0.02), gamma_5=a_part(None, 3, None))])
    assert "after 10 iterations at τ = 1, γ = 5." in text
    assert "0.02" in text and "| inf |" in text and "| – |" in text
    every = markdown([some_table(eta_1=a_part(0.02))])
    assert "Some projections are not within" in every and "at every setting." in every
    assert "All projections" in markdown([some_table(eta_1=a_part())])
