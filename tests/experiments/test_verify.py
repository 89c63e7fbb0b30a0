"""Checking a finished run: what is sound passes, what was changed is named, nothing is written."""

import re
import shutil

import numpy as np
import pytest
from run_files import disagreeing, result

from experiments import _evaluation, attack_mnist
from experiments._cli import run_command

RUNS = {
    "projected-sinkhorn": ["--steps", "7", "--window", "3", "--radii", "0.3", "1.0"],
    "flow": ["--steps", "40", "--growth", "1.08", "--radii", "0.3"],
    "unbalanced": ["--steps", "2", "--keep", "first-success"],
}


@pytest.fixture(scope="module")
def runs(weights, tmp_path_factory):
    """A folder of finished runs on six digits, each named after its attack."""
    folder = tmp_path_factory.mktemp("runs")
    basic = ["--data", "mnist-5k", "--num-images", "6", "--checkpoint", str(weights)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_evaluation, "use_all_cores", lambda: None)
        for attack, options in RUNS.items():
            argv = [*basic, "--attack", attack, "--out", str(folder / attack), *options]
            assert run_command(attack_mnist.main, attack_mnist.AttackMnistConfig, argv) == 0
    return folder


@pytest.fixture
def copy(runs, tmp_path, monkeypatch):
    """Copies the run of an attack, to be changed."""
    monkeypatch.setenv("COLUMNS", "120")
    return lambda attack: shutil.copytree(runs / attack, tmp_path / "run")


def wrong(printed):
    """The printed claims that do not agree."""
    return {claim for _, claim in disagreeing(printed)}


# Changes of a run, as functions of its folder -----------------------------------------------------


def array(file, name, value):
    """An array of a file: another one, or a function of it; None removes it."""

    def change(run):
        path = run / f"{file}.npz"
        with np.load(path) as stored:
            arrays = dict(stored)
        old = arrays.pop(name)
        if value is not None:
            arrays[name] = value(old) if callable(value) else value
        np.savez_compressed(path, **arrays)

    return change


def at(file, name, index, value):
    """One element of an array."""

    def changed(old):
        new = old.copy()
        new[index] = value
        return new

    return array(file, name, changed)


def both(*changes):
    return lambda run: [change(run) for change in changes]


def pixel(image, value, *names):
    """A pixel in the corner, black in a digit and out of reach of its mass."""
    return both(*(at("adversarial", name, (image, 0, 0, 0), value) for name in names))


def text(name, content):
    return lambda run: (run / name).write_text(content)


