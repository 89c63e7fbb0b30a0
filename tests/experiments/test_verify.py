"""Checking a finished run: what is sound passes, what was changed is named, nothing is written."""

import re
import shutil

import numpy as np
import pytest
from run_files import QUICK, array, at, both, disagreeing, entry, result, text, without, wrong

from experiments.harness.runs import claim, finish
from experiments.harness.tables import Table

SINKHORN = "wong"


@pytest.fixture
def copy(runs, tmp_path):
    """Copies the run of an attack, to be changed."""
    return lambda attack: shutil.copytree(runs(attack), tmp_path / "run")


# Changes of a run, as functions of its folder -----------------------------------------------------


def pixel(attack, image, value, *names):
    """A pixel in the corner, black in a digit and out of reach of its mass."""
    return both(*(at(attack, name, (image, 0, 0, 0), value) for name in names))


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


def evidence(*keys, value):
    """An entry of `evidence.json`; None removes it."""
    return entry("evidence.json", *keys, value=value)


# The tests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", QUICK)
def test_a_sound_run_agrees(runs, check, attack):
    status, printed = check(runs(attack))
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
            SINKHORN,
            array(SINKHORN, "window_before_clamp", lambda distance: distance * 1.0001),
            {"window_before_clamp"},
        ),
        (
            SINKHORN,
            pixel(SINKHORN, 4, 0.5, "image"),
            {"image = clamped before_clamp", "window_distance", "global_distance"},
        ),
        (
            SINKHORN,
            pixel(SINKHORN, 4, 0.5, "image", "before_clamp"),
            {*IN_WINDOW, "global_distance", "mass_change", "distance_check.window.inside"},
        ),
        (
            SINKHORN,
            pixel("clean", 4, 0.5, "image"),
            {*IN_WINDOW, "global_distance", "mass_change"},
        ),
        (
            SINKHORN,
            pixel(SINKHORN, 4, np.nan, "image"),
            {"image in [0, 1]", "window_distance", "global_distance", "mass_change"},
        ),
        (
            SINKHORN,
            both(
                *(
                    evidence(0, "distances", f"{SINKHORN}/{name}", "ground", "p", value=2.0)
                    for name in (*IN_WINDOW, "global_distance")
                )
            ),
            {*IN_WINDOW, "global_distance"},
        ),
        (
            SINKHORN,
            result("settings", "p", value=2.0),
            {"settings.p"},
        ),
        (
            SINKHORN,
            entry("settings.json", "reg", value=7.0),
            {"settings.reg"},
        ),
        (
            SINKHORN,
            entry("settings.json", "seed", value=7),
            {"seed"},
        ),
        (
            SINKHORN,
            entry("settings.json", "keep", value=None),
            {"settings.keep"},
        ),
        (
            SINKHORN,
            entry("settings.json", "weights", value="f00"),
            {"settings.weights", "model.weights"},
        ),
        (SINKHORN, result("dataset", "name", value="mnist"), {"dataset.name"}),
        (SINKHORN, result("dataset", "num_images", value=7), {"dataset.num_images"}),
        (SINKHORN, result("luck", value=0.5), {"figures are described"}),
        (SINKHORN, result("distance_check", "luck", value=["a", 0.5]), {"figures are described"}),
        (
            SINKHORN,
            evidence(0, "figures", "median_radius", value=None),
            {"figures are described"},
        ),
        ("flow", pixel("flow", 4, -0.1, "image"), {"image in [0, 1]", "global_distance"}),
        ("flow", pixel("clean", 4, 1.1, "image"), {"clean in [0, 1]", "global_distance"}),
        ("flow", pixel("flow", 0, 0.5, "image", "before_clamp"), {"no budget, no change"}),
        ("flow", at("flow", "global_distance", 4, np.inf), {"global_distance"}),
        ("flow", at("flow", "mass_change", 4, 0.01), {"mass_change"}),
        (
            "flow",
            at("clean", "prediction", 5, 99),
            {"without a budget where it was wrong as it is", "nominal_accuracy"},
        ),
        ("flow", at("flow", "success", 4, False), {ANSWERS, "radius = budget of a success"}),
        (
            "flow",
            both(at("flow", "budget", 4, 9.0), at("flow", "radius", 4, 9.0)),
            {"budget ≤ the attack's largest radius", "adversarial_accuracy.0.3"},
        ),
        (
            "flow",
            at("flow", "budget", 4, 0.0),
            {"no budget, no change", "distance_check.measured"},
        ),
        ("unbalanced", at("unbalanced", "distance", 4, 0.5), {"distance"}),
        ("unbalanced", at("unbalanced", "moved", 4, 0.5), {"transport.moved.mean"}),
        ("unbalanced", at("unbalanced", "plan_cost", 4, 5.0), {"transport.within_budget"}),
        (
            "unbalanced",
            at("unbalanced", "success", 4, False),
            {ANSWERS, "attack_accuracy", "attack_interval", "accuracy_after_steps.2"},
        ),
        (
            "unbalanced",
            pixel("unbalanced", 4, 0.5, "image", "before_clamp"),
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
        (SINKHORN, "adversarial_accuracy/0.3", 0.123),
        (SINKHORN, "adversarial_interval/1.0", [0.0, 0.5]),
        (SINKHORN, "nominal_accuracy", 0.99),
        (SINKHORN, "median_radius", 7.0),
        (SINKHORN, "median_radius", None),
        (SINKHORN, "projections_converged", "most"),
        (SINKHORN, "distance_check/inside_before_clamp", 0.5),
        ("flow", "distance_check/global/inside", 0.5),
        ("flow", "distance_check/mass_change/max", 0.1),
        ("unbalanced", "attack_accuracy", 0.123),
        ("unbalanced", "accuracy_after_steps/1", 0.123),
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


def test_only_the_first_images_are_measured_on_request(copy, check):
    run = copy("flow")
    pixel("flow", 5, 0.5, "image", "before_clamp")(run)
    _, printed = check(run, "--images", "5")
    assert "global_distance" not in wrong(printed.out)
    for images in ("6", "100"):
        status, printed = check(run, "--images", images)
        assert status == 1 and "global_distance" in wrong(printed.out)


DISTANCE, FIGURE = (0, "distances", f"{SINKHORN}/window_distance"), (0, "figures", "median_radius")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (shutil.rmtree, "not a folder"),
        (without("results.json"), "no finished run"),
        (text("results.json", "{"), "results.json"),
        (text("results.json", "[]"), "results.json"),
        (result("settings", value=None), "settings"),
        (result("settings", value=[]), "settings"),
        (without("settings.json"), "settings.json"),
        (text("settings.json", "{"), "settings.json"),
        (text("settings.json", "[]"), "settings"),
        # Of a training, or of an earlier version.
        (without("evidence.json"), "has no evidence.json"),
        (text("evidence.json", ""), "evidence.json"),
        (text("evidence.json", "3"), "evidence.json"),
        (text("evidence.json", '[{"title": "flow"}]'), "evidence.json"),
        (evidence(0, "figures", value=None), "evidence.json"),
        (evidence(*FIGURE, "how", value="luck"), "luck"),
        (evidence(*FIGURE, "how", value="np"), "'np'"),
        (evidence(*FIGURE, "of", value=["luck/radius"]), "luck.npz"),
        (
            evidence(*FIGURE, "of", value=["../run/wong/radius"]),
            ".npz: cannot be read",
        ),
        (evidence(*FIGURE, "of", value=["/radius"]), ".npz"),
        (evidence(*FIGURE, "of", value=[f"{SINKHORN}/luck"]), "luck"),
        (evidence(*FIGURE, "of", value=[f"{SINKHORN}/image", f"{SINKHORN}/radius"]), "median"),
        (evidence(*FIGURE, "given", value={"at": 3}), "median"),
        (evidence(*FIGURE, "where", value=[["clean/luck", ">", 0]]), "luck"),
        (evidence(*DISTANCE, "ground", "form", value="hyperbolic"), "hyperbolic"),
        (evidence(*DISTANCE, "ground", "p", value=-1.0), "evidence.json"),
        (evidence(*DISTANCE, "window", value=4), "window"),
        (evidence(*DISTANCE, "image", value="clean/label"), "no images"),
        (evidence(*DISTANCE, "image", value="clean/luck"), "luck"),
        (
            evidence(0, "masses", f"{SINKHORN}/mass_change", value=["clean/label", "clean/label"]),
            "no images",
        ),
        (
            evidence(0, "holds", "luck", value={"how": "luck", "of": [], "given": {}, "where": []}),
            "luck",
        ),
        (without("clean.npz"), "clean.npz"),
        (without(f"{SINKHORN}.npz"), f"{SINKHORN}.npz"),
        (text(f"{SINKHORN}.npz", ""), f"{SINKHORN}.npz"),
        (cut(f"{SINKHORN}.npz"), f"{SINKHORN}.npz"),
        (garbled("clean.npz"), "clean.npz"),
        (array(SINKHORN, "budget", None), "budget"),
        (array(SINKHORN, "window_distance", None), "window_distance"),
        (array(SINKHORN, "radius", lambda radius: radius[:-1]), "radius"),
        (array(SINKHORN, "steps", np.array(["a"] * 6)), "steps"),
        (array(SINKHORN, "window_distance", np.float64(1)), "window_distance"),
        (array(SINKHORN, "window_distance", lambda found: found[:, None]), "window_distance"),
        (array(SINKHORN, "mass_change", lambda found: found[:-1]), "mass_change"),
        (array(SINKHORN, "converged", np.bool_(True)), "converged"),
        (array("clean", "image", None), "image"),
        (array("clean", "image", np.ones(6)), "image"),
        (array(SINKHORN, "image", lambda images: images[:-1]), "image"),
        (array("clean", "label", lambda labels: labels[:-1]), "label"),
    ],
)
def test_what_cannot_be_checked_is_one_line(copy, check, damage, named):
    run = copy(SINKHORN)
    damage(run)
    status, printed = check(run, "--images", "1")
    assert status == 2
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line and "━" not in line]
    assert len(lines) == 1 and lines[0].startswith("error:") and named in lines[0]


