"""The training commands: what they leave, what they refuse."""

import json

import numpy as np
import pytest
from run_files import results_of

from experiments.harness.arguments import parse, run_command
from experiments.harness.catalogue.defenses import DEFENSES
from experiments.train_mnist import TrainMnistConfig
from experiments.training import options
from experiments.training.command import run_training
from experiments.training.weights import MODEL_NAME, load_weights
from wasserstein_adv.data import RawDataset


def test_options_of_a_defence_are_its_attacks_settings():
    config = parse(TrainMnistConfig, ["--defense", "wong", "--steps", "7", "--epochs", "3"])
    assert config.settings == DEFENSES["wong"].settings("mnist")._replace(steps=7)
    assert (config.epochs, config.defense) == (3, "wong")
    assert parse(TrainMnistConfig, []).settings is None


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command on a few digits in the folder "run"; returns its exit status."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 28, 28, 1), np.uint8)
    dataset = RawDataset("mnist", images, np.arange(24, dtype=np.int32) % 10)
    monkeypatch.setattr(options, "read", lambda *_, **__: dataset)

    def run(*arguments: str) -> int:
        argv = ["--data", "mnist", "--out", str(tmp_path / "run"), *arguments]
        return run_command(run_training, TrainMnistConfig, argv)

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs 0", "--epochs must be 1 or more"),
        ("--batch-size 0", "--batch-size must be 1 or more"),
        ("--batch-size 25", "batch_size must be at most the 24 images"),
        ("--learning-rate nan", "--learning-rate must be positive and finite"),
        ("--seed -1", "--seed must be from 0"),
        ("--steps 3", "--steps is not an option of --defense plain"),
        ("--defense pgd --steps 0", "--steps must be 1 or more"),
        ("--defense wong --attack-steps 3", "--attack-steps is called --steps now"),
        ("--num-images 25", "--num-images 25: mnist has 24"),
        ("--checkpoint-every -1", "--checkpoint-every must be 0 or more"),
        ("--model resnet18", "resnet18 does not take mnist's images of 28×28×1"),
        ("--num-processes 2", "need --coordinator HOST:PORT"),
        ("--coordinator here:1", "needs --num-processes and --process-id"),
        ("--coordinator here:x --num-processes 2 --process-id 0", "--coordinator here:x: [Errno"),
        ("--init nothing.pth", "nothing.pth: no such file"),
    ],
)
def test_what_is_out_of_range_is_refused_and_nothing_left(
    command, arguments, message, tmp_path, capfd
):
    assert command(*arguments.split()) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: ") and message in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_trains_and_leaves_weights_metrics_and_results(command, tmp_path, capfd):
    options = ["--epochs", "2", "--batch-size", "8", "--model", "wong-kolter"]
    assert command(*options) == 0
    run = tmp_path / "run"
    assert "test" in capfd.readouterr().out
    assert {path.name for path in run.iterdir()} == {
        ".lock", "metrics.jsonl", MODEL_NAME, "results.json", "settings.json", "table.md",
        "tensorboard", "weights",
    }  # fmt: skip
    results = results_of(run)
    assert results["recipe"]["epochs"] == 2
    assert results["images"] == {"train": 24, "test": 24}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [3, 3, 6, 6]
    assert lines[-1]["test_accuracy"] == pytest.approx(results["accuracy"]["test"])
    assert lines[0]["loss"] > 0
    assert load_weights(run, "mnist").model.classes == 10
    assert command(*options) == 0
    assert "finished before" in capfd.readouterr().out
    # Weights to start from: those of this run, at a rate that leaves them where they are.
    started = ["--init", str(run), "--learning-rate", "1e-30", "--epochs", "1", "--batch-size", "8"]
    assert command("--out", str(tmp_path / "again"), *started) == 0
    again = load_weights(tmp_path / "again", "mnist").variables["params"]["dense2"]["kernel"]
    np.testing.assert_array_equal(
        again, load_weights(run, "mnist").variables["params"]["dense2"]["kernel"]
    )


def test_a_loss_that_is_not_finite_ends_the_training(command, tmp_path, capfd):
    assert command("--learning-rate", "1e30", "--epochs", "4", "--batch-size", "8") == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert told.startswith("error: the loss is") and "lower --learning-rate" in told
    assert not (tmp_path / "run" / "weights").exists()
