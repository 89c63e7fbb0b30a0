"""The catalogue: what its entries need, the papers' settings, and that an entry is all it takes."""

import ast
import dataclasses
import inspect
import textwrap
from typing import NamedTuple

import numpy as np
import pytest
from run_files import arrays_of, disagreeing, results_of

from experiments import compare, robustness_table
from experiments.attack_mnist import AttackMnistConfig
from experiments.evaluation.attack import attack
from experiments.harness.arguments import named, parse, run_command
from experiments.harness.catalogue.attacks import ATTACKS, KEEPS, Attack, attack_settings
from experiments.harness.catalogue.datasets import DATASETS
from experiments.harness.catalogue.defenses import DEFENSES, defense_settings
from wasserstein_adv.attacks import constant, first_order, linf_ball, pgd, sign
from wasserstein_adv.attacks.hu import CIFAR10 as HU_CIFAR10
from wasserstein_adv.attacks.unbalanced import PAPER
from wasserstein_adv.attacks.wong import CIFAR10
from wasserstein_adv.data import NAMES, describe
from wasserstein_adv.defenses import LINF_CIFAR10, LINF_MNIST, Defense
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Ground
from wasserstein_adv.models import MODELS

EVERY = [
    (name, preset, colour)
    for name, entry in ATTACKS.items()
    for preset in entry.presets
    for colour in (False, True)
]


@pytest.mark.parametrize(("name", "preset", "colour"), EVERY)
def test_every_attack_is_built_for_every_size(name, preset, colour):
    entry, size = ATTACKS[name], (32, 32) if colour else (28, 28)
    settings = entry.settings(preset, colour=colour)
    assert type(settings) is type(entry.presets["paper"])
    built = entry.build(size, settings, keep=KEEPS[entry.keep](), random_start=True, restarts=2)
    assert built.restarts == 2
    assert isinstance(entry.ground(settings, size), Ground)
    radii = entry.radii_of(settings)
    assert (len(radii) > 0) == (entry.largest is not None)
    assert all(0 < radius < np.inf for radius in radii) and list(radii) == sorted(radii)
    assert entry.largest is None or 0 < entry.largest(settings) < np.inf
    assert set(entry.varied) <= {"radius", "step_size", "variant"} & set(settings._fields)


def test_the_largest_radius_is_that_of_the_last_step():
    wong = ATTACKS["wong"]
    settings = wong.presets["paper"]._replace(start_radius=0.5, growth=2.0, grow_every=3)
    # Radii 0.5, 0.5, 0.5, 1, 1, 1, 2.
    assert wong.largest(settings._replace(steps=7)) == 2.0
    assert wong.largest(settings._replace(steps=6)) == 1.0
    assert wong.largest(CIFAR10) == pytest.approx(0.456, abs=1e-3)
    assert wong.largest(settings._replace(steps=10**6)) == np.inf
    capped = ATTACKS["hu"]
    assert capped.largest(capped.presets["paper"]._replace(increment=0.25, steps=6)) == 1.5
    flow = ATTACKS["flow"]
    settings = flow.presets["paper"]._replace(start_radius=0.5, growth=2.0, steps=4)
    assert flow.largest(settings) == 4.0


def test_what_is_not_known_has_no_settings():
    assert attack_settings("newton") is defense_settings("newton") is None
    assert attack_settings("hu", None, "imagenet") == ATTACKS["hu"].presets["paper"]
    with pytest.raises(InputError, match="--preset of hu must be paper"):
        attack_settings("hu", "script")


def types_of_settings():
    of_attacks = (type(entry.presets["paper"]) for entry in ATTACKS.values())
    of_defenses = (type(entry.settings("mnist")) for entry in DEFENSES.values())
    return sorted({*of_attacks, *of_defenses} - {type(None)}, key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", types_of_settings())
def test_every_option_has_its_help(kind):
    """The docstring below each field, which `--help` shows."""
    (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(kind))).body)
    documented = {
        node.target.id
        for node, below in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and below.value.value.strip()
    }
    assert documented == set(kind._fields)


# The papers' settings -----------------------------------------------------------------------------


def test_papers_settings_for_colour_images():
    """From ε = 0.001, ×1.17 every ten of 400 steps, λ = 3000, 5×5, p = 1; Hu's step over three."""
    wong = attack_settings("wong", "paper", "cifar10")
    assert wong == CIFAR10
    assert (wong.start_radius, wong.growth, wong.grow_every, wong.steps) == (0.001, 1.17, 10, 400)
    assert (wong.reg, wong.window, wong.p, wong.step_size) == (3000.0, 5, 1.0, 0.1)
    assert attack_settings("wong", "script", "svhn") == CIFAR10._replace(p=2.0)
    capped = attack_settings("hu", data="tiny_imagenet")
    assert capped == HU_CIFAR10
    assert capped.step_size == pytest.approx(0.06 / 3)
    for entry in ATTACKS.values():
        assert set(entry.colour) <= set(entry.presets)


def test_wongs_recipes():
    """Appendix B: SGD, momentum 0.9, weight decay 0.0005, batches of 128, 0.1 and later 0.01."""
    for data, start, growth, reg in (("mnist", 0.1, 1.4, 1000.0), ("cifar10", 0.01, 1.5, 3000.0)):
        recipe, settings = DEFENSES["wong"].recipe(data), defense_settings("wong", data)
        assert (recipe.optimizer, recipe.schedule) == ("sgd", "drop")
        assert (recipe.learning_rate, recipe.batch_size) == (0.1, 128)
        found = (settings.start_radius, settings.growth, settings.grow_every)
        assert found == (start, growth, 5)
        assert (settings.steps, settings.step_size) == (50, 0.1)
        assert (settings.reg, settings.window, settings.p) == (reg, 5, 1.0)


