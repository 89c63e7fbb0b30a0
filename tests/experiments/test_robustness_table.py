"""The matrix of models and attacks: what it leaves, and that its numbers are the attacks'."""

import json
import shutil

import jax
import numpy as np
import pytest
from experiments._attacks import FAMILIES
from experiments._cli import run_command
from experiments._weights import MODEL_NAME, WEIGHTS, abstract_variables, load_weights, save
from run_files import contents, disagreeing, result, results_of

from experiments import _grid, robustness_table
from wasserstein_adv.attacks import constant, first_order, first_success, linf_ball, pgd, sign
from wasserstein_adv.metrics import accuracy_at, exact_distances
from wasserstein_adv.models import MODELS

COUNT, MEASURED = 6, 5
# Of the six digits the first network has four wrong as they are, and the other all: attacks have
# nothing to do there, and so nothing to compile.
QUICK = {
    "flow": {"start": 0.004, "factor": 1.4, "steps": 4},
    "unbalanced": {"step_size": 0.05, "steps": 3},
}
OTHER = "carlini-wagner"


def sign_steps(grid_size, protocol, **options):
    """Stands in for the attack without a ball: its steps with no projection, quick to compile."""
    del grid_size
    step = pgd(sign(protocol.step_size))
    return first_order(linf_ball(), step, radius=constant(1.0), steps=protocol.steps, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a training of another network leaves, which answers 1 to everything."""
    folder = tmp_path_factory.mktemp("trained") / "defended"
    folder.mkdir()
    expected = abstract_variables(MODELS[OTHER](), "mnist-5k")
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), expected)
    variables["params"]["dense3"]["bias"][1] = 1.0
    save(folder / WEIGHTS, variables)
    (folder / MODEL_NAME).write_text(json.dumps({"model": OTHER}))
    return folder


@pytest.fixture(scope="module")
def command(weights, trained):
    """Runs the command on six digits for a few small steps; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustness_table, "use_all_cores", lambda: None)
        for name, change in QUICK.items():
            paper = FAMILIES[name].presets["paper"]._replace(**change)
            build = sign_steps if name == "unbalanced" else FAMILIES[name].build
            quick = FAMILIES[name]._replace(presets={"paper": paper}, build=build)
            patch.setitem(FAMILIES, name, quick)
        options = {
            "--data": ["mnist-5k"],
            "--checkpoints": [f"plain={weights}", str(trained)],
            "--attacks": list(QUICK),
            "--num-images": [str(COUNT)],
            "--distance-images": [str(MEASURED)],
        }

        def run(out, **given):
            changed = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
            parts = {**options, **changed, "--out": [str(out)]}
            argv = [word for option, values in parts.items() for word in (option, *values)]
            return run_command(robustness_table.main, robustness_table.RobustnessTableConfig, argv)

        yield run


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("robustness") / "run"
    assert command(folder) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(finished, tmp_path / "run")


def arrays_of(folder, name):
    with np.load(folder / f"{name}.npz") as stored:
        return dict(stored)


MODELS_SHOWN = ("plain", "defended")
CELLS = [(attack, model) for attack in QUICK for model in MODELS_SHOWN]


# What a run leaves --------------------------------------------------------------------------------


def test_leaves_a_cell_for_every_model_and_attack(finished):
    results = results_of(finished)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": COUNT}
    assert {"environment", "seed", "command", "settings"} <= set(results)
    assert [(cell["attack"], cell["model"]) for cell in results["cells"]] == CELLS
    digests = {name: model["weights"] for name, model in results["models"].items()}
    assert digests == results["settings"]["checkpoints"] and tuple(digests) == MODELS_SHOWN
    assert len(set(digests.values())) == 2
    for attack, settings in results["settings"]["attacks"].items():
        assert settings.items() >= QUICK[attack].items()
    files = {f"{model}-{attack}.npz" for attack, model in CELLS}
    others = {"clean.npz", "results.json", "settings.json", "table.md", "robustness.png", ".lock"}
    assert set(contents(finished)) == files | others
    assert (finished / "robustness.png").read_bytes().startswith(b"\x89PNG")


