"""The command that attacks every class towards every other one."""

import io
import shutil

import numpy as np
import pytest
from rich.console import Console
from run_files import arrays_of, contents, disagreeing, result, results_of

from experiments.evaluation import session
from experiments.evaluation.subjects import logits_of, predictions
from experiments.harness.arguments import run_command
from experiments.harness.tables import markdown, on_terminal
from experiments.training.weights import Classifier, save
from experiments.unbalanced import targeted as command_module
from wasserstein_adv import parallel
from wasserstein_adv.attacks.unbalanced import PAPER
from wasserstein_adv.data import load
from wasserstein_adv.evidence import Part
from wasserstein_adv.evidence import results_of as figures_found
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


@pytest.fixture(scope="module")
def command(weights):
    """Runs the command on forty digits for a few steps; returns its exit status."""

    def run(out, *arguments):
        basic = ["--data", "mnist-5k", "--num-images", str(_COUNT), "--per-class", "1"]
        steps = ["--steps", "7", "--step-size", "0.004"]
        weighted = [] if "--checkpoint" in arguments else ["--checkpoint", str(weights)]
        argv = [*basic, *steps, *weighted, "--out", str(out), *arguments]
        return run_command(command_module.main, command_module.TargetedConfig, argv)

    return run


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """The folder of a run that was stopped once, within the attack."""
    run, evaluate, resumed = (
        tmp_path_factory.mktemp("targeted") / "run", parallel.evaluate, []
    )  # fmt: skip

    def interrupted(*args, on_round, **options):
        def stop(progress):
            on_round(progress)
            raise KeyboardInterrupt

        return evaluate(*args, on_round=stop, **options)

    def watched(*args, resume, **options):
        resumed.append(resume)
        return evaluate(*args, resume=resume, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "evaluate", interrupted)
        assert command(run) == 130
        assert (run / "checkpoint.npz").exists() and not (run / "results.json").exists()
        patch.setattr(parallel, "evaluate", watched)
        assert command(run) == 0
    assert resumed[0].state.step.max() == 5
    assert not (run / "checkpoint.npz").exists()
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


def found_of(arrays):
    """The results of the pairs."""
    files = {"pairs": arrays}
    return figures_found([Part("pairs", command_module.all_figures())], files), files


def test_figures_are_means_of_known_successes():
    labels = np.repeat(np.arange(10), 2)
    pairs = command_module.choose_pairs(labels, labels, 2)
    rng = np.random.default_rng(1)
    success = (pairs.label + pairs.target + pairs.index) % 3 > 0
    arrays = {
        **pairs._asdict(), "success": success, "distance": rng.random(180),
        "steps": rng.integers(1, 9, 180), "moved": rng.random(180),
        "unmatched": rng.random(180), "residual": rng.random(180),
    }  # fmt: skip
    found, files = found_of(arrays)
    for source, target in ((0, 1), (3, 7), (9, 2)):
        of = (pairs.label == source) & (pairs.target == target)
        assert of.sum() == 2
        expected = f"{100 * success[of].mean():.0f} %"
        if success[of].any():
            mean = arrays["distance"][of & success].mean()
            expected += f", W {mean:.3f}".replace(" 0.", " .")
        assert command_module.measured(files, source, target) == expected
    assert found["total"]["success_rate"] == pytest.approx(success.mean())
    assert found["total"]["interval"] == list(wilson_interval(int(success.sum()), 180))
    assert found["sources"]["4"]["pairs"] == 18
    part = success & (pairs.label == 4)
    for name in ("distance", "steps", "moved", "unmatched"):
        assert found["sources"]["4"][name]["mean"] == pytest.approx(arrays[name][part].mean())
    assert found["sources"]["4"]["residual"] == arrays["residual"][part].max()


# The command --------------------------------------------------------------------------------------


