"""The command that attacks every class towards every other one."""

import io

import numpy as np
import pytest
from rich.console import Console
from run_files import contents, results_of

from experiments import _evaluation
from experiments import targeted as command_module
from experiments._cli import run_command
from experiments._evaluation import logits_of, predictions
from experiments._weights import Classifier, save
from wasserstein_adv import parallel
from wasserstein_adv.attacks.unbalanced import PAPER
from wasserstein_adv.data import load
from wasserstein_adv.metrics import exact_distance, wilson_interval
from wasserstein_adv.models import WongKolterCNN

_COUNT = 40
MODEL = WongKolterCNN()


@pytest.fixture(scope="module")
def variables():
    """Small random weights."""
    import jax

    found = MODEL.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    return jax.tree.map(np.asarray, found)


@pytest.fixture(scope="module")
def weights(variables, tmp_path_factory):
    """Those, with biases at which all classes are answered, as the training command saves them."""
    import jax

    images = load("mnist-5k", "test").images[:_COUNT]
    mean = np.asarray(logits_of(Classifier(MODEL, variables))(images)).mean(0)
    last = max(path for path, leaf in leaves(variables).items() if leaf.shape == mean.shape)
    even = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf - mean if jax.tree_util.keystr(path) == last else leaf, variables
    )
    path = tmp_path_factory.mktemp("weights") / "network"
    save(path, even)
    return path


def leaves(tree):
    import jax

    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


@pytest.fixture
def command(weights, tmp_path, monkeypatch):
    """Runs the command on forty digits for a few steps; returns its exit status."""
    monkeypatch.setattr(_evaluation, "use_all_cores", lambda: None)
    monkeypatch.setenv("WASSERSTEIN_ADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, out="run"):
        basic = ["--data", "mnist-5k", "--num-images", str(_COUNT), "--per-class", "1"]
        steps = ["--steps", "7", "--step-size", "0.004"]
        weighted = [] if "--checkpoint" in arguments else ["--checkpoint", str(weights)]
        argv = [*basic, *steps, *weighted, "--out", out, *arguments]
        return run_command(command_module.main, command_module.TargetedConfig, argv)

    return run


# What is attacked, and what is made of it ---------------------------------------------------------


def test_pairs_are_the_first_right_images_towards_all_other_classes():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 9, 200), rng.integers(0, 9, 200)  # none of class 9
    answers[:100] = labels[:100]
    index, source, target = command_module.choose_pairs(labels, answers, 3)
    np.testing.assert_array_equal(source, labels[index])
    assert (target != source).all() and (answers[index] == source).all()
    for label in range(9):
        first = np.flatnonzero((labels == label) & (answers == label))[:3]
        of = source == label
        np.testing.assert_array_equal(index[of], np.repeat(first, 9))
        np.testing.assert_array_equal(
            target[of].reshape(-1, 9), np.tile(np.delete(np.arange(10), label), (len(first), 1))
        )
    assert 9 in target and 9 not in source


def test_without_a_right_image_there_are_no_pairs():
    labels = np.arange(10)
    for part in command_module.choose_pairs(labels, (labels + 1) % 10, 5):
        assert part.shape == (0,)


def test_matrices_are_means_of_known_successes():
    pairs = command_module.choose_pairs(np.repeat(np.arange(10), 2), np.repeat(np.arange(10), 2), 2)
    rng = np.random.default_rng(1)
    success = (pairs.source + pairs.target + pairs.index) % 3 > 0
    arrays = {
        **pairs._asdict(), "success": success, "distance": rng.random(180),
        "steps": rng.integers(1, 9, 180), "moved": rng.random(180),
        "unmatched": rng.random(180), "residual": rng.random(180),
    }  # fmt: skip
    found = command_module.summary(arrays)
    assert np.isnan(np.diagonal(found["success_rate"])).all()
    for source, target in ((0, 1), (3, 7), (9, 2)):
        of = (pairs.source == source) & (pairs.target == target)
        assert of.sum() == 2
        assert found["success_rate"][source, target] == success[of].mean()
        for name in ("distance", "steps"):
            expected = arrays[name][of & success].mean()
            assert found[name][source, target] == pytest.approx(expected)
    assert found["total"]["success_rate"] == pytest.approx(success.mean())
    assert found["total"]["interval"] == list(wilson_interval(int(success.sum()), 180))
    assert found["sources"][4]["pairs"] == 18 and found["sources"][4]["images"] == 2
    part = success & (pairs.source == 4)
    assert found["sources"][4]["distance"] == pytest.approx(arrays["distance"][part].mean())
    assert found["sources"][4]["residual"] == arrays["residual"][part].max()


# The command --------------------------------------------------------------------------------------