def test_table_holds_every_name_and_number(finished):
    results, text = results_of(finished), (finished / "table.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    assert rows[0][1:] == ["no attack", "flow, 4 steps", "unbalanced, 3 steps"]
    shares = {(cell["attack"], cell["model"]): cell for cell in results["cells"]}
    for row, (name, model) in zip(rows[2:4], results["models"].items(), strict=True):
        left = [model["nominal_accuracy"], *(shares[a, name]["accuracy"] for a in QUICK)]
        assert row[0] == name
        assert [cell.split()[0] for cell in row[1:]] == [f"{100 * share:.1f}" for share in left]
    by_title = {row[0]: (row, *rows[at + 2 : at + 4]) for at, row in enumerate(rows)}
    for attack in QUICK:
        keys = {"after steps": "accuracy_after_steps", "at W": "accuracy_at_distances"}
        for title, key in keys.items():
            header, *body = by_title[f"{attack}: left % {title}"]
            for name, *numbers in body:
                curve = shares[attack, name][key]
                assert list(curve) == header[1:]
                assert numbers == [f"{100 * share:.1f}" for share in curve.values()]


def test_figure_has_a_curve_for_every_model(finished, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(robustness_table, "save_figure", lambda figure, _: figures.append(figure))
    results = results_of(finished)
    found = {
        (model, attack): robustness_table.fooled_at(arrays_of(finished, f"{model}-{attack}"))
        for attack, model in CELLS
    }
    robustness_table._plot(tmp_path / "unused.png", results, found)
    (figure,) = figures
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in drawn] == [*QUICK, "", ""]
    for axes in drawn:
        assert [line.get_label() for line in axes.get_lines()] == list(MODELS_SHOWN)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(MODELS_SHOWN)


@pytest.mark.parametrize("attacks", [1, 3, 4, 6])
def test_figure_has_a_panel_for_every_attack(attacks, monkeypatch):
    figures = []
    monkeypatch.setattr(robustness_table, "save_figure", lambda figure, _: figures.append(figure))
    names = list(FAMILIES)[:attacks]
    never = robustness_table.Fooled(np.full(3, np.inf), np.full(2, np.inf))
    results = {
        "dataset": {"name": "mnist", "num_images": 3},
        "settings": {"distance_images": 2},
        "models": {"plain": {}},
        "cells": [{"attack": name, "model": "plain", "steps": 5} for name in names],
    }
    robustness_table._plot(None, results, {("plain", name): never for name in names})
    drawn = [axes for axes in figures[0].axes if axes.axison]
    titles = [axes.get_title(loc="left") for axes in drawn]
    assert len(drawn) == 2 * attacks and [title for title in titles if title] == names


# Its numbers --------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_attack(finished, weights):
    clean = np.load(finished / "clean.npz")
    x, y = clean["clean"], clean["label"]
    model, variables = load_weights(weights, "mnist-5k")

    def logits_fn(images):
        return model.apply(variables, images)

    family = FAMILIES["unbalanced"]
    protocol = family.presets["paper"]
    attack = family.build((28, 28), protocol, keep=first_success())
    run = jax.jit(lambda images, labels: attack(jax.random.key(0), logits_fn, images, labels))
    result = jax.tree.map(np.asarray, run(x, y))
    cell = results_of(finished)["cells"][CELLS.index(("unbalanced", "plain"))]
    needed = np.where(result.success, result.steps, np.inf)
    at = np.arange(protocol.steps + 1)
    assert len(set(cell["accuracy_after_steps"].values())) > 1
    assert list(cell["accuracy_after_steps"].values()) == accuracy_at(needed, at).accuracy.tolist()
    assert cell["accuracy"] == (~result.success).mean()

    cost = family.cost(protocol, (28, 28))
    distance = exact_distances(x[:MEASURED], result.image[:MEASURED], cost).total
    needed = np.where(result.success[:MEASURED], distance, np.inf)
    at = np.array([float(value) for value in cell["accuracy_at_distances"]])
    assert cell["images_measured"] == MEASURED
    assert list(cell["accuracy_at_distances"].values()) == accuracy_at(needed, at).accuracy.tolist()


def test_every_cell_agrees_with_its_images(finished):
    results = results_of(finished)
    clean = np.load(finished / "clean.npz")
    x, y = clean["clean"][:MEASURED], clean["label"]
    fates = set()
    for cell in results["cells"]:
        arrays = arrays_of(finished, f"{cell['model']}-{cell['attack']}")
        fooled, steps = arrays["prediction"] != y, arrays["steps"]
        moved = fooled & (steps > 0)
        fates |= set(zip(fooled.tolist(), moved.tolist(), strict=True))
        np.testing.assert_array_equal(arrays["success"], fooled)
        nominal = results["models"][cell["model"]]["nominal_accuracy"]
        assert nominal == (~fooled | moved).mean() == cell["accuracy_after_steps"]["0"]
        assert cell["accuracy"] == cell["accuracy_after_steps"][str(cell["steps"])]
        low, high = cell["interval"]
        assert low <= cell["accuracy"] <= high

        family = FAMILIES[cell["attack"]]
        protocol = family.presets["paper"]
        distance = exact_distances(x, arrays["image"], family.cost(protocol, (28, 28))).total
        np.testing.assert_allclose(arrays["distance"], distance, rtol=1e-6, atol=1e-7)
        first = moved[:MEASURED]
        medians = {
            "median_distance": distance[first],
            "median_claimed": arrays["budget"][moved] if family.ball else [],
            "median_mass_change": arrays["mass_change"][moved],
        }
        for key, values in medians.items():
            expected = pytest.approx(np.median(values), abs=1e-7) if len(values) else None
            assert cell[key] == expected
        claims = bool(family.ball) and (arrays["budget"][:MEASURED] > 0).any()
        assert cell["inside"] == (1.0 if claims else None)
    # Wrong at first, fooled, and not fooled: all of them were there.
    assert fates == {(True, False), (True, True), (False, False)}


def test_what_it_took_to_fool_an_image():
    arrays = {
        # Wrong at first, fooled, fooled where no plan exists, not fooled, and one not measured.
        "success": np.array([True, True, True, False, True]),
        "steps": np.array([0, 2, 3, 4, 1], np.int32),
        "distance": np.array([0.0, 0.25, np.inf, 0.5]),
    }
    fooled = robustness_table.fooled_at(arrays)
    assert fooled.steps.tolist() == [0, 2, 3, np.inf, 1]
    assert fooled.distance.tolist() == [0, 0.25, np.inf, np.inf]


def test_a_claim_is_checked_inside_its_window_where_there_is_one():
    protocol = FAMILIES["capped"].presets["paper"]
    cell = robustness_table.cell_of("capped", protocol, (28, 28))
    assert list(cell.others) == ["window"] and cell.others["window"][1] == protocol.window
    assert not robustness_table.cell_of("flow", FAMILIES["flow"].presets["paper"], (28, 28)).others
    arrays = {
        "success": np.array([True, True, False, True]),
        "steps": np.array([0, 1, 2, 2], np.int32),
        "budget": np.array([0.0, 0.5, 1.0, 1.0], np.float32),
        "distance": np.array([0.0, 0.25, 0.5]),
        "window": np.array([0.0, 0.5, 1.5]),
        "mass_change": np.array([0.0, 0.5, 1.0, 0.0]),
        "seconds": np.float64(2.0),
    }
    found = robustness_table.cell_results(arrays, "capped", 2, (0.1, 0.25))
    assert found["accuracy"] == 0.25
    assert found["accuracy_after_steps"] == {"0": 0.75, "1": 0.5, "2": 0.25}
    assert found["accuracy_at_distances"] == {"0.1": 2 / 3, "0.25": 1 / 3}
    assert found["median_distance"] == 0.25 and found["median_mass_change"] == 0.25
    assert found["median_claimed"] == 0.75
    assert found["inside"] == 0.5 and found["images_measured"] == 3
    unbounded = robustness_table.cell_results(arrays, "unbalanced", 2, (0.1,))
    assert unbounded["inside"] is unbounded["median_claimed"] is None


def test_tables_show_a_handful_of_iterations():
    assert robustness_table.marks(1) == (0, 1)
    assert robustness_table.marks(10) == (0, 2, 4, 6, 8, 10)
    assert robustness_table.marks(75) == (0, 10, 20, 30, 40, 50, 60, 70, 75)
    assert robustness_table.marks(200) == (0, 50, 100, 150, 200)


def test_steps_are_those_of_every_attack():
    names = ("projected-sinkhorn", "frank-wolfe", "unbalanced")
    protocols = robustness_table.protocols_of(names, 75, colour=True)
    assert {protocol.steps for protocol in protocols.values()} == {75}
    paper = robustness_table.protocols_of(names, None, colour=True)
    assert paper["projected-sinkhorn"] == FAMILIES["projected-sinkhorn"].colour["paper"]
    assert paper["unbalanced"] == FAMILIES["unbalanced"].presets["paper"]


# Going on, and refusing ---------------------------------------------------------------------------


def test_goes_on_where_it_stopped_and_is_not_repeated(command, copy, monkeypatch, capsys):
    before, results = contents(copy), results_of(copy)
    assert command(copy) == 0
    assert "finished before" in capsys.readouterr().out
    assert contents(copy) == before

    (copy / "results.json").unlink()
    (copy / "defended-flow.npz").unlink()
    run, repeated = _grid._run, []

    def watched(*arguments):
        repeated.append(arguments[-1])
        return run(*arguments)

    monkeypatch.setattr(_grid, "_run", watched)
    assert command(copy) == 0
    assert repeated == ["1/2 defended flow"]
    again = results_of(copy)
    assert again["models"] == results["models"]
    for cell, former in zip(again["cells"], results["cells"], strict=True):
        new = (cell["model"], cell["attack"]) == ("defended", "flow")
        assert {key for key in former if cell[key] != former[key]} <= (
            {"seconds"} if new else set()
        )


def test_other_weights_under_a_name_are_refused(command, copy, weights, trained, capsys):
    before = contents(copy)
    assert command(copy, checkpoints=[f"plain={trained}", f"defended={weights}"]) == 2
    assert "another checkpoints" in capsys.readouterr().err
    assert command(copy, distance_images=["3"]) == 2
    assert "another distance_images" in capsys.readouterr().err
    assert contents(copy) == before


def test_names_of_checkpoints():
    given = ["a=x/y.pth", "run/b=c", "deep/vanilla.pth", "runs/wong/", "Wong 2019=z=1"]
    found = robustness_table.named_paths(given)
    assert {name: str(path) for name, path in found.items()} == {
        "a": "x/y.pth",
        "b=c": "run/b=c",
        "vanilla": "deep/vanilla.pth",
        "wong": "runs/wong",
        "Wong 2019": "z=1",
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"attacks": ["newton"]}, "newton"),
        ({"attacks": []}, "--attacks"),
        ({"attacks": ["capped", "capped"]}, "--attacks"),
        ({"checkpoints": ["=nowhere.pth"]}, "NAME=PATH"),
        ({"checkpoints": ["a="]}, "NAME=PATH"),
        ({"checkpoints": ["$a$=nowhere.pth"]}, "$a$"),
        ({"checkpoints": ["a=nowhere.pth", "a=elsewhere.pth"]}, "'a' again"),
        ({"checkpoints": ["a b=nowhere.pth", "A-b=elsewhere.pth"]}, "'A-b' again"),
        ({"checkpoints": ["a=nowhere.pth"]}, "nowhere.pth"),
        ({"num_images": ["1001"]}, "--num-images"),
        ({"num_images": ["0"]}, "--num-images"),
        ({"distance_images": ["0"]}, "--distance-images"),
        ({"batch_size": ["0"]}, "--batch-size"),
        ({"steps": ["0"]}, "--steps"),
        ({"seed": ["-1"]}, "--seed"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, given, named):
    assert command(tmp_path / "run", **given) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


