"""The benchmarks compare like with like: their methods, their ratios, and what they write."""

import importlib.util
import json
import re

import numpy as np
import pytest

from benchmarks import (
    _measure,
    _peers,
    attack,
    devices,
    equal_time,
    floor,
    memory,
    projection,
    sizes,
)
from benchmarks.__main__ import _WORKLOADS, BenchmarkConfig, _chosen, main
from benchmarks._child import in_fresh_process
from benchmarks._measure import interleaved, lay_out, ratio_cell, record, records_of, text
from benchmarks._problem import problem_on, quality, reference, spread
from experiments.harness.arguments import run_command

KEYS = {
    "workload", "method", "seconds", "ratio_to_ours", "ratio_spread", "error", "device",
}  # fmt: skip


@pytest.fixture(autouse=True)
def devices_as_they_are(monkeypatch):
    """Other tests have given JAX its devices."""
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")


def command(*argv: str) -> int:
    return run_command(main, BenchmarkConfig, list(argv))


@pytest.fixture
def no_peers(monkeypatch):
    """As where requirements-bench.txt was not installed."""
    find = importlib.util.find_spec

    def without(name: str, *rest):
        return None if name in {"torch", "art", "projected_sinkhorn"} else find(name, *rest)

    monkeypatch.setattr(_peers.importlib.util, "find_spec", without)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """Four images of 8×8 pixels."""
    rng = np.random.default_rng(0)
    return (rng.random((4, 8, 8, 1)) * (rng.random((4, 8, 8, 1)) < 0.4)).astype(np.float32)


# The command --------------------------------------------------------------------------------------


def test_command_writes_records_once(tmp_path, capsys, no_peers):
    out = tmp_path / "bench.json"
    argv = ["--quick", "--data", "mnist-5k", "--batch", "2", "--repeats", "1", "--out", str(out)]
    assert command(*argv, "--only", "unbalanced") == 0
    printed = capsys.readouterr().out
    assert re.search(r"not installed: projected-sinkhorn, ART; see requirements-bench", printed)
    written = json.loads(out.read_text())
    assert {"device", "git_commit", "jax"} <= written["environment"].keys()
    records = written["records"]
    assert [r["method"].split(",")[0] for r in records] == ["ours", "OTT separable", "OTT dense"]
    for each in records:
        assert each.keys() >= KEYS and each["seconds"] > 0 and each["workload"] == "unbalanced"
    assert records[0]["ratio_to_ours"] == 1.0 and records[0]["ratio_spread"] == [1.0, 1.0]
    # The same iterations in three geometries.
    assert np.ptp([r["error"] for r in records]) < 1e-4

    before = out.read_bytes()
    assert command(*argv, "--only", "unbalanced") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nothing is overwritten" in error
    assert out.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_the_quick_run_is_that_beside_peers():
    every = _chosen(BenchmarkConfig(quick=True))
    assert set(_WORKLOADS) - set(every) == {"memory", "compilation", "devices", "floor"}
    assert _chosen(BenchmarkConfig(quick=True, only=("floor", "sizes"))) == ["sizes", "floor"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--repeats", "0"], "--repeats must be 1 or more"),
        (["--batch", "0"], "--batch must be 1 or more"),
        (["--data", "mnist-5k", "--batch", "100000"], "--batch 100000: mnist-5k has"),
        (["--out", "nowhere/bench.json"], "there is no folder"),
        (["--data", "mnist-5k", "--checkpoint", "nowhere.pth"], "nowhere.pth: no such file"),
    ],
)
def test_bad_options_are_one_line(argv, message, capsys):
    assert command("--quick", *argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_a_figure_is_not_overwritten(tmp_path, capsys):
    figure = tmp_path / "bench_sizes.png"
    figure.write_bytes(b"mine")
    assert command("--quick", "--only", "sizes", "--out", str(tmp_path / "bench.json")) == 2
    assert "bench_sizes.png is there already" in capsys.readouterr().err
    assert figure.read_bytes() == b"mine"


# Records ------------------------------------------------------------------------------------------


def test_ratios_are_taken_round_by_round():
    """A machine that slows down for a round slows both methods: the ratio stays."""
    seconds = {"ours": [1.0, 2.0, 4.0], "peer": [10.0, 22.0, 40.0], "once": [8.0]}
    first, peer, once = records_of(
        "work", seconds, {"ours": {}, "peer": {"error": 0.1}, "once": {"device": "other"}}, n=3
    )
    assert first["ratio_to_ours"] == 1.0 and first["error"] is None and first["n"] == 3
    assert peer["seconds"] == 22.0 and peer["ratio_to_ours"] == 10.0
    assert peer["ratio_spread"] == [10.0, 11.0] and peer["error"] == 0.1
    assert once["ratio_to_ours"] == 4.0 and once["ratio_spread"] == [2.0, 8.0]
    assert once["device"] == "other" != first["device"]


@pytest.mark.parametrize("again", [0, 2])
def test_rounds_interleave_the_methods(again, monkeypatch):
    monkeypatch.setattr(_measure, "_AGAIN", again)
    order = []
    runs = {name: lambda name=name: order.append(name) or name for name in "abc"}
    answers, seconds = interleaved(runs, 2, lambda now: None, once=["b"])
    # Calls that are over soon are repeated within their round.
    assert order == [name for name in "abcac" for _ in range(1 + again)]
    assert answers == {"a": "a", "b": "b", "c": "c"}
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 1, "c": 2}