def test_images_are_counted_from_one(runs, check):
    status, printed = check(runs("flow"), "--images", "0")
    assert status == 2
    assert printed.err == "error: --images must be 1 or more, got 0\n"


def test_what_a_training_leaves_is_not_checked(check, tmp_path):
    folder = claim(tmp_path / "run", {"data": "mnist"})
    finish(folder, {"accuracy": {"test": 0.5}}, [Table("", ("split",), [("test",)])])
    status, printed = check(tmp_path / "run")
    assert status == 2
    assert "has no evidence.json, so it is of a command that attacks nothing" in printed.err
    assert printed.err.startswith("error:") and printed.err.count("\n") == 1


def test_settings_that_differ_are_shown(copy, check):
    run = copy("flow")
    entry("settings.json", "steps", value=41)(run)
    status, printed = check(run, "--images", "1")
    assert status == 1
    assert ("settings", "settings.steps") in disagreeing(printed.out)
    assert {part for part, _ in disagreeing(printed.out)} == {"settings"}
    (line,) = (line for line in printed.out.splitlines() if line.startswith("settings.steps"))
    assert line.split()[1:3] == ["40", "41"]


def test_a_number_without_a_description_is_shown(copy, check):
    run = copy("flow")
    result("distance_check", "luck", value=0.5)(run)
    status, printed = check(run, "--images", "1")
    assert status == 1
    assert disagreeing(printed.out) == {("settings", "figures are described")}
    assert "distance_check/luck is not" in printed.out