# Checking a run -----------------------------------------------------------------------------------


def array(file, name, index, value):
    """Changes an element of an array."""

    def change(folder):
        arrays = arrays_of(folder, file)
        arrays[name][index] = value
        np.savez_compressed(folder / f"{file}.npz", **arrays)

    return change


def test_a_sound_table_agrees(finished, check):
    status, printed = check(finished)
    assert status == 0
    assert disagreeing(printed.out) == set()
    assert all(f"{model} {attack}" in printed.out for attack, model in CELLS)


CORNER = (3, 0, 0, 0)
RIGHT = "right without an attack as under the first"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            array("plain-flow", "image", CORNER, 0.5),
            {
                ("plain flow", name)
                for name in ("distance", "mass_change", "no budget, no change", "cell")
            },
        ),
        (
            array("defended-unbalanced", "success", -1, False),
            {
                ("defended unbalanced", name)
                for name in (
                    "success where prediction ≠ label",
                    "radius = budget of a success",
                    RIGHT,
                    "cell",
                )
            },
        ),
        (
            result("cells", 0, "accuracy_at_distances", "0.1", value=2.0),
            {("plain flow", "cell")},
        ),
        (
            result("models", "plain", "nominal_accuracy", value=0.9),
            {("all cells", "models.plain.nominal_accuracy")},
        ),
    ],
)
def test_what_was_changed_is_named(copy, check, change, found):
    change(copy)
    status, printed = check(copy)
    assert status == 1
    assert disagreeing(printed.out) == found


def test_distances_of_some_images_only(copy, check):
    array("plain-flow", "distance", MEASURED - 1, 0.123)(copy)
    _, printed = check(copy, "--images", "2")
    assert ("plain flow", "distance") not in disagreeing(printed.out)
    assert check(copy)[0] == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (result("cells", 0, "model", value="another"), "a cell for each model"),
        (result("cells", value=3), "cells is not a list"),
        (result("settings", "distance_images", value=7), "distance_images"),
        (result("settings", "attacks", "flow", "steps", value="many"), "flow.steps"),
        (result("models", value=None), "nothing under models"),
        (lambda run: (run / "plain-flow.npz").unlink(), "plain-flow.npz"),
    ],
)
def test_what_cannot_be_checked_is_one_line(copy, check, change, named):
    change(copy)
    status, printed = check(copy)
    assert status == 2
    assert printed.err.startswith("error:") and printed.err.count("\n") == 1
    assert named in printed.err