@pytest.mark.parametrize(
    ("data", "optimizer", "rate", "epochs", "steps"),
    [
        ("mnist", "sgd", 0.01, 40, 20),
        ("fashion_mnist", "sgd", 3e-4, 60, 20),
        ("tiny_imagenet", "adam", 1e-4, 50, 2),
    ],
)
def test_unbalanced_recipes(data, optimizer, rate, epochs, steps):
    """Section V.A."""
    recipe = DEFENSES["unbalanced"].recipe(data)
    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs) == (optimizer, rate, epochs)
    assert defense_settings("unbalanced", data) == PAPER._replace(steps=steps)


def test_linf_recipes_and_those_without_a_defence():
    assert defense_settings("pgd", "mnist") == LINF_MNIST
    assert defense_settings("pgd", "cifar10") == LINF_CIFAR10
    assert LINF_CIFAR10.radius == pytest.approx(8 / 255)
    for data in ("mnist", "cifar10", "tiny_imagenet"):
        assert defense_settings("plain", data) is None
        assert DEFENSES["plain"].recipe(data).flip == (data != "mnist")


def test_every_defence_is_built_for_every_dataset():
    for data in DATASETS:
        size = describe(data).image_shape[:2]
        for entry in DEFENSES.values():
            assert isinstance(entry.build(size, entry.settings(data)), Defense)
            assert entry.recipe(data).epochs > 0


def test_every_dataset_has_a_network():
    assert {"auto", *DATASETS} == set(NAMES)
    assert {entry.model for entry in DATASETS.values()} <= set(MODELS)


# A new entry --------------------------------------------------------------------------------------


class SignSteps(NamedTuple):
    """Settings of sign steps."""

    epsilon: float = 0.3
    """Largest change of a pixel."""
    steps: int = 3
    """Gradient steps."""
    stride: float = 0.1
    """Length of a step."""


def sign_steps(grid_size, settings: SignSteps = SignSteps(), **options):  # noqa: B008
    del grid_size
    if not settings.epsilon > 0:
        raise InputError(f"epsilon must be positive, got {settings.epsilon}")
    return first_order(
        linf_ball(), pgd(sign(settings.stride)), radius=constant(settings.epsilon),
        steps=settings.steps, **options,
    )  # fmt: skip


@pytest.fixture
def added(monkeypatch):
    """A new attack in the catalogue, which `compare` runs at two lengths; the attack command's
    options as they are where the entry is there when they are defined."""
    entry = Attack(
        title="sign steps",
        about="signed steps in an ℓ∞ ball",
        build=sign_steps,
        presets={"paper": SignSteps(), "long": SignSteps(stride=0.2)},
    )
    monkeypatch.setitem(ATTACKS, "sign-steps", entry)
    name = ("attack", named(ATTACKS), dataclasses.field(default="wong"))
    return dataclasses.make_dataclass(
        "Config", [name], bases=(AttackMnistConfig,), frozen=True, namespace={"__doc__": "Attack."}
    )


def test_a_new_attack_has_its_options(added, capsys):
    config = parse(added, ["--attack", "sign-steps", "--preset", "long", "--epsilon", "0.5"])
    assert config.settings == SignSteps(0.5, 3, 0.2)
    with pytest.raises(SystemExit):
        parse(added, ["--attack", "sign-steps", "--help"])
    shown = capsys.readouterr().out
    assert "--stride FLOAT" in shown and "Largest change of a pixel. (default: 0.3)" in shown
    assert "signed steps in an ℓ∞ ball" in " ".join(shown.split())
    argv = ["--attack", "sign-steps", "--data", "mnist-5k", "--epsilon"]
    assert run_command(attack, added, [*argv, "-1"]) == 2
    assert capsys.readouterr().err == "error: --epsilon must be positive, got -1.0\n"


def test_a_new_attack_is_run_by_every_command(added, weights, check, tmp_path):
    basic = ["--data", "mnist-5k", "--num-images", "6"]
    one = [*basic, "--checkpoint", str(weights)]
    commands = {
        "attack": (attack, added, [*one, "--attack", "sign-steps", "--epsilon", "0.25"]),
        "compare": (compare.main, compare.CompareConfig, [*one, "--attacks", "sign-steps"]),
        "table": (
            robustness_table.main,
            robustness_table.RobustnessTableConfig,
            [*basic, "--checkpoints", f"one={weights}", "--attacks", "sign-steps"],
        ),
    }
    images = {}
    for name, (main, config, argv) in commands.items():
        out = tmp_path / name
        assert run_command(main, config, [*argv, "--out", str(out)]) == 0
        status, printed = check(out)
        assert (status, disagreeing(printed.out)) == (0, set())
        file = "one-sign-steps" if name == "table" else "sign-steps"
        images[name] = arrays_of(out, file)
        assert "sign-steps" in (out / "table.md").read_text("utf-8") or name == "attack"
        assert len(list(out.glob("*.png"))) == (2 if name == "attack" else 1)
    clean = arrays_of(tmp_path / "attack", "clean")["image"]
    moved = np.abs(images["attack"]["image"] - clean).max((1, 2, 3))
    assert 0.05 < moved.max() <= 0.25 + 1e-6
    np.testing.assert_array_equal(images["compare"]["image"], images["table"]["image"])
    results = results_of(tmp_path / "attack")
    assert results["settings"]["epsilon"] == 0.25
    assert results["attack_accuracy"] == 1 - images["attack"]["success"].mean()
    assert "transport" in results and "plan_cost" not in results["transport"]
