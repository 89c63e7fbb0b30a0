"""A run checked in code: what is sound agrees, what was changed is named."""

import numpy as np
import pytest

from wasserstein_adv import evidence
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Distance, Ground, Part, figure


@pytest.fixture
def part() -> Part:
    return Part(
        "a",
        {"cells/a/median": figure("median", "a/distance")},
        {"a/distance": Distance("clean/image", "a/image", Ground("euclidean"), 3)},
        {"a/mass_change": ("clean/image", "a/image")},
        {"image in [0, 1]": figure("in_unit_interval", "a/image")},
    )


@pytest.fixture
def files(part) -> dict[str, dict[str, np.ndarray]]:
    clean, image = np.random.default_rng(1).random((2, 4, 5, 5, 1)).astype(np.float32)
    files = {"clean": {"image": clean}, "a": {"image": image}}
    files["a"] |= {name[2:]: found for name, found in evidence.measure(part, files, 4).items()}
    return files


def disagreeing(part, files, changes=None, settings=None):
    results = {**evidence.results_of([part], files), "settings": {"p": 1}, **(changes or {})}
    checked = evidence.check(results, settings or {"p": 1}, [part], files)
    return {claim.name for group in checked for claim in group.claims if not claim.agrees}


def test_what_was_changed_is_named(part, files):
    assert disagreeing(part, files) == set()
    assert "settings.p" in disagreeing(part, files, settings={"p": 2})
    assert disagreeing(part, files, {"luck": 0.5}) == {"figures are described"}
    assert disagreeing(part, files, {"cells": {"a": {"median": 0.0}}}) == {"median"}
    files["a"]["distance"][2] += 0.1
    assert "distance" in disagreeing(part, files)


def test_what_is_not_there_is_one_line(part, files):
    del files["a"]["image"]
    with pytest.raises(InputError, match="holds no array image") as caught:
        evidence.check({"settings": {}}, {}, [part], files)
    assert "\n" not in str(caught.value)
