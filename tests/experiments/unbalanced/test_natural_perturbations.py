"""Rotations and translations against what is known of them, and the command that measures them."""

import io
import math
import shutil

import numpy as np
import pytest
from run_files import array, arrays_of, contents, disagreeing, result, results_of

from experiments.evaluation import subjects
from experiments.harness.arguments import run_command
from experiments.harness.tables import on_terminal
from experiments.training.weights import load_weights
from experiments.unbalanced import natural_perturbations as command_module
from wasserstein_adv.data import load
from wasserstein_adv.data import perturbations as transforms
from wasserstein_adv.data.idx import find_idx_files, read_idx_split
from wasserstein_adv.evidence import distances
from wasserstein_adv.metrics import exact_distance, wilson_interval


@pytest.fixture(scope="module")
def digits():
    """Forty digits, with their classes."""
    dataset = load("mnist-5k", "test")
    return dataset.images[:40], dataset.labels[:40]


@pytest.fixture(scope="module")
def noise():
    """Images of which no two pixels are alike; not square."""
    return np.random.default_rng(0).random((3, 8, 11, 2), dtype=np.float32)


# Transforms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("quarters", [-1, 1, 2, 4])
@pytest.mark.parametrize("side", [8, 9])
def test_quarter_turns_are_those_of_the_grid(side, quarters):
    images = np.random.default_rng(1).random((3, side, side, 2), dtype=np.float32)
    turned = transforms.rotate(images, np.full(3, 90.0 * quarters))
    assert turned.dtype == np.float32
    np.testing.assert_allclose(turned, np.rot90(images, quarters, axes=(1, 2)), atol=1e-6)


@pytest.mark.parametrize("angle", [10.0, -30.0])
def test_a_rotation_turns_a_plane_of_intensities(angle):
    """Bilinear interpolation is exact on a linear function, where nothing comes from outside."""
    side, slope = 31, np.array([0.01, 0.02])
    row, column = np.mgrid[:side, :side] - (side - 1) / 2
    images = (0.5 + slope[0] * row + slope[1] * column)[None, ..., None]
    turned = transforms.rotate(images, np.array([angle]))[0, ..., 0]
    # Counter-clockwise on the screen, where rows count downwards: the value at a place is that
    # from which it came, turned back.
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    expected = 0.5 + slope[0] * (c * row + s * column) + slope[1] * (-s * row + c * column)
    inside = np.hypot(row, column) <= (side - 1) / 2 - 1
    np.testing.assert_allclose(turned[inside], expected[inside], atol=1e-12)


def test_each_image_has_its_own_motion(noise):
    angles, shifts = np.array([5.0, -20.0, 170.0]), np.array([[0.5, -2.0], [1.0, 3.3], [0.0, 0.0]])
    for transform, motions in ((transforms.rotate, angles), (transforms.translate, shifts)):
        together = transform(noise, motions)
        assert together.shape == noise.shape and together.dtype == noise.dtype
        for i in range(3):
            alone = transform(noise[i : i + 1], motions[i : i + 1])[0]
            np.testing.assert_array_equal(together[i], alone)


def test_what_comes_from_outside_is_zero(noise):
    turned = transforms.rotate(np.ones((1, 28, 28, 1)), np.array([45.0]))[0, ..., 0]
    assert turned[0, 0] == turned[-1, -1] == 0 and turned[14, 14] == pytest.approx(1)
    assert not transforms.translate(noise, np.full((3, 2), 20.0)).any()


def test_whole_translations_are_slices(noise):
    down, right = 2, -3
    moved = transforms.translate(noise, np.tile([down, right], (3, 1)).astype(float))
    expected = np.zeros_like(noise)
    expected[:, down:, :right] = noise[:, :-down, -right:]
    np.testing.assert_array_equal(moved, expected)


def test_broken_translations_are_weighted_means_of_whole_ones(noise):
    """At the edge too, where the neighbour outside is zero."""
    shifts = np.tile([1.4, -0.25], (3, 1))
    expected = sum(
        weight_r * weight_c * transforms.translate(noise, np.tile([r, c], (3, 1)).astype(float))
        for r, weight_r in ((1, 0.6), (2, 0.4))
        for c, weight_c in ((-1, 0.25), (0, 0.75))
    )
    np.testing.assert_allclose(transforms.translate(noise, shifts), expected, atol=1e-6)


# Random sizes -------------------------------------------------------------------------------------


