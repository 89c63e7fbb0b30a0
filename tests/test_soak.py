"""The soak finds nothing wrong in a batch of each projection, and finds what is."""

import json

import numpy as np
import pytest

from benchmarks import soak
from benchmarks._soak_problems import SIZES, draw
from experiments.harness.arguments import run_command
from wasserstein_adv.projections import Projection

pytestmark = pytest.mark.long
SMALL = ((4, 4, 1, 3),)


@pytest.fixture(autouse=True)
def devices_as_they_are(monkeypatch):
    """Other tests have given JAX its devices."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")


def test_a_batch_of_every_projection_is_right():
    found = soak.soak(0.0, seed=1, sizes=SMALL)
    assert found["wrong"] == []
    assert set(found["counts"]) == set(soak.PROJECTIONS)
    for counts in found["counts"].values():
        assert counts["problems, λ ≤ 1e5"] == 64
        assert counts["converged, λ ≤ 1e5"] >= 62
        assert counts["judged"] >= 1


@pytest.mark.parametrize(
    ("fault", "change"),
    [
        ("mass", lambda p: p.x * 1.001),
        ("negative", lambda p: p.x - 1e-3),
        ("not finite", lambda p: p.x * np.nan),
        ("falsely converged", lambda p: p.x),
    ],
)
def test_what_is_wrong_is_found_and_told(fault, change, monkeypatch, tmp_path):
    def project(geometry, p):
        none = 0.0 * p.radius
        return Projection(change(p), None, none, none, none, none == 0)

    monkeypatch.setattr(soak, "PROJECTIONS", {"sinkhorn": project})
    monkeypatch.setattr(soak, "SIZES", SMALL)
    soak._program.cache_clear()
    out = tmp_path / "soak.json"
    with pytest.raises(SystemExit) as ended:
        run_command(soak.main, soak.SoakConfig, ["--minutes", "0.001", "--out", str(out)])
    soak._program.cache_clear()
    assert ended.value.code == 1
    kept = json.loads(out.read_text())
    assert fault in {problem["fault"] for problem in kept["wrong"]}
    assert kept["command"]


def test_problems_cover_the_range_and_are_seeded():
    problems = [draw(np.random.default_rng(0), size, 200) for size in SIZES]
    for field, low, high in (("radius", 1e-3, 4.0), ("reg", 1.0, 1e5)):
        values = np.concatenate([getattr(p, field) for p in problems])
        assert values.min() < 1.1 * low and values.max() > 0.9 * high
    again = draw(np.random.default_rng(0), SIZES[0], 200)
    np.testing.assert_array_equal(again.x, problems[0].x)
    assert {"blank", "white", "faint", "one pixel", "scaled"} <= set(again.kind)
    for p in problems:
        assert (p.x >= 0).all() and (p.x.max((1, 2, 3)) <= p.cap).all()
