"""Arguments: an attack's own options, their defaults, and what is refused in one line."""

import errno
import os
import re
import signal
from typing import NamedTuple

import pytest

from experiments.attack_cifar10 import AttackCifar10Config
from experiments.attack_mnist import AttackMnistConfig
from experiments.compare import CompareConfig
from experiments.compare import main as compare
from experiments.evaluation.attack import attack
from experiments.harness.arguments import (
    check_each,
    check_positive,
    check_settings,
    flag,
    parse,
    run_command,
)
from experiments.harness.catalogue.attacks import ATTACKS, RENAMED
from experiments.harness.catalogue.defenses import DEFENSES
from experiments.train_mnist import TrainMnistConfig
from wasserstein_adv.attacks.flow import MNIST as FLOW
from wasserstein_adv.attacks.hu import CIFAR10 as HU_CIFAR10
from wasserstein_adv.attacks.hu import MNIST as HU
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT
from wasserstein_adv.attacks.wong import CIFAR10, MNIST, MNIST_SCRIPT
from wasserstein_adv.defenses import LINF_MNIST
from wasserstein_adv.errors import InputError


def settings(*argv: str, config: type = AttackMnistConfig):
    return parse(config, argv).settings


def told(capsys, config: type, *argv: str) -> dict[str, str]:
    """What `--help` says of each option."""
    with pytest.raises(SystemExit) as stopped:
        parse(config, [*argv, "--help"])
    assert stopped.value.code == 0
    words = re.sub(r"[│╭╮╰╯─\s]+", " ", capsys.readouterr().out)
    options = re.split(r" (?=--[a-z-]+(?: [A-Z{]|,))", words)[1:]
    return {option.split(maxsplit=1)[0].strip(","): option for option in options}


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_help_shows_an_attacks_own_options_with_their_defaults(name, capsys):
    shown = told(capsys, AttackMnistConfig, "--attack", name)
    own = ATTACKS[name].presets["paper"]._asdict()
    for option, value in own.items():
        assert f"(default: {value})" in shown[flag(option)]
    others = {field for attack in ATTACKS.values() for field in attack.presets["paper"]._fields}
    assert not {flag(option) for option in others - own.keys()} & shown.keys()
    assert all(
        f"{known}: {attack.about}." in shown["--attack"] for known, attack in ATTACKS.items()
    )


def test_help_of_a_training_shows_its_defences_options(capsys):
    shown = told(capsys, TrainMnistConfig, "--defense", "pgd")
    assert {flag(option) for option in LINF_MNIST._fields} <= shown.keys()
    assert "--reg" not in shown
    assert all(
        f"{known}: {entry.about}." in shown["--defense"] for known, entry in DEFENSES.items()
    )
    assert "--step-size" not in told(capsys, TrainMnistConfig)


def test_values_that_are_not_given_are_the_papers_of_preset_and_dataset():
    assert settings() == MNIST
    assert settings("--preset", "script") == MNIST_SCRIPT
    assert settings("--preset", "script", "--start-radius", "0.5") == MNIST_SCRIPT._replace(
        start_radius=0.5
    )
    assert settings("--attack", "hu") == HU
    assert settings("--attack", "flow", "--growth", "2") == FLOW._replace(growth=2.0)
    unbalanced = ("--attack", "unbalanced")
    assert settings(*unbalanced) == PAPER
    assert settings(*unbalanced, "--preset=transport", "--tau", "0.5") == TRANSPORT._replace(
        tau=0.5
    )
    assert settings(config=AttackCifar10Config) == CIFAR10
    script = settings("--preset", "script", "--steps", "7", config=AttackCifar10Config)
    assert script == CIFAR10._replace(p=2.0, steps=7)
    assert settings("--attack", "hu", config=AttackCifar10Config) == HU_CIFAR10


@pytest.mark.parametrize(
    "argv",
    [
        ["--attack", "flow", "--step-size", "0.5", "--start-radius", "0.25"],
        ["--attack=flow", "--step-size=0.5", "--start-radius=0.25"],
        ["--start_radius", "0.25", "--attack", "flow", "--step_size", "0.5"],
        ["--start_radius=0.25", "--step-size", "0.5", "--attack", "hu", "--attack", "flow"],
    ],
)
def test_options_are_written_as_one_likes(argv):
    config = parse(AttackMnistConfig, [*argv, "--num-images", "7"])
    assert (config.attack, config.num_images) == ("flow", 7)
    assert config.settings == FLOW._replace(step_size=0.5, start_radius=0.25)


def test_a_command_without_a_choice_has_its_options_alone():
    assert parse(CompareConfig, ["--radii", "0.1", "0.2"]).radii == (0.1, 0.2)
    with pytest.raises(SystemExit) as stopped:
        parse(CompareConfig, ["--window", "3"])
    assert stopped.value.code == 2