def test_draws_belong_to_the_image():
    draws = transforms.random_draws(3, 50)
    np.testing.assert_array_equal(draws[:7], transforms.random_draws(3, 7))
    assert not (draws[:7] == transforms.random_draws(4, 7)).any()
    assert len(np.unique(draws)) == draws.size
    assert transforms.random_draws(0, 0).shape == (0, 3)


def test_sizes_up_to_are_uniform():
    draws = transforms.random_draws(0, 4000)
    angles = transforms.rotation_angles(draws, 30, "up-to")
    assert angles.min() >= -30 and angles.max() <= 30
    np.testing.assert_allclose(np.quantile(angles, [0.25, 0.5, 0.75]), [-15, 0, 15], atol=1.5)
    shifts = transforms.translation_shifts(draws, (1.4, 5.6), "up-to")
    # Of [-1.4, 1.4], what rounds to 0 has the length 1, and what rounds to ±1 has 0.9 each.
    values, counts = np.unique(shifts[:, 0], return_counts=True)
    np.testing.assert_array_equal(values, [-1, 0, 1])
    np.testing.assert_allclose(counts / 4000, np.array([0.9, 1, 0.9]) / 2.8, atol=0.03)
    np.testing.assert_array_equal(np.unique(shifts[:, 1]), np.arange(-6, 7))
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.05


def test_exact_sizes_are_neither_more_nor_less():
    draws = transforms.random_draws(0, 4000)
    angles, counts = np.unique(transforms.rotation_angles(draws, 30, "exact"), return_counts=True)
    np.testing.assert_array_equal(angles, [-30, 30])
    np.testing.assert_allclose(counts / 4000, 0.5, atol=0.03)
    shifts, counts = np.unique(
        transforms.translation_shifts(draws, (1.4, 2.8), "exact"), axis=0, return_counts=True
    )
    np.testing.assert_allclose(shifts, [[-1.4, 0], [0, -2.8], [0, 2.8], [1.4, 0]])
    np.testing.assert_allclose(counts / 4000, 0.25, atol=0.03)


# Dissimilarities ----------------------------------------------------------------------------------


def test_procrustes_does_not_see_what_keeps_the_rows_distances():
    rng = np.random.default_rng(2)
    x = rng.random((1, 9, 6, 1))
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    z = 3 * x[..., 0] @ turn + rng.normal(size=6)
    assert transforms.procrustes_dissimilarity(x, z[..., None])[0] == pytest.approx(0, abs=1e-12)


def test_procrustes_is_what_the_singular_values_leave():
    x, z = np.random.default_rng(3).random((2, 1, 9, 6, 1))
    a, b = (v[0, ..., 0] - v[0, ..., 0].mean(0) for v in (x, z))
    aligned = np.linalg.svd(a.T @ b, compute_uv=False).sum()
    expected = 1 - (aligned / (np.linalg.norm(a) * np.linalg.norm(b))) ** 2
    assert transforms.procrustes_dissimilarity(x, z)[0] == pytest.approx(expected, abs=1e-12)


def test_procrustes_is_undefined_where_all_rows_are_alike():
    x = np.random.default_rng(4).random((4, 7, 5, 1), dtype=np.float32)
    stripes = np.broadcast_to(x[:, :1], x.shape)  # their mean is off by rounding
    blank = np.zeros_like(x)
    assert np.isnan(transforms.procrustes_dissimilarity(stripes, x)).all()
    assert np.isnan(transforms.procrustes_dissimilarity(x, stripes)).all()
    assert np.isnan(transforms.procrustes_dissimilarity(blank, blank)).all()
    assert not np.isnan(transforms.procrustes_dissimilarity(x, x)).any()


