"""The tables of the unbalanced attack at many settings: what they leave, what they refuse."""

import shutil

import pytest
from run_files import arrays_of, contents, disagreeing, result, results_of

from experiments.evaluation import cells
from experiments.harness.arguments import run_command
from experiments.unbalanced import onset, table

COMMANDS = {"table": (table.main, table.TableConfig), "onset": (onset.main, onset.OnsetConfig)}
TABLE = ("table", "--step-sizes", "0.05", "--distance-images", "2")
ONSET = ("onset", "--taus", "0.01", "0.3", "--scales", "0.2")


@pytest.fixture(scope="module")
def command(weights):
    """Runs a command on four digits; returns its exit status."""

    def run(out, name, *arguments):
        basic = ["--data", "mnist-5k", "--num-images", "4", "--batch-size", "4", "--out", str(out)]
        return run_command(*COMMANDS[name], [*basic, "--checkpoint", str(weights), *arguments])

    return run


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The folders of both, the table's stopped once, and the cells that it began."""
    folder, begun, run_cell = tmp_path_factory.mktemp("runs"), [], cells._run

    def counted(*arguments):
        begun.append(arguments[-1])
        if len(begun) == 3:
            raise KeyboardInterrupt
        return run_cell(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_run", counted)
        assert command(folder / "table", *TABLE) == 130
        assert not (folder / "table" / "results.json").exists()
        assert command(folder / "table", *TABLE) == 0
    assert command(folder / "onset", *ONSET) == 0
    return folder, begun


def test_the_table_resumes_and_is_not_repeated(command, finished, capsys):
    run, begun = finished[0] / "table", finished[1]
    assert [name.split(" ", 1)[0] for name in begun] == ["1/4", "2/4", "3/4", "3/4", "4/4"]
    results = results_of(run)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": 4}
    rows = {row["attack"]: row for row in results["cells"].values()}
    assert list(rows) == ["no projection", "published", "exact", "exact, transport"]
    assert "moved" not in rows["no projection"]
    assert rows["exact, transport"]["moved"]["mean"] > 10 * rows["exact"]["moved"]["mean"]
    for name, part in rows.items():
        assert results["cells"][f"{name} 0.05"] == part
        arrays = arrays_of(run, f"{name} 0.05")
        assert part["accuracy"] == (~arrays["success"]).mean()
        assert part["distance"]["mean"] == pytest.approx(arrays["distance"].mean())
        assert arrays["distance"].shape == (2,) and arrays["mass_change"].shape == (4,)
        assert part["mass_change"]["mean"] == pytest.approx(arrays["mass_change"].mean())
    lines = (run / "table.md").read_text().splitlines()
    assert lines[4].startswith("| no projection | 0.05 |")
    assert (run / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    before = contents(run)
    assert command(run, *TABLE) == 0
    assert "finished before" in capsys.readouterr().out
    assert contents(run) == before


def test_onset_maps_every_setting(finished):
    run = finished[0] / "onset"
    cheap, dear = results_of(run)["cells"].values()
    assert [(part["tau"], part["scale"]) for part in (cheap, dear)] == [
        ("0.01", "0.2"), ("0.3", "0.2")
    ]  # fmt: skip
    assert dear["moved"]["mean"] > dear["unmatched"]["mean"]
    for tau, part in (("0.01", cheap), ("0.3", dear)):
        arrays = arrays_of(run, f"tau={tau} scale=0.2")
        assert part["unmatched"]["mean"] == pytest.approx(arrays["unmatched"].mean())
    assert (run / "onset.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "cell", "figure", "value"),
    [
        ("table", "no projection 0.05", "accuracy", 0.9),
        ("onset", "tau=0.3 scale=0.2", "moved", {"mean": 0.5}),
    ],
)
def test_a_sound_run_agrees_and_a_changed_figure_is_named(
    finished, check, tmp_path, name, cell, figure, value
):
    status, printed = check(finished[0] / name)
    assert status == 0 and "agree" in printed.out
    copy = shutil.copytree(finished[0] / name, tmp_path / "run")
    result("cells", cell, figure, value=value)(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert disagreeing(printed.out) == {(cell, figure)}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["table", "--step-sizes", "-0.1"], "--step-sizes"),
        (["table", "--step-sizes", "0.1", "0.10000001"], "--step-sizes"),
        (["table", "--floor", "0"], "--floor"),
        (["table", "--distance-images", "0"], "--distance-images"),
        (["table", "--batch-size", "0"], "--batch-size"),
        (["onset", "--taus", "0.1", "0.1"], "--taus"),
        (["onset", "--scales", "inf"], "--scales"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, arguments, named):
    assert command(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()
