"""The command that changes one parameter of the unbalanced attack at a time."""

import io

import numpy as np
import pytest
from rich.console import Console
from run_files import contents, results_of

from experiments import _evaluation, _grid
from experiments import sensitivity as command_module
from experiments._cli import run_command
from wasserstein_adv.data import load
from wasserstein_adv.metrics import exact_distance, wilson_interval

_NAMES = ("tau 0.1", "gamma 5")
_COUNT, _MEASURED = 6, 2


@pytest.fixture
def command(weights, tmp_path, monkeypatch):
    """Runs the command on six digits at two settings; returns its exit status."""
    monkeypatch.setattr(_evaluation, "use_all_cores", lambda: None)
    monkeypatch.setenv("WASSERSTEIN_ADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        basic = ["--data", "mnist-5k", "--num-images", str(_COUNT), "--image", "1"]
        values = ["--taus", "0.1", "--etas", "--gammas", "5"]
        measured = ["--distance-images", str(_MEASURED)]
        weighted = [] if "--checkpoint" in arguments else ["--checkpoint", str(weights)]
        argv = [*basic, *values, *measured, *weighted, "--out", "run", *arguments]
        return run_command(command_module.main, command_module.SensitivityConfig, argv)

    return run


def test_goes_on_after_an_interruption_and_leaves_evidence(command, tmp_path, monkeypatch, capsys):
    run, measure, titles = tmp_path / "run", _grid._run, []

    def interrupted(*arguments):
        titles.append(arguments[-1])
        if len(titles) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(_grid, "_run", interrupted)
    assert command() == 130
    assert titles == ["1/2 tau 0.1", "2/2 gamma 5"]
    assert not (run / "results.json").exists()
    kept = (run / "tau-0.1.npz").read_bytes()
    assert command() == 0
    assert titles[2:] == ["2/2 gamma 5"]
    assert (run / "tau-0.1.npz").read_bytes() == kept

    printed = capsys.readouterr().out
    results = results_of(run)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": _COUNT}
    assert {"environment", "seed", "command", "model", "settings"} <= set(results)
    assert (run / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    x = load("mnist-5k", "test").images[:_COUNT]
    assert [f"{p['parameter']} {p['value']:g}" for p in results["rows"]] == list(_NAMES)
    for part in results["rows"]:
        stored = np.load(run / f"{part['parameter']}-{part['value']:g}.npz")
        right = int((~stored["success"]).sum())
        assert part["accuracy"] == right / _COUNT
        assert part["interval"] == list(wilson_interval(right, _COUNT))
        assert part["prediction"] == stored["prediction"][1]
        exact = [
            exact_distance(a, b, lambda r, c: (abs(r) + abs(c)) / 27).total
            for a, b in zip(x, stored["image"], strict=False)
        ]
        assert len(exact) == len(stored["distance"]) == _MEASURED
        assert part["distance"]["mean"] == pytest.approx(np.mean(exact), rel=1e-4)
        assert part["residual"]["max"] == pytest.approx(stored["residual"].max())
        title = f"{command_module._LETTERS[part['parameter']]} = {part['value']:g}"
        assert title in printed and f"| {title} |" in (run / "table.md").read_text()

    before = contents(run)
    assert command() == 0
    assert "finished before" in capsys.readouterr().out
    assert command("--variant", "published") == 2
    assert "another protocol" in capsys.readouterr().err
    assert contents(run) == before


def test_a_row_has_one_parameter_changed():
    protocol = command_module.PAPER._replace(step_size=0.07, variant="published")
    config = command_module.SensitivityConfig(taus=(), etas=(0.5,), gammas=(1.0, 2.0))
    lines = command_module._settings(config)
    assert [[setting.name for setting in line] for line in lines] == [
        ["eta 0.5"], ["gamma 1", "gamma 2"]
    ]  # fmt: skip
    cell = command_module._cell(lines[0][0], protocol, (28, 28))
    assert cell.steps == protocol.steps
    assert cell.cost(np.array(27.0), np.array(27.0)) == pytest.approx(2.0)


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
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def a_row(parameter="eta", value=0.0001, residual=0.0005, left_out=0, distance=0.1234):
    mean = {"mean": 0.9999, "max": 1.0, "left_out": 0}
    return {
        "parameter": parameter, "value": value, "accuracy": 1.0, "interval": [0.8388, 1.0],
        "mass_change": mean, "moved": mean, "unmatched": mean,
        "distance": {**mean, "mean": distance},
        "residual": {"max": residual, "mean": residual, "left_out": left_out},
    }  # fmt: skip


def some_results(*rows):
    protocol = command_module.PAPER._asdict()
    return {
        "dataset": {"name": "fashion_mnist", "split": "test", "num_images": 10_000},
        "settings": {"protocol": protocol, "distance_images": 500}, "tolerance": 1e-3,
        "clean": {"accuracy": 1.0, "interval": [0.8388, 1.0]}, "rows": list(rows),
    }  # fmt: skip


def test_the_table_fits_a_terminal():
    console = Console(width=80, file=io.StringIO())
    console.print(command_module.results_table(some_results(a_row())))
    text = console.file.getvalue()
    assert "η = 0.0001  100.0 (83.9–100.0)" in text and "…" not in text
    assert "+100.0 %" in text and "0.0005" in text


def test_what_has_not_converged_is_named():
    text = command_module.markdown_table(
        some_results(a_row(), a_row("tau", 1.0, 0.02), a_row("gamma", 5.0, None, 3, None))
    )
    assert "after 10 iterations at τ = 1, γ = 5." in text
    assert "0.02" in text and "| inf |" in text and "| – |" in text
    every = command_module.markdown_table(some_results(a_row(residual=0.02)))
    assert "Some projections are not within" in every and "at every setting." in every
    assert "All projections" in command_module.markdown_table(some_results(a_row()))