@pytest.mark.parametrize(("shift", "pixels"), [((0, 1), 1), ((-2, 0), 2), ((1, 3), 4)])
def test_moving_an_image_by_a_pixel_is_a_27th(shift, pixels):
    x = np.zeros((28, 28, 1))
    x[8:20, 8:20] = np.random.default_rng(5).random((12, 12, 1))
    z = transforms.translate(x[None], np.array([shift], float))
    part = command_module.part_of(command_module.Perturbation("translation", 5), (28, 28))
    anywhere, window = (distances(x[None], z, d) for d in part.distances.values())
    assert anywhere.total[0] == pytest.approx(pixels / 27, rel=1e-7)
    if max(np.abs(shift)) <= 2:
        assert window.total[0] == pytest.approx(math.hypot(*shift), rel=1e-7)
    else:
        assert np.isinf(window.total[0]) and window.stranded[0, 0] > 0


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(weights):
    """Runs the command on a few digits; returns its exit status."""

    def run(out, *arguments):
        basic = ["--data", "mnist-5k", "--num-images", "12", "--distance-images", "4"]
        sizes = ["--rotations", "20", "--translations", "5", "20"]
        weighted = [] if "--checkpoint" in arguments else ["--checkpoint", str(weights)]
        argv = [*basic, *sizes, *weighted, "--out", str(out), *arguments]
        return run_command(command_module.main, command_module.NaturalPerturbationsConfig, argv)

    return run


@pytest.fixture(scope="module", params=["up-to", "exact"])
def finished(command, tmp_path_factory, request):
    """The folder of a finished run, and how much it moves images by."""
    folder = tmp_path_factory.mktemp("natural") / "run"
    assert command(folder, "--amount", request.param, "--seed", "5") == 0
    return folder, request.param


def test_leaves_evidence_and_is_not_repeated(command, finished, digits, capsys):
    run, amount = finished
    results = results_of(run)
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": 12}
    assert {"seconds", "environment", "seed", "command", "model"} <= set(results)
    assert (run / "perturbations.png").read_bytes().startswith(b"\x89PNG")
    assert list(results["cells"]) == ["rotation 20", "translation 5", "translation 20"]
    before = contents(run)
    assert command(run, "--amount", amount, "--seed", "5") == 0
    printed = capsys.readouterr().out
    assert "finished before" in printed

    x, y = (part[:12] for part in digits)
    draws = transforms.random_draws(5, 12)
    for name, part in results["cells"].items():
        kind, size = name.split(" ")
        if kind == "rotation":
            shown = "rotation 20°"
            moved = transforms.rotate(x, transforms.rotation_angles(draws, 20, amount))
        else:
            shown, pixels = f"{name} %", int(size) * 28 / 100
            shifts = transforms.translation_shifts(draws, (pixels, pixels), amount)
            moved = transforms.translate(x, shifts)
        stored = arrays_of(run, f"{kind}-{size}")
        np.testing.assert_array_equal(stored["clean"], x[:4])
        np.testing.assert_allclose(stored["image"], moved[:4], atol=1e-6)
        np.testing.assert_allclose(
            stored["procrustes"], transforms.procrustes_dissimilarity(x, moved), atol=1e-6
        )
        assert part["procrustes"]["mean"] == pytest.approx(stored["procrustes"].mean())
        right = int((stored["prediction"] == y).sum())
        assert part["accuracy"] == right / 12
        assert part["interval"] == list(wilson_interval(right, 12))
        pairs = list(zip(x[:4], moved[:4], strict=True))
        everywhere = [
            exact_distance(*pair, lambda r, c: (abs(r) + abs(c)) / 27).total for pair in pairs
        ]
        assert part["global"]["mean"] == pytest.approx(np.mean(everywhere), rel=1e-4)
        inside = [exact_distance(*pair, np.hypot, 5) for pair in pairs]
        near = [d.total for d in inside if np.isfinite(d.total)]
        assert part["local"]["left_out"] == 4 - len(near)
        if near:
            assert part["local"]["median"] == pytest.approx(np.median(near), rel=1e-4)
        else:
            assert part["local"]["median"] is part["local"]["mean"] is None
        stranded = np.mean([d.stranded[0] for d in inside])
        assert part["stranded"] == pytest.approx(stranded, abs=1e-6)
        assert shown in printed and f"| {shown} |" in (run / "table.md").read_text()

    assert command(run, "--amount", amount, "--seed", "6") == 2
    assert "another seed" in capsys.readouterr().err
    assert contents(run) == before


def test_a_sound_run_agrees_and_a_changed_figure_is_named(finished, check, tmp_path):
    status, printed = check(finished[0])
    assert status == 0 and "agree" in printed.out
    copy = shutil.copytree(finished[0], tmp_path / "run")
    result("cells", "rotation 20", "stranded", value=0.5)(copy)
    status, printed = check(copy, "--images", "1")
    assert status == 1
    assert disagreeing(printed.out) == {("rotation 20", "stranded")}
    array("translation-5", "anywhere", lambda old: old + 0.1)(copy)
    assert ("translation 5", "anywhere") in disagreeing(check(copy)[1].out)


