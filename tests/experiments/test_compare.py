"""The comparison of all attacks: what it leaves, that its numbers are those of the images, and that
`verify` finds what was changed."""

import re
import shutil

import numpy as np
import pytest
from run_files import (
    array,
    arrays_of,
    at,
    contents,
    disagreeing,
    entry,
    result,
    results_of,
    text,
    without,
)

from experiments import compare
from experiments.evaluation import cells
from experiments.harness.arguments import run_command
from experiments.harness.catalogue.attacks import ATTACKS
from wasserstein_adv.metrics import exact_distance

# Of the six digits four are misclassified as they are, one is fooled soon, one only by some.
WINDOW = 3
QUICK = {
    "hu": {"increment": 0.004, "steps": 6, "window": WINDOW},
    "wu-projection": {"steps": 6, "window": WINDOW},
    "wu-frank-wolfe": {"steps": 6, "window": WINDOW},
    "flow": {"start_radius": 0.004, "growth": 1.4, "steps": 6},
    "unbalanced": {"steps": 3, "iterations": 3},
}
# Of all runs these, as most of the time goes into compiling: name ↦ (attack, setting, windowed).
RUNS = {
    "hu": ("hu", "", True),
    "wu-projection ε = 0.01": ("wu-projection", "ε = 0.01", True),
    "wu-frank-wolfe ε = 0.01": ("wu-frank-wolfe", "ε = 0.01", True),
    "flow": ("flow", "", False),
    "unbalanced, published α = 0.05": ("unbalanced, published", "α = 0.05", False),
}
UNBALANCED = "unbalanced, published"
ENTRIES = compare.entries


@pytest.fixture(scope="module")
def command(weights):
    """Runs the command on six digits for a few small steps; returns its exit status."""
    attacks = {attack for attack, *_ in RUNS.values()}

    def some(config):
        return [entry for entry in ENTRIES(config) if entry.group in attacks]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "entries", some)
        for name, change in QUICK.items():
            paper = ATTACKS[name].presets["paper"]._replace(**change)
            patch.setitem(ATTACKS, name, ATTACKS[name]._replace(presets={"paper": paper}))
        basic = ["--data", "mnist-5k", "--num-images", "6", "--checkpoint", str(weights)]
        # In batches of one there is one program to compile.
        lengths = ["--radii", "0.01", "--step-sizes", "0.05", "--batch-size", "1"]

        def run(out, *arguments):
            argv = [*basic, *lengths, "--out", str(out), *arguments]
            return run_command(compare.main, compare.CompareConfig, argv)

        yield run


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The folder of a finished comparison."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    assert command(folder) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


# What a run leaves --------------------------------------------------------------------------------


def test_leaves_a_cell_for_every_run(finished):
    results = results_of(finished)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": 6}
    assert {"model", "environment", "seed", "command"} <= set(results)
    assert [run["name"] for run in results["settings"]["runs"]] == list(RUNS)
    assert list(results["cells"]) == list(RUNS)
    for run in results["settings"]["runs"]:
        assert run.items() >= QUICK[run["attack"]].items()
    clean = arrays_of(finished, "clean")
    assert clean["image"].shape == (6, 28, 28, 1) and clean["label"].shape == (6,)
    assert (finished / "compare.png").read_bytes().startswith(b"\x89PNG")
    lines = (finished / "table.md").read_text().splitlines()
    shown = [line for line in lines if line.startswith("| ")]
    # Three tables, each with two lines above its rows.
    assert len(shown) == 3 * (2 + len(RUNS))
    for line, (attack, setting, _) in zip(shown[2:], RUNS.values(), strict=False):
        assert line.startswith(f"| {attack} | {setting} |")


