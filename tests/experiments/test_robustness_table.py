"""The matrix of models and attacks: what it leaves, and that its numbers are the attacks'."""

import json
import shutil

import jax
import numpy as np
import pytest
from run_files import arrays_of, at, contents, disagreeing, entry, result, results_of, text, without

from experiments import robustness_table
from experiments.evaluation import cells
from experiments.evaluation.cells import figures_of
from experiments.evaluation.subjects import Subject, named_paths
from experiments.harness.arguments import run_command
from experiments.harness.catalogue.attacks import ATTACKS
from experiments.training.weights import (
    MODEL_NAME,
    WEIGHTS,
    abstract_variables,
    load_weights,
    save,
)
from wasserstein_adv.attacks import constant, first_order, first_success, linf_ball, pgd, sign
from wasserstein_adv.evidence import Ground, Part
from wasserstein_adv.evidence import results_of as worked_out
from wasserstein_adv.metrics import accuracy_at, exact_distances
from wasserstein_adv.models import MODELS

COUNT, MEASURED = 6, 5
# Of the six digits the first network has four wrong as they are, and the other all: attacks have
# nothing to do there, and so nothing to compile.
QUICK = {
    "flow": {"start_radius": 0.004, "growth": 1.4, "steps": 4},
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
        for name, change in QUICK.items():
            paper = ATTACKS[name].presets["paper"]._replace(**change)
            build = sign_steps if name == "unbalanced" else ATTACKS[name].build
            quick = ATTACKS[name]._replace(presets={"paper": paper}, build=build)
            patch.setitem(ATTACKS, name, quick)
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


MODELS_SHOWN = ("plain", "defended")
CELLS = [(attack, model) for attack in QUICK for model in MODELS_SHOWN]


# What a run leaves --------------------------------------------------------------------------------


def test_leaves_a_cell_for_every_model_and_attack(finished):
    results = results_of(finished)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": COUNT}
    assert {"environment", "seed", "command", "settings"} <= set(results)
    assert list(results["cells"]) == [f"{model} {attack}" for attack, model in CELLS]
    assert [(cell["attack"], cell["model"]) for cell in results["cells"].values()] == CELLS
    digests = {name: model["weights"] for name, model in results["models"].items()}
    assert digests == results["settings"]["checkpoints"] and tuple(digests) == MODELS_SHOWN
    assert len(set(digests.values())) == 2
    for attack, settings in results["settings"]["attacks"].items():
        assert settings.items() >= QUICK[attack].items()
    files = {f"{model}-{attack}.npz" for attack, model in CELLS}
    others = {"clean.npz", "results.json", "settings.json", "evidence.json", "table.md", ".lock"}
    assert set(contents(finished)) == {*files, *others, "robustness.png"}
    assert (finished / "robustness.png").read_bytes().startswith(b"\x89PNG")


def test_table_holds_every_name_and_number(finished):
    results, text = results_of(finished), (finished / "table.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    # First all measures, a row for each model alone and for each cell.
    measures, rows = rows[: 2 + 2 + len(CELLS)], rows[2 + 2 + len(CELLS) :]
    assert [tuple(row[:2]) for row in measures[2:]] == [
        *(("no attack", name) for name in MODELS_SHOWN),
        *CELLS,
    ]
    for row, (attack, model) in zip(measures[4:], CELLS, strict=True):
        cell = results["cells"][f"{model} {attack}"]
        assert row[2].startswith(f"{100 * cell['accuracy']:.1f} (")
        median = cell["median_distance"]
        assert row[3] == ("–" if median is None else f"{median:.3g}")
    assert rows[0][1:] == ["no attack", "flow, 4 steps", "unbalanced, 3 steps"]
    shares = {(cell["attack"], cell["model"]): cell for cell in results["cells"].values()}
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


GROUNDS = {"flow": Ground(), "unbalanced": Ground("minkowski", 1.0, 1 / 27, 1 / 27)}


def test_figure_has_a_curve_for_every_model(finished, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(robustness_table, "save_figure", lambda figure, _: figures.append(figure))
    files = {
        f"{model}-{attack}": arrays_of(finished, f"{model}-{attack}") for attack, model in CELLS
    }
    robustness_table._plot(tmp_path / "unused.png", results_of(finished), files, GROUNDS)
    (figure,) = figures
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in drawn] == [*QUICK, "", ""]
    units = [axes.get_xlabel().rpartition(", ")[2] for axes in drawn]
    assert units == ["iterations", "iterations", "pixels", "sides of the image"]
    for axes in drawn:
        assert [line.get_label() for line in axes.get_lines()] == list(MODELS_SHOWN)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(MODELS_SHOWN)


@pytest.mark.parametrize("attacks", [1, 3, 4, 6])
def test_figure_has_a_panel_for_every_attack(attacks, monkeypatch):
    figures = []
    monkeypatch.setattr(robustness_table, "save_figure", lambda figure, _: figures.append(figure))
    names = list(ATTACKS)[:attacks]
    never = {
        "success": np.zeros(3, bool),
        "steps": np.full(3, 5),
        "distance": np.zeros(2),
        "budget": np.ones(3),
    }
    results = {
        "dataset": {"name": "mnist", "split": "test", "num_images": 3},
        "settings": {"distance_images": 2, "attacks": {name: {"steps": 5} for name in names}},
        "models": {"plain": {}},
    }
    files = {f"plain-{name}": never for name in names}
    robustness_table._plot(None, results, files, dict.fromkeys(names, Ground()))
    drawn = [axes for axes in figures[0].axes if axes.axison]
    titles = [axes.get_title(loc="left") for axes in drawn]
    assert len(drawn) == 2 * attacks and [title for title in titles if title] == names


# Its numbers --------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_attack(finished, weights):
    clean = arrays_of(finished, "clean")
    x, y = clean["image"], clean["label"]
    model, variables = load_weights(weights, "mnist-5k")

    def logits_fn(images):
        return model.apply(variables, images)

    added = ATTACKS["unbalanced"]
    protocol = added.presets["paper"]
    attack = added.build((28, 28), protocol, keep=first_success())
    run = jax.jit(lambda images, labels: attack(jax.random.key(0), logits_fn, images, labels))
    result = jax.tree.map(np.asarray, run(x, y))
    cell = results_of(finished)["cells"]["plain unbalanced"]
    needed = np.where(result.success, result.steps, np.inf)
    at = np.arange(protocol.steps + 1)
    assert len(set(cell["accuracy_after_steps"].values())) > 1
    assert list(cell["accuracy_after_steps"].values()) == accuracy_at(needed, at).accuracy.tolist()
    assert cell["accuracy"] == (~result.success).mean()

    pairs = x[:MEASURED], result.image[:MEASURED]
    distance = exact_distances(*pairs, lambda drow, dcol: (abs(drow) + abs(dcol)) / 27).total
    needed = np.where(result.success[:MEASURED], distance, np.inf)
    at = np.array([float(value) for value in cell["accuracy_at_distances"]])
    assert len(arrays_of(finished, "plain-unbalanced")["distance"]) == MEASURED
    assert list(cell["accuracy_at_distances"].values()) == accuracy_at(needed, at).accuracy.tolist()


def test_every_cell_agrees_with_its_images(finished):
    results = results_of(finished)
    clean = arrays_of(finished, "clean")
    x, y = clean["image"][:MEASURED], clean["label"]
    units, fates = {"flow": 1, "unbalanced": 27}, set()
    for name, cell in results["cells"].items():
        arrays = arrays_of(finished, name)
        fooled, steps = arrays["prediction"] != y, arrays["steps"]
        moved = fooled & (steps > 0)
        fates |= set(zip(fooled.tolist(), moved.tolist(), strict=True))
        np.testing.assert_array_equal(arrays["success"], fooled)
        nominal = results["models"][cell["model"]]["nominal_accuracy"]
        assert nominal == (~fooled | moved).mean() == cell["accuracy_after_steps"]["0"]
        assert cell["accuracy"] == list(cell["accuracy_after_steps"].values())[-1]
        low, high = cell["interval"]
        assert low <= cell["accuracy"] <= high

        unit = units[cell["attack"]]
        pairs = x, arrays["image"][:MEASURED]
        distance = exact_distances(*pairs, lambda r, c, u=unit: (abs(r) + abs(c)) / u).total
        np.testing.assert_allclose(arrays["distance"], distance, rtol=1e-6, atol=1e-7)
        first, ball = moved[:MEASURED], cell["attack"] == "flow"
        medians = {
            "median_distance": distance[first],
            "median_mass_change": arrays["mass_change"][moved],
            **({"claimed": arrays["budget"][moved]} if ball else {}),
        }
        for key, values in medians.items():
            expected = pytest.approx(np.median(values), abs=1e-7) if len(values) else None
            assert cell[key] == expected
        assert ball == ("claimed" in cell) == ("inside" in cell)
        claims = ball and (arrays["budget"][:MEASURED] > 0).any()
        assert cell.get("inside") == (1.0 if claims else None)
    # Wrong at first, fooled, and not fooled: all of them were there.
    assert fates == {(True, False), (True, True), (False, False)}


def subject_of(images: int) -> Subject:
    return Subject("mnist", np.zeros((images, 28, 28, 1), np.float32), np.zeros(images), None, "")


def test_a_claim_is_checked_inside_its_window_where_there_is_one():
    protocol = ATTACKS["hu"].presets["paper"]
    cell = robustness_table.cell_for("hu", protocol, subject_of(4), "plain")
    assert list(cell.rulers) == ["distance", "window"]
    assert (
        cell.rulers["window"].window == protocol.window and cell.rulers["distance"].window is None
    )
    flow = ATTACKS["flow"].presets["paper"]
    assert list(robustness_table.cell_for("flow", flow, subject_of(4), "plain").rulers) == [
        "distance"
    ]
    arrays = {
        # Wrong at first, fooled, not fooled, and fooled but not measured.
        "success": np.array([True, True, False, True]),
        "steps": np.array([0, 1, 2, 2], np.int32),
        "budget": np.array([0.0, 0.5, 1.0, 1.0], np.float32),
        "distance": np.array([0.0, 0.25, 0.5]),
        "window": np.array([0.0, 0.5, 1.5]),
        "mass_change": np.array([0.0, 0.5, 1.0, 0.0]),
        "converged": np.array([True, True, False, True]),
    }
    files = {"clean": {"image": subject_of(4).x}, "a-hu": arrays}
    described = robustness_table.figures("a hu", cell._replace(steps=2), files)
    found = worked_out([Part("a hu", described)], files)["cells"]["a hu"]
    assert found["accuracy"] == 0.25
    assert found["projections_converged"] == 0.75
    assert found["accuracy_after_steps"] == {"0": 0.75, "1": 0.5, "2": 0.25}
    left = {"0.01": 2 / 3, "0.1": 2 / 3, "0.2": 2 / 3, "0.5": 1 / 3}
    assert found["accuracy_at_distances"].items() >= left.items()
    assert found["median_distance"] == 0.25 and found["median_mass_change"] == 0.25
    assert found["median_window"] == 0.5
    assert found["claimed"] == 0.75
    assert found["inside"] == 0.5
    unbounded = figures_of("a hu", cell._replace(largest=None), files)
    assert not any(place.endswith(("/claimed", "/inside")) for place in unbounded)


def test_distances_suit_the_unit_and_the_colours():
    grey = robustness_table.distances_of(Ground(), colour=False)
    assert grey == (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    tenth = tuple(pytest.approx(value / 10) for value in grey)
    assert robustness_table.distances_of(Ground(), colour=True) == tenth
    assert robustness_table.distances_of(GROUNDS["unbalanced"], colour=False) == tenth


def test_axes_end_where_the_last_image_was_fooled():
    inf = np.inf
    assert robustness_table.last_step([np.array([0, 3.0]), np.array([5.0])], 9) == 5
    assert robustness_table.last_step([np.array([0, inf])], 9) == 9
    assert robustness_table.last_step([np.array([0.0])], 9) == 1
    low, high = robustness_table.distance_range([np.array([0, 0.5, inf]), np.array([0.2])])
    assert (low, high) == (pytest.approx(0.2 / 1.2), pytest.approx(0.6))
    low, high = robustness_table.distance_range([np.array([1e-9, 1.0])])
    assert (low, high) == (pytest.approx(1e-3 / 1.2), pytest.approx(1.2))
    assert robustness_table.distance_range([np.array([0, inf])]) == (0.01, 1.0)


def test_tables_show_a_handful_of_iterations():
    assert robustness_table.marks(1) == (0, 1)
    assert robustness_table.marks(10) == (0, 2, 4, 6, 8, 10)
    assert robustness_table.marks(75) == (0, 10, 20, 30, 40, 50, 60, 70, 75)
    assert robustness_table.marks(200) == (0, 50, 100, 150, 200)


def test_steps_are_those_of_every_attack():
    names = ("wong", "wu-frank-wolfe", "unbalanced")
    protocols = robustness_table.protocols_of(names, 75, (32, 32, 3))
    assert {protocol.steps for protocol in protocols.values()} == {75}
    paper = robustness_table.protocols_of(names, None, (32, 32, 3))
    assert paper["wong"] == ATTACKS["wong"].colour["paper"]
    assert paper["unbalanced"] == ATTACKS["unbalanced"].presets["paper"]


# Going on, and refusing ---------------------------------------------------------------------------


def test_goes_on_where_it_stopped_and_is_not_repeated(command, copy, monkeypatch, capsys):
    before, results = contents(copy), results_of(copy)
    assert command(copy) == 0
    assert "finished before" in capsys.readouterr().out
    assert contents(copy) == before

    (copy / "results.json").unlink()
    (copy / "defended-flow.npz").unlink()
    run, repeated = cells._run, []

    def watched(*arguments):
        repeated.append(arguments[-1])
        return run(*arguments)

    monkeypatch.setattr(cells, "_run", watched)
    assert command(copy) == 0
    assert repeated == ["2/4 defended flow"]
    again = results_of(copy)
    assert again["models"] == results["models"]
    assert list(again["cells"]) == list(results["cells"])
    for name, former in results["cells"].items():
        timed = {"seconds"} if name == "defended flow" else set()
        assert {key for key in former if again["cells"][name][key] != former[key]} <= timed


def test_other_weights_under_a_name_are_refused(command, copy, weights, trained, capsys):
    before = contents(copy)
    assert command(copy, checkpoints=[f"plain={trained}", f"defended={weights}"]) == 2
    assert "another checkpoints" in capsys.readouterr().err
    assert command(copy, distance_images=["3"]) == 2
    assert "another distance_images" in capsys.readouterr().err
    assert contents(copy) == before


def test_names_of_checkpoints():
    given = ["a=x/y.pth", "run/b=c", "deep/vanilla.pth", "runs/wong/", "Wong 2019=z=1"]
    found = named_paths(given)
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
        ({"attacks": ["hu", "hu"]}, "--attacks"),
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


def test_a_sound_table_agrees(finished, check):
    status, printed = check(finished)
    assert status == 0
    assert disagreeing(printed.out) == set()
    assert all(f"{model} {attack}" in printed.out for attack, model in CELLS)


CORNER = (3, 0, 0, 0)
RIGHT = "without a budget where it was wrong as it is"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            at("plain-flow", "image", CORNER, 0.5),
            {
                ("plain flow", name)
                for name in (
                    "distance",
                    "mass_change",
                    "no budget, no change",
                    "image = clamped before_clamp",
                )
            },
        ),
        (
            at("defended-unbalanced", "success", -1, False),
            {
                ("defended unbalanced", name)
                for name in (
                    "success where prediction ≠ label",
                    "radius = budget of a success",
                    RIGHT,
                    "accuracy",
                    "interval",
                    "accuracy_after_steps",
                )
            },
        ),
        (
            result("cells", "plain flow", "accuracy_at_distances", "0.1", value=2.0),
            {("plain flow", "accuracy_at_distances")},
        ),
        (
            result("models", "plain", "nominal_accuracy", value=0.9),
            {("all images", "models.plain.nominal_accuracy")},
        ),
        (
            result("models", value=None),
            {
                ("all images", f"models.{model}.nominal_{what}")
                for model in MODELS_SHOWN
                for what in ("accuracy", "interval")
            },
        ),
    ],
)
def test_what_was_changed_is_named(copy, check, change, found):
    change(copy)
    status, printed = check(copy)
    assert status == 1
    assert disagreeing(printed.out) == found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (result("settings", "distance_images", value=7), "settings.distance_images"),
        (entry("settings.json", "attacks", "flow", "steps", value=9), "settings.attacks"),
        (entry("settings.json", "checkpoints", "plain", value="f00"), "settings.checkpoints"),
    ],
)
def test_changed_settings_are_named(copy, check, change, named):
    change(copy)
    status, printed = check(copy)
    assert status == 1
    assert ("settings", named) in disagreeing(printed.out)
    assert {part for part, _ in disagreeing(printed.out)} == {"settings"}


def test_distances_of_some_images_only(copy, check):
    at("plain-flow", "distance", MEASURED - 1, 0.123)(copy)
    shown = f"image {MEASURED - 1}: 0.123"
    assert shown not in check(copy, "--images", "2")[1].out
    status, printed = check(copy)
    assert status == 1 and shown in printed.out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("plain-flow.npz"), "plain-flow.npz"),
        (text("evidence.json", "[3]"), "evidence.json"),
    ],
)
def test_what_cannot_be_checked_is_one_line(copy, check, change, named):
    change(copy)
    status, printed = check(copy)
    assert status == 2
    assert printed.err.startswith("error:") and printed.err.count("\n") == 1
    assert named in printed.err