def test_goes_on_after_an_interruption_and_leaves_evidence(command, finished, capsys):
    results = results_of(finished)
    assert {"environment", "seed", "command", "model", "settings", "seconds"} <= set(results)
    assert (finished / "targeted.png").read_bytes().startswith(b"\x89PNG")
    before = contents(finished)
    assert command(finished) == 0
    printed = capsys.readouterr().out
    assert "finished before" in printed
    dataset, pairs = load("mnist-5k", "test"), arrays_of(finished, "pairs")
    success, source, target = (pairs[name] for name in ("success", "label", "target"))
    assert 0 < success.sum() < len(success)
    np.testing.assert_array_equal(source, dataset.labels[pairs["index"]])
    np.testing.assert_array_equal(pairs["clean"], dataset.images[pairs["index"]])
    np.testing.assert_array_equal(success, pairs["prediction"] == target)
    assert (pairs["steps"][success] >= 1).all() and (pairs["steps"][~success] == 7).all()
    for label, part in results["sources"].items():
        of = source == int(label)
        assert part["pairs"] == of.sum()
        assert part["success_rate"] == (success[of].mean() if of.any() else None)
        for name in ("distance", "steps"):
            values = pairs[name][of & success]
            expected = pytest.approx(values.mean()) if len(values) else None
            assert part[name]["mean"] == expected
    assert results["total"]["success_rate"] == success.mean()
    assert results["total"]["pairs"] == len(success)
    for pair in (0, len(success) - 1):
        clean = dataset.images[pairs["index"][pair]]
        exact = exact_distance(clean, pairs["image"][pair], lambda r, c: (abs(r) + abs(c)) / 27)
        assert pairs["distance"][pair] == pytest.approx(exact.total, rel=1e-4)
    assert f"all{len(np.unique(source)):>9}" in printed
    assert "| all |" in (finished / "table.md").read_text()
    assert command(finished, "--preset", "transport") == 2
    assert "another protocol" in capsys.readouterr().err
    assert contents(finished) == before


def test_a_sound_run_agrees_and_a_changed_figure_is_named(finished, check, tmp_path):
    status, printed = check(finished)
    assert status == 0 and "agree" in printed.out
    copy = shutil.copytree(finished, tmp_path / "run")
    source = next(k for k, part in results_of(copy)["sources"].items() if part["success_rate"])
    result("sources", source, "success_rate", value=0.987)(copy)
    result("total", "distance", "mean", value=1.5)(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert {claim for _, claim in disagreeing(printed.out)} == {
        f"sources.{source}.success_rate", "total.distance.mean"
    }  # fmt: skip


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
    assert command(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def test_a_classifier_that_is_never_right_is_refused(command, tmp_path, monkeypatch, capsys):
    labels = load("mnist-5k", "test").labels
    monkeypatch.setattr(session, "predictions", lambda _, images: (labels[: len(images)] + 1) % 10)
    assert command(tmp_path / "run") == 2
    assert "classified correctly" in capsys.readouterr().err


def test_classes_without_a_right_image_are_left_empty(tmp_path):
    """In the figures, the table and the picture."""
    x = load("mnist-5k", "test").images[:10]
    pairs = command_module.choose_pairs(np.arange(10), np.r_[:9, 0], 1)
    count = len(pairs.index)
    arrays = {
        **pairs._asdict(), "success": pairs.label > 0, "distance": np.full(count, np.inf),
        "steps": np.ones(count, int), "moved": np.zeros(count), "unmatched": np.zeros(count),
        "residual": np.full(count, np.nan), "image": x[pairs.index],
    }  # fmt: skip
    found, files = found_of(arrays)
    results = {**some_results(), **found}
    assert results["total"]["pairs"] == 9 * 9
    assert results["sources"]["9"]["success_rate"] is None
    assert results["sources"]["0"]["residual"] is None and results["total"]["residual"] == np.inf
    assert results["total"]["distance"]["mean"] is None
    text = markdown([command_module.results_table(results)])
    assert "| 9 | 0 | – | – | – | – | – | – |" in text and "| all | 9 |" in text
    command_module._plot(tmp_path / "picture.png", x, files, results)
    assert (tmp_path / "picture.png").stat().st_size > 0


def some_results():
    return {
        "dataset": {"name": "fashion_mnist", "split": "test", "num_images": 10_000},
        "settings": {"protocol": PAPER._asdict(), "per_class": 100},
    }


def test_the_table_fits_a_terminal():
    measured = {"distance": 0.1234, "steps": 100.0, "moved": 1.0, "unmatched": 1.5}
    part = {
        "pairs": 9000, "success_rate": 1.0, "interval": [0.8388, 1.0], "residual": 0.0005,
        **{name: {"mean": value} for name, value in measured.items()},
    }  # fmt: skip
    sources = {str(number): part for number in range(10)}
    results = {**some_results(), "sources": sources, "total": {**part, "pairs": 90_000}}
    console = Console(width=80, file=io.StringIO())
    console.print(on_terminal(command_module.results_table(results)))
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
