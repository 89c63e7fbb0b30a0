"""The commands of the unbalanced attack: what they leave, what they refuse."""

import numpy as np
import pytest
from experiments._attacks import FAMILIES, settings_of
from experiments._cli import run_command
from run_files import results_of

from experiments import (
    _evaluation,
    attack_fashion_mnist,
    attack_mnist,
    transport_onset,
    unbalanced_table,
)
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT
from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import exact_distance

COMMANDS = {
    "attack": (attack_mnist, attack_mnist.AttackMnistConfig),
    "table": (unbalanced_table, unbalanced_table.UnbalancedTableConfig),
    "onset": (transport_onset, transport_onset.TransportOnsetConfig),
}


@pytest.fixture
def command(weights, tmp_path, monkeypatch):
    """Runs a command on four digits; returns its exit status."""
    monkeypatch.setattr(_evaluation, "use_all_cores", lambda: None)
    monkeypatch.setenv("WASSERSTEIN_ADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        module, config = COMMANDS[name]
        basic = ["--data", "mnist-5k", "--num-images", "4", "--batch-size", "4", "--out", "run"]
        return run_command(module.main, config, [*basic, "--checkpoint", str(weights), *arguments])

    return run


def test_attack_reports_what_became_of_the_mass(command, tmp_path):
    options = ("--attack", "unbalanced", "--steps", "2", "--keep", "first-success")
    assert command("attack", *options) == 0
    results = results_of(tmp_path / "run")
    measures = np.load(tmp_path / "run" / "measures.npz")
    images = np.load(tmp_path / "run" / "adversarial.npz")
    assert results["attack"] | PAPER._replace(steps=2)._asdict() == results["attack"]
    assert results["attack_accuracy"] == (~measures["success"]).mean()
    clean, adversarial = images["clean"], images["adversarial"]
    answers = (measures["prediction"] == measures["label"]).mean()
    assert results["attack_accuracy"] == answers
    ratio = adversarial.sum((1, 2, 3), np.float64) / clean.sum((1, 2, 3), np.float64)
    np.testing.assert_allclose(measures["mass_change"], ratio - 1, atol=1e-12)
    distance = exact_distance(
        clean[0], adversarial[0], lambda drow, dcol: (abs(drow) + abs(dcol)) / 27
    )
    assert measures["distance"][0] == pytest.approx(float(distance.total), abs=1e-12)
    assert results["transport"]["within_budget"] == 1.0
    sweep = results["accuracy_after_steps"]
    assert list(sweep) == ["0", "1", "2"]
    assert sweep["0"] == results["nominal_accuracy"] and sweep["2"] == results["attack_accuracy"]
    for picture in ("curve.png", "examples.png"):
        assert (tmp_path / "run" / picture).read_bytes().startswith(b"\x89PNG")


def test_table_and_onset_resume_and_are_not_repeated(command, tmp_path, capsys, monkeypatch):
    table = ("table", "--step-sizes", "0.05", "--distance-images", "2")
    cells = []
    run_cell = unbalanced_table.run_cells.__globals__["_run"]

    def counted(subject, cell, *rest):
        cells.append(rest[-1])
        if len(cells) == 3:
            raise KeyboardInterrupt
        return run_cell(subject, cell, *rest)

    monkeypatch.setitem(unbalanced_table.run_cells.__globals__, "_run", counted)
    assert command(*table) == 130
    assert command(*table) == 0
    assert [name.split(" ", 1)[0] for name in cells] == ["1/4", "2/4", "3/4", "3/4", "4/4"]
    results = results_of(tmp_path / "run")
    rows = {row["attack"]: row for row in results["rows"]}
    assert list(rows) == ["no projection", "published", "exact", "exact, transport"]
    assert "moved" not in rows["no projection"]
    assert rows["exact, transport"]["moved"]["mean"] > 10 * rows["exact"]["moved"]["mean"]
    for name in rows:
        arrays = np.load(tmp_path / "run" / f"{name.replace(' ', '-').replace(',', '-')}-0.05.npz")
        assert rows[name]["accuracy"] == (~arrays["success"]).mean()
        assert rows[name]["distance"]["mean"] == pytest.approx(arrays["distance"].mean())
        assert arrays["distance"].shape == (2,)
    lines = (tmp_path / "run" / "table.md").read_text().splitlines()
    assert lines[2].startswith("| no projection | 0.05 |")
    assert (tmp_path / "run" / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert command(*table) == 0
    assert "finished before" in capsys.readouterr().out


def test_onset_maps_every_setting(command, tmp_path):
    assert command("onset", "--taus", "0.01", "0.3", "--scales", "0.2") == 0
    results = results_of(tmp_path / "run")
    assert [(row["tau"], row["scale"]) for row in results["rows"]] == [(0.01, 0.2), (0.3, 0.2)]
    dear = results["rows"][1]
    assert dear["moved"]["mean"] > dear["unmatched"]["mean"]
    assert (tmp_path / "run" / "onset.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["attack", "--attack", "unbalanced", "--reg", "10"], "--reg"),
        (["attack", "--eta", "0.1"], "--eta"),
        (["attack", "--attack", "unbalanced", "--eta", "0"], "--eta"),
        (["attack", "--attack", "unbalanced", "--tau", "nan"], "--tau"),
        (["attack", "--attack", "unbalanced", "--iterations", "0"], "--iterations"),
        (["attack", "--attack", "unbalanced", "--preset", "script"], "--preset"),
        (["attack", "--attack", "unbalanced", "--radii", "0.2"], "--radii"),
        (["attack", "--attack", "unbalanced", "--floor", "1e-6"], "--floor"),
        (["attack", "--attack", "unbalanced", "--eta", "1e-300"], "--eta"),
        (["attack", "--attack", "unbalanced", "--steps", "3000000000"], "--steps"),
        (["table", "--step-sizes", "-0.1"], "--step-sizes"),
        (["table", "--step-sizes", "0.1", "0.10000001"], "--step-sizes"),
        (["table", "--floor", "0"], "--floor"),
        (["table", "--distance-images", "0"], "--distance-images"),
        (["onset", "--taus", "0.1", "0.1"], "--taus"),
        (["onset", "--scales", "inf"], "--scales"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(command, tmp_path, capsys, arguments, named):
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error:") and "\n" not in error and named in error
    assert not (tmp_path / "run").exists()


def test_settings_are_the_papers_unless_given():
    assert settings_of("unbalanced", "paper", {"reg": None}) == PAPER
    assert settings_of("unbalanced", "transport", {"tau": 0.5}) == TRANSPORT._replace(tau=0.5)
    protocol = settings_of("projected-sinkhorn", "script", {"start_radius": 0.5})
    assert protocol == FAMILIES["projected-sinkhorn"].presets["script"]._replace(start=0.5)
    with pytest.raises(InputError, match="--growth"):
        settings_of("unbalanced", "paper", {"growth": 2.0})


def test_fashion_mnist_is_attacked_by_unbalanced_transport_unless_told_otherwise():
    config = attack_fashion_mnist.AttackFashionMnistConfig()
    assert (config.data, config.attack) == ("fashion_mnist", "unbalanced")