def test_the_ratio_of_equal_quality_is_to_ours_at_least_as_exact():
    def of(method: str, seconds: float, error: float, worst: float) -> dict:
        return record("w", method, seconds, error=error, error_worst=worst)

    fast, exact = of("ours, fast", 1.0, 1e-3, 1e-2), of("ours, exact", 2.0, 1e-6, 1e-5)
    found = projection.with_equal_quality([
        fast, exact,
        of("loose", 10.0, 1e-2, 1e-1), of("median only", 10.0, 1e-2, 1e-3),
        of("better", 10.0, 1e-7, 1e-6),
    ])  # fmt: skip
    assert found[:2] == [fast, exact]
    same = [(r["same_quality"], r["ratio_same_quality"]) for r in found[2:]]
    assert same == [("ours, fast", 10.0), ("ours, exact", 5.0), (None, None)]


def test_errors_are_compared_at_the_same_time():
    ladder = [
        {"seconds": 1.0, "error": 1e-2, "error_worst": 1e-1},
        {"seconds": 100.0, "error": 1e-6, "error_worst": 1e-3},
    ]

    def ratios(seconds: float) -> tuple:
        found = equal_time.error_ratios(
            {"seconds": seconds, "error": 1.0, "error_worst": 1.0}, ladder
        )
        return found["error_ratio"], found["error_worst_ratio"]

    assert ratios(10.0) == pytest.approx((1e4, 1e2))  # half-way, on logarithmic scales
    assert ratios(1000.0) == pytest.approx((1e6, 1e3))
    assert ratios(0.5) == (None, None)
    # A run that took longer and is less exact takes nothing back.
    ladder.append({"seconds": 200.0, "error": 1e-2, "error_worst": 1e-1})
    assert ratios(1000.0) == pytest.approx((1e6, 1e3))


def test_tables_have_a_row_for_each_record():
    rows = [record("w", "ours", 1.0, [1.0]), record("w", "peer", 2.0, [1.0, 2.0, 4.0])]
    table = lay_out("title", rows, {"method": text("method"), "ratio": ratio_cell})
    assert list(table.columns[0].cells) == ["ours", "peer"]
    assert list(table.columns[1].cells) == ["1", "2\u00a0(1–4)"]


# Quality ------------------------------------------------------------------------------------------


