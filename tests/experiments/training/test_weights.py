"""Weights on disk: a round trip, and what cannot be used."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import weights as weights_module
from experiments.training.weights import check_free, load_weights, restore, save
from wasserstein_adv.errors import InputError
from wasserstein_adv.models import WongKolterCNN

MODEL = WongKolterCNN()


@pytest.fixture(scope="module")
def weights():
    init = jax.jit(MODEL.init, compiler_options={"xla_backend_optimization_level": 0})
    return init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_weights_survive_a_round_trip(weights, tmp_path, caplog, capfd):
    path = tmp_path / "new" / "weights"
    save(path, weights)
    assert_equal(load_weights(path, "mnist").variables, weights)
    assert os.listdir(path.parent) == ["weights"]
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_save_takes_an_empty_folder_and_overwrites_nothing(weights, tmp_path):
    save(tmp_path / "run", weights)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="not empty"):
        save(tmp_path / "run", weights)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", weights)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="there already"):
        check_free(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("dense2"), "dense2.bias is missing"),
        (lambda p: p.update(extra=jnp.zeros(2)), "extra is not the network's"),
        (lambda p: p["conv1"].update(bias=jnp.zeros(3)), "conv1.bias is float32 .3,., expected"),
        (lambda p: p["conv1"].update(bias=jnp.zeros(16, jnp.int32)), "conv1.bias is int32"),
        (lambda p: p["conv1"].update(bias=jnp.full(16, jnp.nan)), "conv1.bias .* not finite"),
    ],
)
def test_other_networks_are_refused(weights, tmp_path, change, message):
    other = jax.tree.map(lambda leaf: leaf, weights)
    change(other["params"])
    save(tmp_path / "other", other)
    with pytest.raises(InputError, match=message) as caught:
        restore(tmp_path / "other", MODEL, "mnist")
    assert "\n" not in str(caught.value)


def damage(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")


def test_what_is_no_checkpoint_is_refused_in_one_line(weights, tmp_path):
    (tmp_path / "notes.txt").touch()
    save(tmp_path / "damaged", weights)
    damage(tmp_path / "damaged")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "missing.pth", "missing.pt", "notes.txt", "empty", "damaged"):
        with pytest.raises(InputError) as caught:
            load_weights(tmp_path / name, "mnist")
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_pytorch_files_go_to_their_reader(monkeypatch, tmp_path):
    monkeypatch.setattr(weights_module, "load_torch", lambda model, path, shape: (path, shape))
    found = load_weights(tmp_path / "a.PTH", "mnist", "carlini-wagner")
    assert type(found.model).__name__ == "CarliniWagnerCNN"
    assert found.variables == (tmp_path / "a.PTH", (28, 28, 1))
