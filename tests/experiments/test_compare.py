"""The comparison of all attacks: what it leaves, that its numbers are those of the images, and that
`verify` finds what was changed."""

import re
import shutil

import numpy as np
import pytest
from experiments._attacks import FAMILIES
from experiments._cli import run_command
from run_files import contents, disagreeing, result, results_of

from experiments import _evaluation, _grid, compare
from wasserstein_adv.metrics import exact_distance

# Of the six digits four are misclassified as they are, one is fooled soon, one only by some.
WINDOW = 3
QUICK = {
    "capped": {"increment": 0.004, "steps": 6, "window": WINDOW},
    "dual-projection": {"steps": 6, "window": WINDOW},
    "frank-wolfe": {"steps": 6, "window": WINDOW},
    "flow": {"start": 0.004, "factor": 1.4, "steps": 6},
    "unbalanced": {"steps": 3, "iterations": 3},
}
# Of all runs these, as most of the time goes into compiling: name ↦ (attack, setting, windowed).
RUNS = {
    "capped": ("capped", "", True),
    "dual-projection ε = 0.01": ("dual-projection", "ε = 0.01", True),
    "frank-wolfe ε = 0.01": ("frank-wolfe", "ε = 0.01", True),
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
        patch.setattr(_evaluation, "use_all_cores", lambda: None)
        patch.setattr(compare, "entries", some)
        for name, change in QUICK.items():
            paper = FAMILIES[name].presets["paper"]._replace(**change)
            patch.setitem(FAMILIES, name, FAMILIES[name]._replace(presets={"paper": paper}))
        basic = ["--data", "mnist-5k", "--num-images", "6", "--checkpoint", str(weights)]
        lengths = ["--radii", "0.01", "--step-sizes", "0.05"]

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


def file_of(folder, name):
    return folder / f"{re.sub('[^-.=0-9A-Za-zεα]', '-', name)}.npz"


def arrays_of(folder, name):
    with np.load(file_of(folder, name)) as stored:
        return dict(stored)


# What a run leaves --------------------------------------------------------------------------------


def test_leaves_a_row_for_every_run(finished):
    results = results_of(finished)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": 6}
    assert {"model", "environment", "seed", "command"} <= set(results)
    assert [run["name"] for run in results["settings"]["runs"]] == list(RUNS)
    rows = [(row["attack"], row["setting"]) for row in results["rows"]]
    assert rows == [(attack, setting) for attack, setting, _ in RUNS.values()]
    for run in results["settings"]["runs"]:
        assert run["settings"].items() >= QUICK[run["family"]].items()
    clean = np.load(finished / "clean.npz")
    assert clean["clean"].shape == (6, 28, 28, 1) and clean["label"].shape == (6,)
    assert (finished / "compare.png").read_bytes().startswith(b"\x89PNG")
    lines = (finished / "table.md").read_text().splitlines()
    shown = [line for line in lines if line.startswith("| ")]
    # Three tables, each with two lines above its rows.
    assert len(shown) == 3 * (2 + len(RUNS))
    for line, (attack, setting, _) in zip(shown[2:], RUNS.values(), strict=False):
        assert line.startswith(f"| {attack} | {setting} |")


def test_numbers_are_those_of_the_images(finished):
    rulers = {"manhattan": lambda drow, dcol: abs(drow) + abs(dcol), "euclidean": np.hypot}
    results, clean = results_of(finished), np.load(finished / "clean.npz")
    x, label = clean["clean"], clean["label"]

    def measured(images, cost, window=None):
        pairs = zip(x, images, strict=True)
        return np.array([float(exact_distance(*pair, cost, window).total) for pair in pairs])

    fates = set()
    for row, (name, (attack, _, windowed)) in zip(results["rows"], RUNS.items(), strict=True):
        arrays = arrays_of(finished, name)
        images = arrays["image"]
        assert images.min() >= 0 and images.max() <= 1
        fooled = arrays["prediction"] != label
        unchanged = (images == x).all((1, 2, 3))
        moved = fooled & ~unchanged
        fates |= set(zip(fooled.tolist(), unchanged.tolist(), strict=True))
        np.testing.assert_array_equal(arrays["success"], fooled)
        assert row["accuracy"] == (~fooled).mean()
        assert row["seconds_per_image"] == pytest.approx(float(arrays["seconds"]) / 6)
        assert results["nominal_accuracy"] == (~fooled | moved).mean()

        distances = {ruler: measured(images, cost) for ruler, cost in rulers.items()}
        mass = images.sum((1, 2, 3), np.float64) / x.sum((1, 2, 3), np.float64) - 1
        expected = {"distance": distances["manhattan"], "euclidean": distances["euclidean"]}
        assert ("window" in arrays) == windowed
        if windowed:
            expected["window"] = measured(images, np.hypot, WINDOW)
        for key, values in {**expected, "mass_change": mass}.items():
            np.testing.assert_allclose(arrays[key], values, rtol=1e-6, atol=1e-7)
        for key, values in {**distances, "mass": mass}.items():
            assert row[key] == pytest.approx(np.median(values[moved]), rel=1e-6, abs=1e-7)

        if attack == UNBALANCED:
            assert row["claimed"] is row["inside"] is None
        else:
            assert row["claimed"] == pytest.approx(np.median(arrays["budget"][moved]))
            inside = expected.get("window", expected["distance"]) <= arrays["budget"] * 1.0001
            assert row["inside"] == inside[~unchanged].mean()

        for ruler, values in distances.items():
            needed = np.where(fooled, np.where(unchanged, 0, values), np.inf)
            curve = results["accuracy_at_distance"][ruler][attack]
            assert curve == {at: (needed > float(at)).mean() for at in curve}
    # Wrong at first, fooled, and not fooled: all of them were there.
    assert fates == {(True, True), (True, False), (False, False)}


def test_what_claims_a_radius_keeps_it(finished):
    inside = {row["attack"]: row["inside"] for row in results_of(finished)["rows"]}
    assert inside["capped"] == inside["dual-projection"] == inside["flow"] == 1.0
    assert inside["frank-wolfe"] == 1.0


def test_an_image_counts_with_the_least_distance_at_which_it_was_fooled():
    near, far = (compare.Entry("capped", "capped", None, f"ε = {r}") for r in (0.1, 0.5))
    # Wrong at first, fooled in both, fooled in the larger ball, never fooled.
    success = {near: [True, True, False, False], far: [True, True, True, False]}
    distance = {near: [0.0, 0.1, 0.09, 0.1], far: [0.0, 0.04, 0.4, 0.5]}
    found = {
        entry.name: {
            "success": np.array(success[entry]),
            "budget": np.array([0.0, 1.0, 1.0, 1.0], np.float32),
            "distance": np.array(distance[entry]),
            "euclidean": np.array(distance[entry]) / 2,
        }
        for entry in (near, far)
    }
    left = compare.accuracy_at_distances([near, far], found)
    at = ("0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1")
    manhattan, euclidean = (left[ruler]["capped"] for ruler in ("manhattan", "euclidean"))
    assert manhattan == dict(zip(at, (0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25), strict=True))
    assert euclidean == dict(zip(at, (0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25), strict=True))


def test_every_radius_and_step_size_is_a_run():
    runs = ENTRIES(compare.CompareConfig(radii=(0.05, 0.5), step_sizes=(0.02,)))
    names = [run.name for run in runs]
    assert len(set(names)) == len(names) == 9
    assert "frank-wolfe ε = 0.5" in names and "unbalanced, exact α = 0.02" in names
    for run in runs:
        assert type(run.settings) is type(FAMILIES[run.family].presets["paper"])
    radii = [run.settings.radius for run in runs if run.family == "dual-projection"]
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
    run, repeated = _grid._run, []

    def watched(*arguments):
        repeated.append(arguments[-1])
        return run(*arguments)

    monkeypatch.setattr(_grid, "_run", watched)
    assert command(copy) == 0
    assert repeated == ["4/5 flow"]
    again = results_of(copy)
    assert again["accuracy_at_distance"] == results["accuracy_at_distance"]
    for row, former in zip(again["rows"], results["rows"], strict=True):
        timed = {"seconds", "seconds_per_image"} if row["attack"] == "flow" else set()
        assert {key for key in former if row[key] != former[key]} <= timed


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


def array(file, name, index, value):
    """Changes an element of an array."""

    def change(folder):
        arrays = arrays_of(folder, file)
        arrays[name][index] = value
        np.savez_compressed(file_of(folder, file), **arrays)

    return change


ALL = "all attacks"
CORNER = (0, 0, 0)  # black in every digit, and out of reach
DISTANCES = ("distance", "euclidean", "mass_change")


def claims_of(attack, *names):
    return {(attack, name) for name in names}


def test_a_sound_run_agrees(finished, check):
    status, printed = check(finished)
    assert status == 0
    assert re.search(r": all \d+ agree\n$", printed.out)
    assert disagreeing(printed.out) == set()
    assert all(name in printed.out for name in (*RUNS, ALL))


def test_changed_images_are_named(copy, check):
    array("capped", "image", (4, *CORNER), 0.5)(copy)
    array("frank-wolfe ε = 0.01", "image", (4, *CORNER), np.nan)(copy)
    array("flow", "image", (0, *CORNER), -0.1)(copy)
    status, printed = check(copy)
    assert status == 1
    assert disagreeing(printed.out) == {
        *claims_of("capped", *DISTANCES, "window", "row"),
        *claims_of("frank-wolfe ε = 0.01", "image in [0, 1]", *DISTANCES, "window", "row"),
        *claims_of("flow", "image in [0, 1]", "no budget, no change", *DISTANCES, "row"),
        (ALL, "accuracy_at_distance"),
    }


def test_changed_arrays_are_named(copy, check):
    array("capped", "distance", 4, 0.0)(copy)
    array("capped", "euclidean", 4, np.nan)(copy)
    array("capped", "window", 4, 0.0)(copy)
    array("capped", "mass_change", 4, 0.1)(copy)
    array("dual-projection ε = 0.01", "radius", 4, 0.5)(copy)
    array("frank-wolfe ε = 0.01", "budget", 5, 9.0)(copy)
    array("flow", "success", 5, True)(copy)
    array("unbalanced, published α = 0.05", "budget", 4, 0.0)(copy)
    status, printed = check(copy)
    assert status == 1
    answers, radius = "success where prediction ≠ label", "radius = budget of a success"
    assert disagreeing(printed.out) == {
        *claims_of("capped", *DISTANCES, "window"),
        ("dual-projection ε = 0.01", radius),
        ("frank-wolfe ε = 0.01", "budget ≤ the attack's largest radius"),
        *claims_of("flow", answers, radius, "row"),
        *claims_of(
            "unbalanced, published α = 0.05",
            radius,
            "no budget, no change",
            "right without an attack as in the first run",
            "row",
        ),
        (ALL, "accuracy_at_distance"),
    }


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("rows", 0, "accuracy"), 0.75, ("capped", "row")),
        (("rows", 3, "inside"), 0.99, ("flow", "row")),
        (("rows", 0, "manhattan"), None, ("capped", "row")),
        (("rows", 4, "unmatched", "median"), 0.9, ("unbalanced, published α = 0.05", "row")),
        (
            ("accuracy_at_distance", "manhattan", "flow", "0.1"),
            0.9,
            (ALL, "accuracy_at_distance"),
        ),
        (("nominal_accuracy",), 0.99, (ALL, "nominal_accuracy")),
        (("dataset", "num_images"), 7, (ALL, "dataset.num_images")),
    ],
)
def test_a_changed_result_is_named_and_nothing_else(copy, check, keys, value, named):
    result(*keys, value=value)(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert disagreeing(printed.out) == {named}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (result("rows", value=None), "rows"),
        (result("rows", 0, value=None), "rows"),
        (result("rows", 0, value=7), "run 0"),
        (result("rows", 1, "setting", value="ε = 9"), "row 1"),
        (result("settings", value=None), "settings"),
        (result("settings", "runs", value=[]), "rows"),
        (result("settings", "runs", 0, "family", value="brute-force"), "brute-force"),
        (result("settings", "runs", 0, "settings", value=None), "settings"),
        (result("settings", "runs", 0, "settings", "p", value="1"), "run 0.p"),
        (result("settings", "runs", 0, "settings", "steps", value=0), "--steps"),
        (lambda folder: (folder / "clean.npz").unlink(), "clean.npz"),
        (lambda folder: (folder / "capped.npz").write_text(""), "capped.npz"),
        (lambda folder: shutil.copy(folder / "flow.npz", folder / "capped.npz"), "window"),
    ],
)
def test_what_cannot_be_checked_is_one_line(copy, check, damage, named):
    damage(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 2
    assert printed.out == ""
    errors = [line for line in printed.err.splitlines() if line and "distances" not in line]
    assert len(errors) == 1 and errors[0].startswith("error:") and named in errors[0]