@pytest.mark.parametrize("argv", [["--attack", "newton"], ["--attack"], ["--steps", "many"]])
def test_what_cannot_be_parsed_ends_the_command(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        settings(*argv)
    assert stopped.value.code == 2
    assert argv[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "argv", "message"),
    [
        (
            AttackMnistConfig,
            "--attack flow --eta 0.1",
            "--eta is not an option of --attack flow (it is one of unbalanced)",
        ),
        (
            AttackMnistConfig,
            "--attack unbalanced --start-radius=1",
            "--start-radius is not an option of --attack unbalanced (it is one of wong, flow)",
        ),
        (
            AttackMnistConfig,
            "--grow_every 3 --increment 0.1",
            "--increment is not an option of --attack wong (it is one of hu)",
        ),
        (
            AttackMnistConfig,
            "--attack flow --strength 3",
            "--strength is not an option of --attack flow",
        ),
        (AttackMnistConfig, "--num-images 3 mnist", "'mnist' belongs to no option"),
        (
            AttackMnistConfig,
            "--preset transport --steps 3",
            "--preset of wong must be paper or script",
        ),
        (
            TrainMnistConfig,
            "--defense pgd --attack-steps 3",
            "--attack-steps is called --steps now",
        ),
        (
            TrainMnistConfig,
            "--defense plain --steps 3",
            "--steps is not an option of --defense plain (it is one of pgd, wong, unbalanced)",
        ),
    ],
)
def test_an_option_of_something_else_is_refused_in_one_line(config, argv, message, capsys):
    def never(parsed):
        raise AssertionError(parsed)

    assert run_command(never, config, argv.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


# Checks -------------------------------------------------------------------------------------------


class Own(NamedTuple):
    """Settings of nothing."""

    step_size: float = 0.1
    steps: int = 3


def build(own: Own) -> None:
    if own.steps < 1:
        raise InputError(f"steps must be 1 or more, got {own.steps}")
    if own.step_size == 7:
        raise InputError("the window is even")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Own(steps=0), "--steps must be 1 or more, got 0"),
        (Own(steps=2**31), "--steps must be below 2^31, got 2147483648"),
        (Own(step_size=1e-300), "--step-size must be positive and finite, got 1e-300"),
        (Own(step_size=float("inf")), "--step-size must be positive and finite, got inf"),
        (Own(step_size=7.0), "the window is even"),
    ],
)
def test_settings_out_of_range_are_named_by_their_option(own, message):
    with pytest.raises(InputError) as refused:
        check_settings(own, build)
    assert str(refused.value) == message


def test_settings_in_range_pass():
    built = []
    check_settings(Own(), built.append)
    assert built == [Own()]


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e-40, 1e39])
def test_numbers_are_positive_and_finite_as_float32(value):
    with pytest.raises(InputError, match="--radii must be positive and finite"):
        check_positive("radii", value)
    with pytest.raises(InputError, match="--radii must be positive and finite"):
        check_each("radii", (0.5, value))
    check_each("radii", (0.5, 1e-30))


@pytest.mark.parametrize(
    ("values", "message"), [((), "must name at least one"), ((0.1, 0.1000000001), "be different")]
)
def test_values_are_there_and_different_as_shown(values, message):
    with pytest.raises(InputError, match=message):
        check_each("radii", values)


# Ending -------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_whatever_it_is_wrapped_in(capsys):
    def main(config):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")
        except OSError as error:
            raise RuntimeError("checkpoint") from error

    assert run_command(main, CompareConfig, []) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: no space left on the device") and told.count("\n") == 1


def test_any_other_failure_shows_where_it_is(capsys):
    def main(config):
        raise RuntimeError("a mistake of ours")

    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_command(main, CompareConfig, [])


@pytest.mark.parametrize("name", RENAMED)
def test_attacks_of_earlier_versions_say_what_they_are_called_now(name, capsys):
    for run, config, option in (
        (attack, AttackMnistConfig, "--attack"),
        (compare, CompareConfig, "--attacks"),
    ):
        assert run_command(run, config, [option, name]) == 2
        told = capsys.readouterr().err
        assert f"called {RENAMED[name]} now" in told and told.count("\n") == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_in_order(number, status, capsys, request):
    # As in a terminal: a shell starts what is in the background deaf to SIGINT.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, outside))
    before, cleaned = signal.getsignal(number), []

    def main(config):
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("still here")
        finally:
            cleaned.append(config)

    assert run_command(main, CompareConfig, []) == status
    assert len(cleaned) == 1
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"
    assert signal.getsignal(number) == before
