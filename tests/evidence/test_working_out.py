"""Descriptions applied to arrays: conditions, places, distances, and what cannot be had."""

import numpy as np
import pytest

from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import (
    Distance,
    Ground,
    Part,
    distances,
    entry_of,
    figure,
    figures,
    holds,
    lookup,
    mass_change,
    measure,
    results_of,
    truths,
    work_out,
)
from wasserstein_adv.metrics import exact_distance

RNG = np.random.default_rng(2)
CLEAN = RNG.uniform(0.1, 0.9, (5, 4, 4, 1)).astype(np.float32)
IMAGE = np.clip(CLEAN + RNG.normal(0, 0.1, CLEAN.shape), 0, 1).astype(np.float32)
SUCCESS = np.array([True, True, False, True, True])
BUDGET = np.array([0.0, 0.5, 0.5, 0.25, 1.0], np.float32)
DISTANCE = np.array([0.0, 0.4, 0.3])  # of the first three
FILES = {
    "clean": {"image": CLEAN, "label": np.arange(5)},
    "flow": {
        "image": IMAGE,
        "success": SUCCESS,
        "budget": BUDGET,
        "distance": DISTANCE,
        "words": np.array(["a"] * 5),
        "one": np.float64(3),
    },
}
OVER = (("flow/success", "=", 1), ("flow/budget", ">", 0))


def test_figures_are_their_functions_of_the_arrays():
    assert work_out(figure("left", "flow/success"), FILES) == figures.left(SUCCESS) == 0.2
    assert work_out(figure("at_most", "flow/budget", limit=0.5), FILES) == 0.8
    assert work_out(figure("inside", "flow/distance", "flow/budget"), FILES) == 1.0
    expected = truths.bounded(BUDGET, 0.5)
    np.testing.assert_array_equal(
        holds(figure("bounded", "flow/budget", largest=0.5), FILES), expected
    )


def test_conditions_choose_images():
    assert work_out(figure("median", "flow/budget", where=OVER), FILES) == 0.5
    assert work_out(figure("count", "flow/budget", where=OVER[1:]), FILES) == 4
    assert work_out(figure("count", "flow/budget", where=[("clean/label", "=", 3)]), FILES) == 1
    never = [("flow/budget", ">", 7)]
    assert work_out(figure("median", "flow/budget", where=never), FILES) is None
    assert work_out(figure("count", "flow/budget", where=never), FILES) == 0


def test_arrays_of_the_first_images_are_taken_with_those_images():
    assert work_out(figure("median", "flow/distance", where=OVER), FILES) == 0.4
    # The budget has more images than the condition tells of.
    near = [("flow/distance", ">", 0.35)]
    assert work_out(figure("median", "flow/distance", where=near), FILES) == 0.4


def test_places_become_entries():
    parts = [
        Part("a", {"cells/flow/accuracy": figure("left", "flow/success")}),
        Part(
            "b", {"cells/flow/n": figure("count", "flow/budget"), "n": figure("count", "flow/one")}
        ),
    ]
    with pytest.raises(InputError, match="no count can be had"):
        results_of(parts, FILES)
    parts[1].figures.pop("n")
    found = results_of(parts, FILES)
    assert found == {"cells": {"flow": {"accuracy": 0.2, "n": 5}}}
    assert entry_of(found, "cells/flow/n") == 5
    assert entry_of(found, "cells/capped/n") is entry_of(found, "cells/flow/n/m") is None
    assert entry_of([], "cells") is None


