"""The main command: what it leaves, how it goes on after an interruption, what it refuses."""

import numpy as np
import pytest
from run_files import contents, results_of

from experiments import _evaluation, attack_mnist
from experiments._cli import run_command
from wasserstein_adv import parallel


@pytest.fixture
def command(weights, tmp_path, monkeypatch):
    """Runs the command on six digits for a few steps; returns its exit status."""
    monkeypatch.setattr(_evaluation, "use_all_cores", lambda: None)
    monkeypatch.setenv("WASSERSTEIN_ADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, out="run"):
        basic = ["--data", "mnist-5k", "--num-images", "6", "--steps", "7", "--window", "3"]
        weighted = [] if "--checkpoint" in arguments else ["--checkpoint", str(weights)]
        argv = [*basic, *weighted, "--out", out, *arguments]
        return run_command(attack_mnist.main, attack_mnist.AttackMnistConfig, argv)

    return run


def test_leaves_evidence_and_is_not_repeated(command, tmp_path, capsys):
    assert command("--radii", "0.3", "1.0") == 0
    run = tmp_path / "run"
    results = results_of(run)
    radii = np.load(run / "radii.npz")
    assert results["dataset"] == {"name": "mnist-5k", "split": "test", "num_images": 6}
    assert results["adversarial_accuracy"] == {
        str(r): float((radii["radius"] > np.float32(r)).mean()) for r in (0.3, 1.0)
    }
    assert results["nominal_accuracy"] == float((radii["radius"] > 0).mean())
    assert results["attack"]["window"] == 3
    assert {"seconds", "images_per_second", "environment", "seed", "command", "model"} <= set(
        results
    )
    claimed = radii["budget"] > 0
    assert claimed.any()
    assert (radii["window_before_clamp"][claimed] <= radii["budget"][claimed] * 1.0001).all()
    assert results["distance_check"]["window"]["inside_before_clamp"] == 1.0
    images = np.load(run / "adversarial.npz")
    assert images["adversarial"].shape == images["clean"].shape == (6, 28, 28, 1)
    for picture in ("curve.png", "examples.png"):
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    assert not (run / "checkpoint.npz").exists()

    before = contents(run)
    capsys.readouterr()
    assert command("--radii", "0.3", "1.0") == 0
    assert "finished before" in capsys.readouterr().out
    assert contents(run) == before
    assert command("--radii", "0.3", "1.0", "--reg", "500") == 2
    assert "another reg" in capsys.readouterr().err
    assert contents(run) == before


def test_goes_on_after_an_interruption(command, tmp_path, monkeypatch):
    assert command(out="whole") == 0
    evaluate = parallel.evaluate

    def interrupted(*args, on_round, **options):
        def stop(progress):
            on_round(progress)
            raise KeyboardInterrupt

        return evaluate(*args, on_round=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "evaluate", interrupted)
        assert command(out="parts") == 130
    assert (tmp_path / "parts" / "checkpoint.npz").exists()
    assert not (tmp_path / "parts" / "results.json").exists()
    resumed = []

    def watched(*args, resume, **options):
        resumed.append(resume)
        return evaluate(*args, resume=resume, **options)

    monkeypatch.setattr(parallel, "evaluate", watched)
    assert command(out="parts") == 0
    assert resumed[0].state.step.max() > 0
    whole, parts = (np.load(tmp_path / name / "radii.npz") for name in ("whole", "parts"))
    np.testing.assert_array_equal(whole["radius"], parts["radius"])
    np.testing.assert_array_equal(whole["steps"], parts["steps"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--radii", "0"], "--radii"),
        (["--radii", "-0.5"], "--radii"),
        (["--radii", "nan"], "--radii"),
        (["--window", "4"], "--window"),
        (["--num-images", "0"], "--num-images"),
        (["--num-images", "1001"], "--num-images"),
        (["--reg", "-1"], "--reg"),
        (["--start-radius", "0"], "--start-radius"),
        (["--restarts", "2"], "--random-start"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--checkpoint", "cut.pth"], "cut.pth"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, arguments, named):
    (tmp_path / "cut.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M")
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def test_unknown_dataset_is_refused(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command("--data", "imagenet")
    assert stopped.value.code == 2
    assert "imagenet" in capsys.readouterr().err


def test_a_folder_with_something_else_is_left_alone(command, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert command() == 2
    assert "holds no run" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]
