"""The attack command: what it leaves, how it goes on after an interruption, what it refuses."""

import shutil

import numpy as np
import pytest
from run_files import arrays_of, contents, results_of

from experiments import attack_fashion_mnist
from wasserstein_adv import parallel
from wasserstein_adv.attacks.unbalanced import PAPER
from wasserstein_adv.metrics import exact_distance


def test_leaves_evidence(runs):
    run = runs("wong")
    results, clean = results_of(run), arrays_of(run, "clean")
    arrays = arrays_of(run, "wong")
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": 6}
    assert results["adversarial_accuracy"] == {
        str(r): float((arrays["radius"] > np.float32(r)).mean()) for r in (0.3, 1.0)
    }
    assert results["nominal_accuracy"] == float((arrays["radius"] > 0).mean())
    assert results["nominal_accuracy"] == (clean["prediction"] == clean["label"]).mean()
    assert results["settings"]["window"] == 3
    assert {"seconds", "images_per_second", "environment", "seed", "command", "model"} <= set(
        results
    )
    claimed = arrays["budget"] > 0
    assert claimed.any()
    assert (arrays["window_before_clamp"][claimed] <= arrays["budget"][claimed] * 1.0001).all()
    assert results["distance_check"]["inside_before_clamp"] == 1.0
    assert arrays["image"].shape == clean["image"].shape == (6, 28, 28, 1)
    files = {"settings.json", "results.json", "evidence.json", "table.md", ".lock"}
    arrays_and_pictures = {"clean.npz", "wong.npz", "curve.png", "examples.png"}
    assert set(contents(run)) == files | arrays_and_pictures
    for picture in ("curve.png", "examples.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")


def test_is_not_repeated(attacked, runs, tmp_path, capsys):
    run = shutil.copytree(runs("wong"), tmp_path / "run")
    before = contents(run)
    capsys.readouterr()
    assert attacked("wong", run) == 0
    shown = capsys.readouterr().out
    assert "finished before" in shown and "accuracy at radius 0.3" in shown
    assert contents(run) == before
    assert attacked("wong", run, "--reg", "500") == 2
    assert "another reg" in capsys.readouterr().err
    assert contents(run) == before


def test_attack_in_no_ball_reports_what_became_of_the_mass(runs):
    run = runs("unbalanced")
    results, arrays, clean = results_of(run), arrays_of(run, "unbalanced"), arrays_of(run, "clean")
    assert results["settings"] | PAPER._replace(steps=2)._asdict() == results["settings"]
    assert results["attack_accuracy"] == (~arrays["success"]).mean()
    answers = (arrays["prediction"] == clean["label"]).mean()
    assert results["attack_accuracy"] == answers
    ratio = arrays["image"].sum((1, 2, 3), np.float64) / clean["image"].sum((1, 2, 3), np.float64)
    np.testing.assert_allclose(arrays["mass_change"], ratio - 1, atol=1e-12)
    distance = exact_distance(
        clean["image"][5], arrays["image"][5], lambda drow, dcol: (abs(drow) + abs(dcol)) / 27
    )
    assert arrays["budget"][5] > 0
    assert arrays["distance"][5] == pytest.approx(float(distance.total), abs=1e-12)
    assert results["transport"]["within_budget"] == 1.0
    sweep = results["accuracy_after_steps"]
    assert list(sweep) == ["0", "1", "2"]
    assert sweep["0"] == results["nominal_accuracy"] and sweep["2"] == results["attack_accuracy"]
    for picture in ("curve.png", "examples.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")


def test_goes_on_after_an_interruption(attacked, runs, tmp_path, monkeypatch):
    evaluate = parallel.evaluate

    def interrupted(*args, on_round, **options):
        def stop(progress):
            on_round(progress)
            raise KeyboardInterrupt

        return evaluate(*args, on_round=stop, **options)

    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "evaluate", interrupted)
        assert attacked("wong", parts) == 130
    assert (parts / "checkpoint.npz").exists()
    assert not (parts / "results.json").exists()
    resumed = []

    def watched(*args, resume, **options):
        resumed.append(resume)
        return evaluate(*args, resume=resume, **options)

    monkeypatch.setattr(parallel, "evaluate", watched)
    assert attacked("wong", parts) == 0
    assert resumed[0].state.step.max() > 0
    assert not (parts / "checkpoint.npz").exists()
    whole = arrays_of(runs("wong"), "wong")
    found = arrays_of(parts, "wong")
    np.testing.assert_array_equal(whole["radius"], found["radius"])
    np.testing.assert_array_equal(whole["steps"], found["steps"])


SINKHORN, FLOW, UNBALANCED = "wong", "flow", "unbalanced"


@pytest.mark.parametrize(
    ("attack", "arguments", "named"),
    [
        (SINKHORN, ["--radii", "0"], "--radii"),
        (SINKHORN, ["--radii", "-0.5"], "--radii"),
        (SINKHORN, ["--radii", "nan"], "--radii"),
        (SINKHORN, ["--window", "4"], "--window"),
        (SINKHORN, ["--num-images", "0"], "--num-images"),
        (SINKHORN, ["--num-images", "1001"], "--num-images"),
        (SINKHORN, ["--reg", "-1"], "--reg"),
        (SINKHORN, ["--start-radius", "0"], "--start-radius"),
        (SINKHORN, ["--grow-every", "0"], "--grow-every"),
        (SINKHORN, ["--restarts", "2"], "--random-start"),
        (SINKHORN, ["--batch-size", "0"], "--batch-size"),
        (SINKHORN, ["--seed", "-1"], "--seed"),
        (SINKHORN, ["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (SINKHORN, ["--checkpoint", "cut.pth"], "cut.pth"),
        (SINKHORN, ["--eta", "0.1"], "--eta"),
        (SINKHORN, ["--preset", "transport"], "--preset of wong must be paper or"),
        (FLOW, ["--window", "3"], "--window"),
        (UNBALANCED, ["--reg", "10"], "--reg"),
        (UNBALANCED, ["--eta", "0"], "--eta"),
        (UNBALANCED, ["--tau", "nan"], "--tau"),
        (UNBALANCED, ["--iterations", "0"], "--iterations"),
        (UNBALANCED, ["--preset", "script"], "--preset"),
        (UNBALANCED, ["--radii", "0.2"], "--radii"),
        (UNBALANCED, ["--floor", "1e-6"], "--floor"),
        (UNBALANCED, ["--eta", "1e-300"], "--eta"),
        (UNBALANCED, ["--steps", "3000000000"], "--steps"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    attacked, tmp_path, capsys, monkeypatch, attack, arguments, named
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M")
    assert attacked(attack, tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def test_unknown_dataset_is_refused(attacked, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        attacked(FLOW, tmp_path / "run", "--data", "imagenet")
    assert stopped.value.code == 2
    assert "imagenet" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(attacked, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert attacked(FLOW, tmp_path / "run") == 2
    assert "holds no run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_fashion_mnist_is_attacked_by_unbalanced_transport_unless_told_otherwise():
    config = attack_fashion_mnist.AttackFashionMnistConfig()
    assert (config.data, config.attack) == ("fashion_mnist", "unbalanced")