def test_numbers_are_those_of_the_images(finished):
    rulers = {"distance": lambda drow, dcol: abs(drow) + abs(dcol), "euclidean": np.hypot}
    results, clean = results_of(finished), arrays_of(finished, "clean")
    x, label = clean["image"], clean["label"]

    def measured(images, cost, window=None):
        pairs = zip(x, images, strict=True)
        return np.array([float(exact_distance(*pair, cost, window).total) for pair in pairs])

    fates = set()
    for name, (attack, _, windowed) in RUNS.items():
        cell, arrays = results["cells"][name], arrays_of(finished, name)
        images = arrays["image"]
        assert images.min() >= 0 and images.max() <= 1
        fooled = arrays["prediction"] != label
        unchanged = (images == x).all((1, 2, 3))
        moved = fooled & ~unchanged
        fates |= set(zip(fooled.tolist(), unchanged.tolist(), strict=True))
        np.testing.assert_array_equal(arrays["success"], fooled)
        assert cell["accuracy"] == (~fooled).mean()
        assert cell["seconds"] == pytest.approx(float(arrays["seconds"]), abs=1e-3)
        assert results["nominal_accuracy"] == (~fooled | moved).mean()

        distances = {ruler: measured(images, cost) for ruler, cost in rulers.items()}
        mass = images.sum((1, 2, 3), np.float64) / x.sum((1, 2, 3), np.float64) - 1
        expected = {**distances, "mass_change": mass}
        assert ("window" in arrays) == windowed
        if windowed:
            expected["window"] = measured(images, np.hypot, WINDOW)
        for key, values in expected.items():
            np.testing.assert_allclose(arrays[key], values, rtol=1e-6, atol=1e-7)
            median = pytest.approx(np.median(values[moved]), rel=1e-6, abs=1e-7)
            assert cell[f"median_{key}"] == median

        if attack == UNBALANCED:
            assert not {"claimed", "inside"} & cell.keys()
        else:
            assert cell["claimed"] == pytest.approx(np.median(arrays["budget"][moved]))
            inside = expected.get("window", expected["distance"]) <= arrays["budget"] * 1.0001
            assert cell["inside"] == inside[~unchanged].mean()

        for ruler, values in distances.items():
            needed = np.where(fooled, np.where(unchanged, 0, values), np.inf)
            curve = results["accuracy_at_distance"][ruler][attack]
            assert curve == {at: (needed > float(at)).mean() for at in curve}
    # Wrong at first, fooled, and not fooled: all of them were there.
    assert fates == {(True, True), (True, False), (False, False)}


def test_what_claims_a_radius_keeps_it(finished):
    inside = {name: cell.get("inside") for name, cell in results_of(finished)["cells"].items()}
    assert list(inside.values()) == [1.0] * 4 + [None]


def test_every_radius_and_step_size_is_a_run():
    runs = ENTRIES(compare.CompareConfig(radii=(0.05, 0.5), step_sizes=(0.02,)))
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 9
    assert "wu-frank-wolfe ε = 0.5" in names and "unbalanced, exact α = 0.02" in names
    for run in runs:
        assert type(run.settings) is type(ATTACKS[run.attack].presets["paper"])
    radii = [run.settings.radius for run in runs if run.attack == "wu-projection"]
    assert radii == [0.05, 0.5]


# Going on, and refusing ---------------------------------------------------------------------------