def test_goes_on_after_an_interruption(command, tmp_path, monkeypatch):
    assert command(tmp_path / "whole") == 0
    measure, done = command_module._measure, []

    def interrupted(perturbation, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(perturbation)
        return measure(perturbation, *rest)

    monkeypatch.setattr(command_module, "_measure", interrupted)
    assert command(tmp_path / "parts") == 130
    assert not (tmp_path / "parts" / "results.json").exists()
    (tmp_path / "parts" / "rotation-20.npz").write_bytes(b"cut off")
    done.clear()
    assert command(tmp_path / "parts") == 0
    assert [p.size for p in done] == [20, 20] and done[0].kind == "rotation"
    whole, parts = (results_of(tmp_path / name)["cells"] for name in ("whole", "parts"))
    for part in (*whole.values(), *parts.values()):
        assert part.pop("seconds") > 0
    assert whole == parts


def test_images_whose_rows_are_alike_are_counted(command, tmp_path, monkeypatch, digits):
    """And an image that leaves the frame has no distance, here or anywhere."""
    x, y = (part[:12].copy() for part in digits)
    x[0] = 0
    x[0, 0, 0] = 1  # the corner: any shift to the left or upwards takes it away
    x[1] = 0.1
    dataset = load("mnist-5k", "test")._replace(images=x, labels=y)
    monkeypatch.setattr(subjects, "load", lambda *_: dataset)
    draws = np.tile([0.0, -0.9, -0.9], (12, 1))
    monkeypatch.setattr(command_module, "random_draws", lambda *_: draws)
    assert command(tmp_path / "run", "--rotations") == 0
    part = results_of(tmp_path / "run")["cells"]["translation 5"]
    assert part["procrustes"]["left_out"] == 2
    assert part["global"]["left_out"] == 1
    assert part["local"]["left_out"] >= 1
    assert "(75.0 %)" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--rotations", "0"], "--rotations"),
        (["--rotations", "nan"], "--rotations"),
        (["--rotations", "181"], "--rotations"),
        (["--rotations", "10", "10"], "--rotations"),
        (["--translations", "-5"], "--translations"),
        (["--translations", "100"], "--translations"),
        (["--rotations", "--translations"], "--rotations"),
        (["--num-images", "0"], "--num-images"),
        (["--num-images", "1001"], "--num-images"),
        (["--distance-images", "0"], "--distance-images"),
        (["--seed", "-1"], "--seed"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, arguments, named):
    assert command(tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_else_is_left_alone(command, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert command(tmp_path / "run") == 2
    assert "holds no run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("amount", ["up-to", "exact"])
def test_the_table_fits_a_terminal(amount):
    from rich.console import Console

    distance = {"left_out": 0, "mean": 1.2345, "median": 1.0}
    part = {
        "accuracy": 1.0, "interval": [0.8388, 1.0], "procrustes": {"mean": 0.5, "left_out": 0},
        "global": distance, "local": distance, "stranded": 1.0,
    }  # fmt: skip
    results = {
        "dataset": {"name": "fashion_mnist", "split": "test", "num_images": 10_000},
        "settings": {"amount": amount, "distance_images": 500},
        "nominal_accuracy": 1.0, "nominal_interval": [0.8388, 1.0],
        "cells": {"translation 15": part},
    }  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(on_terminal(command_module.results_table(results)))
    text = console.file.getvalue()
    assert "translation 15 % 100.00 (83.9–100.0)" in text
    assert "1.234 (100 %)" in text and "100.0 %" in text


# Real data ----------------------------------------------------------------------------------------


def test_random_sizes_are_those_of_the_published_accuracies(real_data):
    """47.85 and 93.67 % are published; exactly so much leaves 24 and 80 %."""
    split = read_idx_split(*find_idx_files(real_data / "mnist")["test"])
    classifier = load_weights(real_data / "checkpoints" / "mnist_vanilla.pth", "mnist")
    images, draws = np.float32(split.images[:3000] / 255), transforms.random_draws(0, 3000)
    for kind, size, published in (("translation", 20, 0.4785), ("rotation", 30, 0.9367)):
        moved = command_module.perturb(
            command_module.Perturbation(kind, size), "up-to", images, draws
        )
        right = subjects.predictions(classifier, moved) == split.labels[:3000]
        assert right.mean() == pytest.approx(published, abs=0.03)