@pytest.mark.parametrize(
    "described",
    [
        figure("brute_force", "flow/success"),
        figure("least_distance", "flow/distance", "flow/success", "flow/budget"),
        figure("np", "flow/success"),
        figure("left", "flow/missing"),
        figure("left", "capped/success"),
        figure("left", "flow"),
        figure("left"),
        figure("left", "flow/success", "flow/budget"),
        figure("left", "flow/success", limit=3),
        figure("at_most", "flow/budget"),
        figure("at_most", "flow/budget", limit="all"),
        figure("above", "flow/budget", at=["all"]),
        figure("above", "flow/budget", at=3),
        figure("above", "flow/budget", at=[-1.0]),
        figure("accuracy", "flow/distance", "flow/budget"),
        figure("at_distances", "flow/distance", "flow/success", at=[0.5]),
        figure("after_steps", "flow/budget", "flow/success", last="many"),
        figure("after_steps", "flow/budget", "flow/success", last=10**30),
        figure("median", "flow/words"),
        figure("mean", "flow/words"),
        figure("mean", "flow/one"),
        figure("median", "flow/one", where=OVER),
        figure("median", "flow/budget", where=[("flow/missing", ">", 0)]),
        figure("median", "flow/budget", where=[("flow/image", ">", 0)]),
        figure("median", "flow/budget", where=[("flow/one", ">", 0)]),
        figure("median", "flow/budget", where=[("flow/distance", ">", 0)]),
    ],
    ids=str,
)
def test_what_cannot_be_worked_out_is_refused_in_one_line(described):
    with pytest.raises(InputError) as refused:
        work_out(described, FILES)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "claimed",
    [
        figure("left", "flow/success"),
        figure("bounded", "flow/missing", largest=1.0),
        figure("bounded", "flow/budget"),
        figure("bounded", "flow/budget", largest="1"),
        figure("bounded", "flow/one", largest=1.0),
        figure("bounded", "flow/words", largest=1.0),
        figure("in_unit_interval", "flow/budget"),
        figure("kept", "flow/distance", "flow/budget", "flow/success"),
    ],
    ids=str,
)
def test_what_cannot_be_told_is_refused_in_one_line(claimed):
    with pytest.raises(InputError) as refused:
        holds(claimed, FILES)
    assert "\n" not in str(refused.value)


def test_arrays_are_found_by_file_and_name():
    assert lookup(FILES, "clean/label") is FILES["clean"]["label"]


# Measuring ----------------------------------------------------------------------------------------


def test_distances_are_exact_and_of_the_first_images():
    part = Part(
        "flow",
        {},
        {
            "flow/distance": Distance("clean/image", "flow/image", Ground()),
            "flow/window": Distance("clean/image", "flow/image", Ground("euclidean"), 3),
        },
        {"flow/mass_change": ("clean/image", "flow/image")},
    )
    advanced = []
    found = measure(part, FILES, 2, lambda: advanced.append(1))
    assert list(found) == ["flow/distance", "flow/window", "flow/mass_change"]
    assert len(advanced) == 4

    def by_hand(cost, window=None):
        pairs = zip(CLEAN[:2], IMAGE[:2], strict=True)
        return [float(exact_distance(x, z, cost, window).total) for x, z in pairs]

    manhattan = by_hand(lambda drow, dcol: abs(drow) + abs(dcol))
    np.testing.assert_allclose(found["flow/distance"], manhattan, rtol=1e-9)
    np.testing.assert_allclose(found["flow/window"], by_hand(np.hypot, 3), rtol=1e-6)
    mass = IMAGE.sum((1, 2, 3), np.float64) / CLEAN.sum((1, 2, 3), np.float64) - 1
    np.testing.assert_allclose(found["flow/mass_change"], mass, rtol=1e-12)


def test_an_image_without_a_distance_leaves_the_others_theirs():
    damaged = IMAGE.copy()
    damaged[1, 0, 0, 0], damaged[2, 0, 0, 0], damaged[3, 0, 0, 0] = np.nan, -0.1, np.inf
    measure_it = Distance("a/x", "a/z", Ground())
    found = distances(CLEAN, damaged, measure_it)
    whole = distances(CLEAN, IMAGE, measure_it)
    assert np.isnan(found.total[1:4]).all()
    np.testing.assert_array_equal(found.total[[0, 4]], whole.total[[0, 4]])
    assert np.isnan(distances(CLEAN[:1], damaged[1:2], measure_it).total).all()
    assert len(distances(CLEAN[:0], IMAGE[:0], measure_it).total) == 0


def test_changes_of_mass():
    blank, one = np.zeros((1, 2, 2, 1), np.float32), np.full((1, 2, 2, 1), 0.25, np.float32)
    before, after = (
        np.concatenate([blank, blank, one, one]),
        np.concatenate([blank, one, blank, one * 2]),
    )
    assert mass_change(before, after).tolist() == [0.0, np.inf, -1.0, 1.0]
