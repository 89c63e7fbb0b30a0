"""The benchmark's methods compute the same thing, so that its ratios compare like with like."""

import json

from benchmarks import unbalanced
from experiments._cli import run_command


def test_unbalanced_benchmark_compares_equal_answers(tmp_path, capsys):
    out = tmp_path / "bench.json"
    argv = ["--data", "mnist-5k", "--batch", "2", "--iterations", "30", "--repeats", "1"]
    assert (
        run_command(
            unbalanced.main, unbalanced.UnbalancedBenchmarkConfig, [*argv, "--out", str(out)]
        )
        == 0
    )
    records = json.loads(out.read_text())["records"]
    assert [r["method"].split(",")[0] for r in records] == ["ours", "OTT separable", "OTT dense"]
    assert records[0]["ratio_to_ours"] == 1.0
    assert all(0 <= r["error"] < 1e-4 for r in records)
    before = out.read_bytes()
    assert (
        run_command(
            unbalanced.main, unbalanced.UnbalancedBenchmarkConfig, [*argv, "--out", str(out)]
        )
        == 2
    )
    assert "nothing is overwritten" in capsys.readouterr().err and out.read_bytes() == before
