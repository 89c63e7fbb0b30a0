"""Descriptions: ground costs against the library's, and what JSON may hold."""

import copy
import json

import numpy as np
import pytest

from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Distance, Ground, Part, figure, from_json, to_json
from wasserstein_adv.geometry import euclidean_power, minkowski, unit_square

DROW, DCOL = (part.astype(np.float64) for part in np.mgrid[-3:4, -4:5])


@pytest.mark.parametrize(
    ("ground", "cost"),
    [
        (Ground(), lambda drow, dcol: abs(drow) + abs(dcol)),
        (Ground(), minkowski(1.0)),
        (Ground("minkowski", 2.0), np.hypot),
        (Ground("minkowski", 3.0), minkowski(3.0)),
        (Ground("euclidean"), np.hypot),
        (Ground("euclidean", 2.0), lambda drow, dcol: drow**2 + dcol**2),
        (Ground("euclidean", 1.5), euclidean_power(1.5)),
    ],
)
def test_costs_of_a_ground_are_the_librarys(ground, cost):
    np.testing.assert_allclose(ground.cost(DROW, DCOL), cost(DROW, DCOL), rtol=1e-6)
    assert ground.in_pixels and ground.words.endswith("in pixels")


def test_a_ground_in_sides_of_the_image():
    row, col = unit_square(28, 14)
    ground = Ground("minkowski", 2.0, row, col)
    expected = minkowski(2.0)(DROW * row, DCOL * col)
    np.testing.assert_allclose(ground.cost(DROW, DCOL), expected, rtol=1e-6)
    assert ground.cost(np.array([27.0]), np.array([0.0])) == pytest.approx(1.0)
    assert ground.cost(np.array([0.0]), np.array([13.0])) == pytest.approx(1.0)
    assert not ground.in_pixels and ground.words.endswith("in sides of the image")


def test_costs_in_words():
    assert Ground().words == "|Δrow| + |Δcol| in pixels"
    assert Ground("euclidean").words == "√(Δrow² + Δcol²) in pixels"
    assert Ground("euclidean", 2.0).words == "√(Δrow² + Δcol²)^2 in pixels"
    assert Ground("minkowski", 3.0).words == "(|Δrow|^3 + |Δcol|^3)^(1/3) in pixels"
    assert Distance("a/x", "a/z", Ground(), 5).words == "|Δrow| + |Δcol| in pixels, inside 5×5"


PARTS = [
    Part(
        "flow",
        {
            "cells/flow/accuracy": figure("left", "flow/success"),
            "at": figure("above", "flow/radius", at=(0.1, 0.5)),
            "median": figure("median", "flow/distance", where=[("flow/budget", ">", 0)]),
        },
        {
            "flow/distance": Distance("clean/image", "flow/image", Ground()),
            "flow/window": Distance(
                "clean/image", "flow/image", Ground("euclidean", 2.0, 0.5, 0.25), 5
            ),
        },
        {"flow/mass_change": ("clean/image", "flow/image")},
        {"budget ≤ 1": figure("bounded", "flow/budget", largest=1.0)},
    ),
    Part("all images", {"count": figure("count", "clean/label")}),
]


def test_json_round_trip():
    kept = json.loads(json.dumps(to_json(PARTS)))
    found = from_json(kept)
    assert json.loads(json.dumps(to_json(found))) == kept
    for part, original in zip(found, PARTS, strict=True):
        assert part.distances == original.distances and part.masses == original.masses
        assert part.figures.keys() == original.figures.keys()
        assert part.figures.get("median") == original.figures.get("median")
    assert from_json([]) == []


def changed(*keys, value):
    """What `PARTS` are as JSON, with another entry at a place."""
    entry = json.loads(json.dumps(to_json(PARTS)))
    inner = entry
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = copy.copy(value)
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        None,
        3,
        "parts",
        {"title": "flow"},
        [None],
        [{}],
        [{"title": "flow", "figures": {}}],
        changed(0, "figures", value=[]),
        changed(0, "figures", "at", value=None),
        changed(0, "figures", "at", "how", value=3),
        changed(0, "figures", "at", "of", value=[3]),
        changed(0, "figures", "at", "of", value=None),
        changed(0, "figures", "at", "given", value=3),
        changed(0, "figures", "median", "where", value=[["flow/budget", ">"]]),
        changed(0, "figures", "median", "where", value=[["flow/budget", "<", 0]]),
        changed(0, "figures", "median", "where", value=[["flow/budget", ">", "0"]]),
        changed(0, "figures", "median", "where", value=[[3, ">", 0]]),
        changed(0, "figures", "median", "where", value=3),
        changed(0, "distances", "flow/distance", "ground", "form", value="hyperbolic"),
        changed(0, "distances", "flow/distance", "ground", "form", value=["minkowski"]),
        changed(0, "distances", "flow/distance", "ground", "p", value="1"),
        changed(0, "distances", "flow/distance", "ground", "p", value=-1.0),
        changed(0, "distances", "flow/distance", "ground", "row", value="1"),
        changed(0, "distances", "flow/distance", "ground", "row", value=None),
        changed(0, "distances", "flow/distance", "ground", "height", value=1.0),
        changed(0, "distances", "flow/distance", "window", value="5"),
        changed(0, "distances", "flow/distance", "window", value=4),
        changed(0, "distances", "flow/distance", "window", value=-3),
        changed(0, "distances", "flow/distance", "clean", value=3),
        changed(0, "distances", "flow/distance", value=None),
        changed(0, "masses", "flow/mass_change", value=["clean/image"]),
        changed(0, "masses", value=3),
        changed(0, "holds", "budget ≤ 1", value="bounded"),
    ],
)
def test_what_is_no_description_is_refused_in_one_line(entry):
    with pytest.raises(InputError, match=r"evidence\.json: does not say") as refused:
        from_json(entry)
    assert "\n" not in str(refused.value)
