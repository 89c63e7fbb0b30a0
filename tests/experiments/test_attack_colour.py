"""The attack commands on colour images: settings, budgets over all channels, what a run leaves."""

import jax
import numpy as np
import pytest
from run_files import arrays_of, results_of

from experiments.attack_cifar10 import AttackCifar10Config
from experiments.attack_tiny_imagenet import AttackTinyImagenetConfig
from experiments.evaluation import subjects
from experiments.evaluation.attack import attack
from experiments.harness.arguments import run_command
from experiments.training.weights import build_model, load_weights, save
from wasserstein_adv.data import Dataset
from wasserstein_adv.geometry import euclidean_power
from wasserstein_adv.metrics import exact_distances

COUNT = 4


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.9, (COUNT, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model = build_model("carlini-wagner", "cifar10")
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    path = tmp_path_factory.mktemp("weights") / "network"
    save(path, jax.tree.map(np.asarray, init(jax.random.key(0), np.zeros((1, 32, 32, 3)))))
    return path


def test_an_attack_on_cifar10_stays_in_the_budget_of_all_channels(
    monkeypatch, images, weights, tmp_path
):
    model = load_weights(weights, "cifar10", "carlini-wagner")
    labels = subjects.predictions(model, images).astype(np.int32)
    dataset = Dataset("cifar10", images, labels)
    monkeypatch.setattr(subjects, "load", lambda *_: dataset)
    arguments = ["--checkpoint", str(weights), "--model", "carlini-wagner", "--steps", "3"]
    arguments += ["--num-images", str(COUNT), "--start-radius", "0.05"]
    out = tmp_path / "run"
    assert run_command(attack, AttackCifar10Config, [*arguments, "--out", str(out)]) == 0
    results = results_of(out)
    assert results["dataset"]["name"] == "cifar10"
    assert results["settings"]["reg"] == 3000.0
    arrays = arrays_of(out, "wong")
    before, budget = arrays["before_clamp"], arrays["budget"]
    moved = budget > 0
    assert moved.sum() >= 2
    # Mass keeps its colour, and what the three moved, over the mass of all, is within the radius.
    np.testing.assert_allclose(before.sum((1, 2)), images.sum((1, 2)), rtol=1e-4)
    found = exact_distances(images, before, euclidean_power(1), 5).total
    assert np.all(found[moved] <= budget[moved] * (1 + 1e-4))
    assert found[moved].min() > 0
    # White is a cap of the projection, so the images themselves are inside.
    np.testing.assert_array_equal(arrays["image"], before)
    assert results["distance_check"]["window"]["inside"] == 1.0
    assert results["distance_check"]["window"]["max"] <= 1.0001
    assert "inside_before_clamp" not in results["distance_check"]
    assert (out / "examples.png").is_file() and (out / "curve.png").is_file()


def test_weights_of_another_model_are_refused_in_one_line(images, weights, monkeypatch, capfd):
    dataset = Dataset("tiny_imagenet", np.zeros((1, 64, 64, 3), np.float32), np.zeros(1, np.int32))
    monkeypatch.setattr(subjects, "load", lambda *_: dataset)
    arguments = ["--checkpoint", str(weights), "--num-images", "1"]
    assert run_command(attack, AttackTinyImagenetConfig, arguments) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"error: {weights}: batch_stats")
    assert len(told.splitlines()) == 1