def cut(name):
    def change(run):
        data = (run / name).read_bytes()
        (run / name).write_bytes(data[: len(data) // 2])

    return change


def garbled(name):
    def change(run):
        data = bytearray((run / name).read_bytes())
        tenth = len(data) // 10
        data[tenth : 9 * tenth] = b"\xff" * (8 * tenth)
        (run / name).write_bytes(data)

    return change


# The tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", RUNS)
def test_a_sound_run_agrees(runs, check, attack):
    status, printed = check(runs / attack)
    assert status == 0
    assert re.search(r": all \d+ agree\n$", printed.out)
    assert wrong(printed.out) == set()
    assert "100 %" in printed.err


IN_WINDOW = {"window_distance", "window_before_clamp"}
ANSWERS = "success where prediction ≠ label"


@pytest.mark.parametrize(
    ("attack", "change", "named"),
    [
        (
            "projected-sinkhorn",
            array("radii", "window_before_clamp", lambda distance: distance * 1.0001),
            {"window_before_clamp"},
        ),
        (
            "projected-sinkhorn",
            pixel(4, 0.5, "adversarial"),
            {"adversarial = clamped before_clamp", "window_distance", "global_distance"},
        ),
        (
            "projected-sinkhorn",
            pixel(4, 0.5, "adversarial", "before_clamp"),
            {*IN_WINDOW, "global_distance", "mass_change", "distance_check.window.inside"},
        ),
        (
            "projected-sinkhorn",
            pixel(4, 0.5, "clean"),
            {*IN_WINDOW, "global_distance", "mass_change"},
        ),
        (
            "projected-sinkhorn",
            pixel(4, np.nan, "adversarial"),
            {"adversarial in [0, 1]", *IN_WINDOW, "global_distance", "mass_change"},
        ),
        ("projected-sinkhorn", result("attack", "p", value=2.0), {*IN_WINDOW, "global_distance"}),
        ("flow", pixel(4, -0.1, "adversarial"), {"adversarial in [0, 1]", "global_distance"}),
        ("flow", pixel(4, 1.1, "clean"), {"clean in [0, 1]", "global_distance"}),
        ("flow", pixel(0, 0.5, "adversarial", "before_clamp"), {"no budget, no change"}),
        ("flow", at("radii", "global_distance", 4, np.inf), {"global_distance"}),
        ("flow", at("radii", "mass_change", 4, 0.01), {"mass_change"}),
        ("flow", at("radii", "prediction", 4, 10), {"prediction, in both files"}),
        ("flow", at("radii", "success", 4, False), {ANSWERS, "radius = budget of a success"}),
        (
            "flow",
            both(at("radii", "budget", 4, 9.0), at("radii", "radius", 4, 9.0)),
            {"budget ≤ the attack's largest radius", "adversarial_accuracy.0.3"},
        ),
        (
            "flow",
            at("radii", "budget", 4, 0.0),
            {"no budget, no change", "distance_check.measured"},
        ),
        ("unbalanced", at("measures", "distance", 4, 0.5), {"distance"}),
        ("unbalanced", at("measures", "moved", 4, 0.5), {"transport.moved.mean"}),
        ("unbalanced", at("measures", "plan_cost", 4, 5.0), {"transport.within_budget"}),
        (
            "unbalanced",
            at("measures", "success", 4, False),
            {ANSWERS, "attack_accuracy", "attack_interval", "accuracy_after_steps"},
        ),
        (
            "unbalanced",
            pixel(4, 0.5, "adversarial", "before_clamp"),
            {"distance", "mass_change", "transport.distance.mean"},
        ),
    ],
)
def test_what_was_changed_is_named(copy, check, attack, change, named):
    run = copy(attack)
    change(run)
    status, printed = check(run)
    assert status == 1
    assert named <= wrong(printed.out)


@pytest.mark.parametrize(
    ("attack", "keys", "value"),
    [
        ("projected-sinkhorn", "adversarial_accuracy/0.3", 0.123),
        ("projected-sinkhorn", "adversarial_interval/1.0", [0.0, 0.5]),
        ("projected-sinkhorn", "nominal_accuracy", 0.99),
        ("projected-sinkhorn", "median_radius", 7.0),
        ("projected-sinkhorn", "median_radius", None),
        ("projected-sinkhorn", "projections_converged", "most"),
        ("projected-sinkhorn", "distance_check/window/inside_before_clamp", 0.5),
        ("flow", "distance_check/global/inside", 0.5),
        ("flow", "distance_check/mass_change/max", 0.1),
        ("flow", "dataset/num_images", 7),
        ("unbalanced", "attack_accuracy", 0.123),
        ("unbalanced", "transport/unmatched/median", 0.123),
        ("unbalanced", "transport/distance/left_out", 1),
    ],
)
def test_a_changed_result_is_named_and_nothing_else(copy, check, attack, keys, value):
    run = copy(attack)
    result(*keys.split("/"), value=value)(run)
    status, printed = check(run)
    assert status == 1
    assert wrong(printed.out) == {keys.replace("/", ".")}
    assert re.search(r": 1 of \d+ do not agree\n$", printed.out)


def test_the_step_at_which_the_accuracy_was_changed_is_shown(copy, check):
    run = copy("unbalanced")
    result("accuracy_after_steps", "1", value=0.123)(run)
    status, printed = check(run)
    assert status == 1
    assert wrong(printed.out) == {"accuracy_after_steps"}
    assert "step 1: 0.123 " in printed.out and "no, 1 of 3" in printed.out


def test_only_the_first_images_are_measured_on_request(copy, check):
    run = copy("flow")
    pixel(5, 0.5, "adversarial", "before_clamp")(run)
    assert check(run, "--images", "5")[0] == 0
    assert check(run, "--images", "6")[0] == check(run, "--images", "100")[0] == 1


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (shutil.rmtree, "not a folder"),
        (lambda run: (run / "results.json").unlink(), "no finished run"),
        (text("results.json", "{"), "results.json"),
        (text("results.json", "[]"), "results.json"),
        (result("attack", value=None), "another command"),
        (result("attack", "name", value="brute-force"), "brute-force"),
        (result("attack", "name", value=["flow"]), "unknown attack"),
        (result("attack", "window", value=None), "window"),
        (result("attack", "window", value=4), "window"),
        (result("attack", "p", value=-1.0), "--p"),
        (result("attack", "every", value=0), "--grow-every"),
        (result("adversarial_accuracy", value=None), "adversarial_accuracy"),
        (result("adversarial_accuracy", value={"all": 1}), "all"),
        (lambda run: (run / "adversarial.npz").unlink(), "adversarial.npz"),
        (lambda run: (run / "radii.npz").unlink(), "radii.npz"),
        (text("radii.npz", ""), "radii.npz"),
        (cut("adversarial.npz"), "adversarial.npz"),
        (garbled("adversarial.npz"), "adversarial.npz"),
        (array("radii", "budget", None), "budget"),
        (array("radii", "window_distance", None), "window_distance"),
        (array("radii", "radius", lambda radius: radius[:-1]), "radius"),
        (array("radii", "steps", np.array(["a"] * 6)), "steps"),
        (at("radii", "radius", 0, np.nan), "radii"),
        (array("adversarial", "clean", None), "clean"),
        (array("adversarial", "clean", np.ones(6)), "clean"),
        (array("adversarial", "adversarial", lambda images: images[:-1]), "adversarial"),
    ],
)
def test_what_cannot_be_checked_is_one_line(copy, check, damage, named):
    run = copy("projected-sinkhorn")
    damage(run)
    status, printed = check(run)
    assert status == 2
    assert printed.out == ""
    bar = "exact distances"
    lines = [line for line in printed.err.splitlines() if line and not line.startswith(bar)]
    assert len(lines) == 1 and lines[0].startswith("error:") and named in lines[0]


def test_images_are_counted_from_one(runs, check):
    status, printed = check(runs / "flow", "--images", "0")
    assert status == 2
    assert printed.err == "error: --images must be 1 or more, got 0\n"
