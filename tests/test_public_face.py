"""What `import wasserstein_adv` promises."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit

import wasserstein_adv as wa

ROOT = Path(__file__).parents[1]
CORE = ("geometry", "projections", "attacks")

# OTT-JAX imports flax and matplotlib itself, so only what comes on top of it is ours.
FRESH = """
import json, sys
import jax, optax, ott.geometry.costs, ott.geometry.geometry, ott.geometry.grid, jaxtyping
before, settings = set(sys.modules), dict(jax.config.values)
import wasserstein_adv
from jax._src import xla_bridge
json.dump({
    "new": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "backends": sorted(xla_bridge._backends),
    "changed": [k for k, v in jax.config.values.items() if settings.get(k) != v],
}, sys.stdout)
"""


def test_import_changes_nothing_and_pulls_in_no_heavy_package():
    done = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, cwd=ROOT, check=True
    )
    found = json.loads(done.stdout)
    assert found["backends"] == []
    assert found["changed"] == []
    assert done.stderr == ""
    heavy = {"tensorflow", "tensorflow_datasets", "torch", "orbax", "tyro", "ot", "mlxtend"}
    assert not heavy & set(found["new"])
    assert "wasserstein_adv" in found["new"]


@pytest.mark.parametrize("part", CORE)
def test_numerical_core_imports_little(part):
    allowed = {"jax", "ott", "optax", "numpy", "jaxtyping", "wasserstein_adv"}
    files = sorted((ROOT / "wasserstein_adv" / part).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top in allowed | sys.stdlib_module_names, f"{file.name} imports {name}"


def test_imports_run_downward_only():
    top = {"training", "parallel", "defenses", "metrics", "data", "models"}
    above = {
        "geometry": {*top, "projections", "attacks"},
        "projections": {*top, "attacks"},
        "attacks": top,
        "defenses": {"training", "parallel", "data", "models"},
        "metrics": {*top, "attacks", "projections"} - {"metrics"},
        "models": {*top, "attacks", "projections", "geometry"} - {"models"},
        "data": {*top, "attacks", "projections", "geometry"} - {"data"},
    }
    for part, forbidden in above.items():
        for file in (ROOT / "wasserstein_adv" / part).glob("*.py"):
            text = file.read_text("utf-8")
            for name in (*(f"wasserstein_adv.{f}" for f in forbidden), "experiments"):
                assert f"from {name}" not in text
                assert f"import {name}" not in text


@pytest.mark.parametrize(
    "module",
    [wa, wa.attacks, wa.defenses, wa.geometry, wa.metrics, wa.projections],
    ids=lambda m: m.__name__,
)
def test_every_public_name_exists(module):
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {wa.__version__}\n" in citation
    assert f"## [{wa.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_input_error_is_a_value_error():
    assert issubclass(wa.InputError, ValueError)


def test_readme_example_in_small():
    x = jax.random.uniform(jax.random.key(0), (6, 6))
    geometry = wa.local_grid((6, 6), wa.euclidean_power(1), window=3)
    attack = wa.first_order(
        wa.wasserstein_ball(geometry), wa.pgd(wa.sign(0.1)),
        radius=wa.attacks.growing(0.3, 1.1, every=10), steps=4,
    )  # fmt: skip
    weights = jax.random.normal(jax.random.key(1), (36, 10))

    def logits_fn(images):
        return images.reshape(len(images), -1) @ weights

    images = x[None, ..., None]
    labels = jnp.argmax(logits_fn(images), -1)
    run = jit(lambda key, x, y: attack(key, logits_fn, x, y))
    result = run(jax.random.key(0), images, labels)
    assert isinstance(result, wa.AttackResult)
    assert result.success == (jnp.argmax(logits_fn(result.image), -1) != labels)
    assert result.radius in (np.float32(0.3), np.inf)


@pytest.mark.parametrize("name", ["flow", "hu", "unbalanced", "wong"])
def test_an_attack_has_the_settings_of_the_module_that_it_hides(name):
    attack = getattr(wa.attacks, name)
    module = importlib.import_module(f"wasserstein_adv.attacks.{name}")
    presets = [preset for preset in vars(module) if preset.isupper()]
    assert presets
    for preset in presets:
        assert getattr(attack, preset) is getattr(module, preset)


def test_a_preset_is_reached_as_one_would_write_it():
    assert wa.attacks.wong.MNIST_TRAINING.steps == 50