def test_quality_tells_a_worse_answer(digits):
    problem = problem_on(digits, radius=0.3, reg=300.0, window=3)
    exact = reference(problem)
    right = quality(problem, exact.point, exact)
    assert right["error"] < 1e-12 and right["mass_change"] < 1e-9
    # The dual that the solution itself proves is the maximum, found with another ψ.
    assert abs(right["dual_gap"]) < 1e-9 and abs(right["dual_gap_worst"]) < 1e-9
    assert right["inside"] == 1.0
    near = quality(problem, exact.point.astype(np.float32), exact)
    assert 1e-9 < near["error_worst"] < 1e-6 and abs(near["dual_gap_worst"]) < 1e-9
    far = quality(problem, np.clip(problem.w, 0, None), exact)
    assert far["error"] > 1e-2 and far["dual_gap"] > 1e-6
    assert far["mass_change"] > 1e-3


def test_batches_come_back_in_order():
    a, b = np.arange(6.0, dtype=np.float32), np.ones(6, np.float32)
    np.testing.assert_array_equal(np.ravel(spread(lambda a, b: 2 * a + b, a, b)()), 2 * a + 1)


# Workloads ----------------------------------------------------------------------------------------


def test_sizes_vary_one_thing_at_a_time(digits):
    images = np.repeat(digits.repeat(4, 1).repeat(4, 2)[:, :28, :28], 1, 0)
    problem = sizes._problem(sizes.Point(side=14, batch=6), images)
    assert problem.x.shape == (6, 14, 14, 1) and problem.x.min() >= 0
    np.testing.assert_allclose(problem.x[0].mean(), images[0].mean(), rtol=0.1)
    problem = sizes._problem(sizes.Point(batch=6, window=7, reg=50.0), images)
    np.testing.assert_array_equal(problem.x, np.resize(images, (6, 28, 28, 1)))
    assert (problem.window, problem.reg) == (7, 50.0)


def test_a_peer_without_an_answer_is_told():
    assert np.array_equal(sizes.guarded(lambda: np.ones(3))(), np.ones(3))
    assert sizes.guarded(lambda: np.array([1.0, np.nan]))() == "the answer is not finite"

    def refuses():
        raise NotImplementedError

    assert isinstance(sizes.guarded(refuses)(), sizes.Failure)


def test_figures_are_drawn_with_and_without_the_peer(tmp_path):
    by_size = [
        {**record("sizes", name, seconds), "varies": axis, "value": value,
         "seconds_per_image": seconds}
        for axis in sizes._AXES
        for value in (1, 10)
        for name, seconds in (("ours", 0.1), (_peers.PACKAGE, None if value == 10 else 1.0))
    ]  # fmt: skip
    by_time = [
        record("equal_time", f"{name}, {n}", n, error=0.1**n, error_worst=0.5**n, setting="some")
        for name in ("ours", _peers.PACKAGE)
        for n in (1, 2)
    ]
    for module, rows in ((sizes, by_size), (equal_time, by_time)):
        drawn = []
        for part in (rows, [r for r in rows if r["method"].startswith("ours")]):
            path = tmp_path / "figure.png"
            module.figure(part, path)
            drawn.append(path.read_bytes())
        assert drawn[0].startswith(b"\x89PNG") and drawn[0] != drawn[1]
    assert "failed" in list(sizes.table(by_size).columns[2].cells)


def test_memory_is_measured_in_a_process_of_its_own():
    # More than this process must not count, nor less than x, y and the answer.
    found = in_fresh_process(memory.__name__, projection="linear_oracle", batch=32)
    arrays = 3 * 4 * 32 * 64 * 64 * 3
    assert found["xla_bytes"] >= arrays and found["peak_bytes"] >= arrays


def test_a_process_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"No module named 'benchmarks\.no_such'"):
        in_fresh_process("benchmarks.no_such")


def test_operations_of_a_step_grow_with_the_window():
    few, many = floor.counts((8, 8, 1), 3), floor.counts((8, 8, 1), 5)
    assert 8 * 8 * 9 < few["operations"] < many["operations"]
    assert few["bytes"] > 4 * 64


def test_tables_of_all_workloads_can_be_laid_out():
    attacked = record("attack", "ours", 1.0, [1.0], setting="", images=1, accuracy={
        str(r): 0.5 for r in attack._RADII
    })  # fmt: skip
    assert attack.table([attacked]).row_count == 1
    assert devices.table([record("devices", "1 devices", 1.0, [1.0], setting="")]).row_count == 1