def test_goes_on_after_an_interruption_and_leaves_evidence(command, tmp_path, monkeypatch, capsys):
    run, evaluate, resumed = tmp_path / "run", parallel.evaluate, []

    def interrupted(*args, on_round, **options):
        def stop(progress):
            on_round(progress)
            raise KeyboardInterrupt

        return evaluate(*args, on_round=stop, **options)

    def watched(*args, resume, **options):
        resumed.append(resume)
        return evaluate(*args, resume=resume, **options)

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "evaluate", interrupted)
        assert command() == 130
    assert (run / "checkpoint.npz").exists() and not (run / "results.json").exists()
    monkeypatch.setattr(parallel, "evaluate", watched)
    assert command() == 0
    assert resumed[0].state.step.max() == 5
    assert not (run / "checkpoint.npz").exists()

    printed = capsys.readouterr().out
    results = results_of(run)
    assert {"environment", "seed", "command", "model", "settings", "seconds"} <= set(results)
    assert (run / "targeted.png").read_bytes().startswith(b"\x89PNG")
    dataset, pairs = load("mnist-5k", "test"), np.load(run / "pairs.npz")
    success, source, target = (pairs[name] for name in ("success", "source", "target"))
    assert 0 < success.sum() < len(success)
    np.testing.assert_array_equal(source, dataset.labels[pairs["index"]])
    np.testing.assert_array_equal(success, pairs["prediction"] == target)
    assert (pairs["steps"][success] >= 1).all() and (pairs["steps"][~success] == 7).all()
    for name, over in (("success_rate", None), ("distance", success), ("steps", success)):
        for at, value in np.ndenumerate(np.array(results[name], float)):
            of = (source == at[0]) & (target == at[1])
            of = of if over is None else of & over
            values = pairs["success" if name == "success_rate" else name][of]
            assert value == pytest.approx(values.mean()) if len(values) else np.isnan(value)
    assert results["total"]["success_rate"] == success.mean()
    assert results["total"]["pairs"] == len(success)
    for pair in (0, len(success) - 1):
        clean = dataset.images[pairs["index"][pair]]
        exact = exact_distance(clean, pairs["image"][pair], lambda r, c: (abs(r) + abs(c)) / 27)
        assert pairs["distance"][pair] == pytest.approx(exact.total, rel=1e-4)
    assert f"all{len(np.unique(source)):>10}" in printed
    assert "| all |" in (run / "table.md").read_text()

    before = contents(run)
    assert command() == 0
    assert "finished before" in capsys.readouterr().out
    assert command("--preset", "transport") == 2
    assert "another protocol" in capsys.readouterr().err
    assert contents(run) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--per-class", "0"], "--per-class"),
        (["--steps", "0"], "--steps"),
        (["--step-size", "nan"], "--step-size"),
        (["--num-images", "0"], "--num-images"),
        (["--num-images", "1001"], "--num-images"),
        (["--batch-size", "0"], "--batch-size"),
        (["--seed", "-1"], "--seed"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, arguments, named):
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def test_a_classifier_that_is_never_right_is_refused(command, monkeypatch, capsys):
    labels = load("mnist-5k", "test").labels
    monkeypatch.setattr(
        command_module, "predictions", lambda _, images: (labels[: len(images)] + 1) % 10
    )
    assert command() == 2
    assert "classified correctly" in capsys.readouterr().err


def test_classes_without_a_right_image_are_left_empty(tmp_path):
    """In the matrices, the table and the picture."""
    x = load("mnist-5k", "test").images[:10]
    pairs = command_module.choose_pairs(np.arange(10), np.r_[:9, 0], 1)
    count = len(pairs.index)
    arrays = {
        **pairs._asdict(), "success": pairs.source > 0, "distance": np.full(count, np.inf),
        "steps": np.ones(count, int), "moved": np.zeros(count), "unmatched": np.zeros(count),
        "residual": np.full(count, np.nan), "image": x[pairs.index],
    }  # fmt: skip
    results = {**some_results(), **command_module.summary(arrays)}
    assert results["total"]["images"] == 9
    assert results["sources"][9]["success_rate"] is None
    assert results["sources"][0]["residual"] is None and results["total"]["residual"] == np.inf
    assert results["total"]["distance"] is None
    assert "| 9 | 0 | – | – | – | – | – | – |" in command_module.markdown_table(results)
    command_module._plot(tmp_path / "picture.png", x, arrays, results)
    assert (tmp_path / "picture.png").stat().st_size > 0


def some_results():
    return {
        "dataset": {"name": "fashion_mnist", "split": "test", "num_images": 10_000},
        "settings": {"protocol": PAPER._asdict(), "per_class": 100},
    }


def test_the_table_fits_a_terminal():
    part = {
        "images": 1000, "pairs": 9000, "success_rate": 1.0, "interval": [0.8388, 1.0],
        "distance": 0.1234, "steps": 100.0, "moved": 1.0, "unmatched": 1.5, "residual": 0.0005,
    }  # fmt: skip
    sources = [{"source": number, **part} for number in range(10)]
    results = {**some_results(), "sources": sources, "total": {**part, "images": 10_000}}
    console = Console(width=80, file=io.StringIO())
    console.print(command_module.results_table(results))
    text = console.file.getvalue()
    assert "100.0 (83.9–100.0)" in text and "10,000" in text and "150.0 %" in text
    assert "0.0005" in text and "…" not in text


def test_published_weights_are_led_astray(real_data):
    """Of one seven, towards all classes: at the paper's settings most of them are reached."""
    import jax

    from wasserstein_adv.attacks import first_success, unbalanced
    from wasserstein_adv.data.idx import find_idx_files, read_idx_split
    from wasserstein_adv.models import load_wong_kolter

    split = read_idx_split(*find_idx_files(real_data / "mnist")["test"])
    images, labels = np.float32(split.images[:1] / 255), split.labels[:1]
    path = real_data / "checkpoints" / "mnist_vanilla.pth"
    classifier = Classifier(MODEL, load_wong_kolter(path))
    index, _, target = command_module.choose_pairs(labels, predictions(classifier, images), 1)
    attack = unbalanced((28, 28), PAPER._replace(steps=40), targeted=True, keep=first_success())
    found = attack(jax.random.key(0), logits_of(classifier), images[index], target)
    np.testing.assert_array_equal(
        found.success, predictions(classifier, np.asarray(found.image)) == target
    )
    assert found.success.sum() >= 5