def test_goes_on_where_it_stopped_and_is_not_repeated(command, copy, monkeypatch, capsys):
    before, results = contents(copy), results_of(copy)
    assert command(copy) == 0
    assert "finished before" in capsys.readouterr().out
    assert command(copy, "--radii", "0.02") == 2
    assert "another runs" in capsys.readouterr().err
    assert contents(copy) == before

    (copy / "results.json").unlink()
    (copy / "flow.npz").unlink()
    run, repeated = cells._run, []

    def watched(*arguments):
        repeated.append(arguments[-1])
        return run(*arguments)

    monkeypatch.setattr(cells, "_run", watched)
    assert command(copy) == 0
    assert repeated == ["4/5 flow"]
    again = results_of(copy)
    assert again["accuracy_at_distance"] == results["accuracy_at_distance"]
    assert list(again["cells"]) == list(results["cells"])
    for name, former in results["cells"].items():
        timed = {"seconds"} if name == "flow" else set()
        assert {key for key in former if again["cells"][name][key] != former[key]} <= timed


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--radii", "0"], "--radii"),
        (["--radii", "0.1", "nan"], "--radii"),
        (["--radii", "0.1", "0.1000000001"], "--radii"),
        (["--step-sizes", "-0.1"], "--step-sizes"),
        (["--step-sizes", "inf"], "--step-sizes"),
        (["--batch-size", "0"], "--batch-size"),
        (["--num-images", "0"], "--num-images"),
        (["--num-images", "1001"], "--num-images"),
        (["--seed", "-1"], "--seed"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, arguments, named):
    assert command(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


# Checking a run -----------------------------------------------------------------------------------


ALL = "all images"
CORNER = (4, 0, 0, 0)  # black in every digit, and out of reach
DISTANCES = ("distance", "euclidean", "mass_change")
MEDIANS = tuple(f"median_{name}" for name in DISTANCES)
PENALTY, BALL = "unbalanced, published α = 0.05", "wu-projection ε = 0.01"


def claims_of(attack, *names):
    return {(attack, name) for name in names}


def test_a_sound_run_agrees(finished, check):
    status, printed = check(finished)
    assert status == 0
    assert re.search(r": all \d+ agree\n$", printed.out)
    assert disagreeing(printed.out) == set()
    assert all(name in printed.out for name in (*RUNS, ALL))


def test_changed_images_are_named(copy, check):
    at("hu", "image", CORNER, 0.5)(copy)
    at("wu-frank-wolfe ε = 0.01", "image", CORNER, np.nan)(copy)
    at("flow", "image", (0, 0, 0, 0), -0.1)(copy)
    status, printed = check(copy)
    assert status == 1
    found = disagreeing(printed.out)
    assert found >= {
        *claims_of("hu", *DISTANCES, *MEDIANS, "window", "median_window"),
        *claims_of("wu-frank-wolfe ε = 0.01", "image in [0, 1]", *DISTANCES, "window"),
        *claims_of("flow", "image in [0, 1]", "no budget, no change", "mass_change"),
        (ALL, "accuracy_at_distance.distance.hu"),
    }
    assert {part for part, _ in found} == {"hu", "wu-frank-wolfe ε = 0.01", "flow", ALL}


def test_changed_arrays_are_named(copy, check):
    at("hu", "distance", 4, 0.0)(copy)
    at("hu", "euclidean", 4, np.nan)(copy)
    at("hu", "window", 4, 0.0)(copy)
    at("hu", "mass_change", 4, 0.1)(copy)
    at(BALL, "radius", 4, 0.5)(copy)
    at("wu-frank-wolfe ε = 0.01", "budget", 5, 9.0)(copy)
    at("flow", "success", 5, True)(copy)
    at(PENALTY, "budget", 4, 0.0)(copy)
    status, printed = check(copy)
    assert status == 1
    answers, radius = "success where prediction ≠ label", "radius = budget of a success"
    found = disagreeing(printed.out)
    # What is measured is taken in place of what was stored: no figure of the first differs.
    assert {pair for pair in found if pair[0] == "hu"} == claims_of("hu", *DISTANCES, "window")
    assert {pair for pair in found if pair[0] == BALL} == {(BALL, radius)}
    assert found >= {
        ("wu-frank-wolfe ε = 0.01", "budget ≤ the attack's largest radius"),
        *claims_of("flow", answers, radius, "accuracy", "interval"),
        *claims_of(
            PENALTY, radius, "no budget, no change", "without a budget where it was wrong as it is"
        ),
    }


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("cells", "hu", "accuracy"), 0.75, ("hu", "accuracy")),
        (("cells", "flow", "inside"), 0.99, ("flow", "inside")),
        (("cells", "hu", "median_distance"), None, ("hu", "median_distance")),
        (("cells", PENALTY, "unmatched", "median"), 0.9, (PENALTY, "unmatched")),
        (
            ("accuracy_at_distance", "distance", "flow", "0.1"),
            0.9,
            (ALL, "accuracy_at_distance.distance.flow"),
        ),
        (("nominal_accuracy",), 0.99, (ALL, "nominal_accuracy")),
        (("cells", "hu", "luck"), 0.5, ("settings", "figures are described")),
    ],
)
def test_a_changed_result_is_named_and_nothing_else(copy, check, keys, value, named):
    result(*keys, value=value)(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert disagreeing(printed.out) == {named}


def test_changed_settings_are_named(copy, check):
    entry("settings.json", "runs", 0, "increment", value=9.0)(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert ("settings", "settings.runs") in disagreeing(printed.out)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (result("settings", value=None), "settings"),
        (without("clean.npz"), "clean.npz"),
        (text("hu.npz", ""), "hu.npz"),
        (lambda folder: shutil.copy(folder / "flow.npz", folder / "hu.npz"), "window"),
        (array(PENALTY, "moved", None), "moved"),
    ],
)
def test_what_cannot_be_checked_is_one_line(copy, check, damage, named):
    damage(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 2
    assert printed.out == ""
    errors = [line for line in printed.err.splitlines() if line and "━" not in line]
    assert len(errors) == 1 and errors[0].startswith("error:") and named in errors[0]


@pytest.mark.parametrize("change", [result("cells", value=None), result("cells", "flow", value=7)])
def test_missing_cells_do_not_agree(copy, check, change):
    change(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert ("flow", "accuracy") in disagreeing(printed.out)
