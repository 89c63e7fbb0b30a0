"""A command's arguments: parsed, refused in one line, and how the command ends."""

import contextlib
import dataclasses
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import tyro

from experiments.harness.environment import program
from experiments.harness.files import cache_root
from wasserstein_adv.errors import InputError

Config = TypeVar("Config")

_BAD_INPUT = 2
_BY_SIGNAL = 128  # and the signal's number, as shells report it


class Choice(NamedTuple):
    """An option whose value brings options of its own: the fields of a NamedTuple of settings.

    A configuration that has one, as `choice`, has a field `settings` that is filled with them.
    """

    option: str
    reads: tuple[str, ...]
    """The options, `option` among them, that say what values the others begin with."""
    settings: Callable[..., Any]
    """Their values by name ↦ the settings; None where there are none, or no such choice."""
    names: Collection[str]
    """What can be chosen."""
    renamed: Mapping[str, str] = {}
    """What options and choices of earlier versions are called now."""


class Terminated(KeyboardInterrupt):
    """A signal that ends a command, which cleans up as after Ctrl-C."""

    def __init__(self, number: int):
        self.number = number


def run_command(
    main: Callable[[Config], None], config_type: type[Config], argv: Sequence[str] | None = None
) -> int:
    """Parse a command's arguments (by default this process's), run it, and say how it ended.

    Returns:
        The exit status: 0; 2 after an `InputError`, whose message went to stderr as one line
        `error: …`; 130 after Ctrl-C and 143 after SIGTERM.

    Raises:
        SystemExit: with status 2 for arguments that cannot be parsed, with 0 after `--help`.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        with _terminable():
            main(parse(config_type, argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT
    except Exception as error:
        if not _is_of_a_full_disk(error):
            raise
        print(
            "error: no space left on the device; the same command goes on from here",
            file=sys.stderr,
        )
        return _BAD_INPUT
    except Terminated as terminated:
        return _interrupted(terminated.number)
    except KeyboardInterrupt:
        return _interrupted(signal.SIGINT)
    return 0


def _is_of_a_full_disk(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk, in whatever others it is wrapped."""
    while error is not None:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


# Parsing ------------------------------------------------------------------------------------------


def parse(config_type: type[Config], argv: Sequence[str]) -> Config:
    """Arguments as a configuration, with the settings of what they choose where it has a `Choice`.

    Raises:
        InputError: an option is not one of what is chosen.
        SystemExit: as `run_command`.
    """
    choice: Choice | None = getattr(config_type, "choice", None)
    if choice is None:
        return tyro.cli(config_type, args=argv, prog=program())
    read = {name: _given(argv, name) or _default(config_type, name) for name in choice.reads}
    chosen = read[choice.option]
    if now := choice.renamed.get(chosen):
        raise InputError(f"{flag(choice.option)} {chosen} is called {now} now")
    settings = choice.settings(**read)
    parsed, others = tyro.cli(
        _with_settings(config_type, chosen, settings),
        args=argv, prog=program(), config=(tyro.conf.OmitArgPrefixes,), return_unknown_args=True,
    )  # fmt: skip
    if others:
        raise InputError(_not_an_option(choice, chosen, others))
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(config_type)}
    return config_type(
        **{**values, "settings": settings and getattr(parsed, chosen.replace("-", "_"))}
    )


def _with_settings(config_type: type, chosen: str, settings: Any) -> type:
    """The dataclass with one more field, of the settings: a group of options of their own."""
    if settings is None:
        return config_type
    own = (chosen.replace("-", "_"), type(settings), dataclasses.field(default=settings))
    extended = dataclasses.make_dataclass(
        config_type.__name__, [own], bases=(config_type,), frozen=True
    )
    extended.__doc__ = config_type.__doc__
    return extended


def _not_an_option(choice: Choice, chosen: str, others: Sequence[str]) -> str:
    given = next((word for word in others if word.startswith("--")), others[0])
    name = given.partition("=")[0].removeprefix("--").replace("-", "_")
    if now := choice.renamed.get(name):
        return f"{flag(name)} is called {flag(now)} now"
    owners = [other for other in choice.names if name in getattr(_of(choice, other), "_fields", ())]
    if not given.startswith("--"):
        return f"{given!r} belongs to no option"
    of = f" (it is one of {', '.join(owners)})" if owners else ""
    return f"{flag(name)} is not an option of {flag(choice.option)} {chosen}{of}"


def _of(choice: Choice, name: str) -> Any:
    return choice.settings(**{**dict.fromkeys(choice.reads), choice.option: name})


def _given(argv: Sequence[str], name: str) -> str | None:
    """The last value that the arguments have for an option."""
    value = None
    for word, following in zip_longest(argv, argv[1:]):
        option, equals, attached = word.partition("=")
        if option.replace("_", "-") == flag(name):
            value = attached if equals else following
    return value


def _default(config_type: type, name: str) -> Any:
    return next(f.default for f in dataclasses.fields(config_type) if f.name == name)


def named(entries: Mapping[str, Any]) -> Any:
    """The type of an option that is one of the names, with what each is `about` in the help."""
    about = " ".join(f"{name}: {entry.about}." for name, entry in entries.items())
    return Annotated[Literal[tuple(entries)], tyro.conf.arg(help=about)]


# Ending -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """While the block runs, SIGTERM raises `Terminated` in it."""

    def end(number: int, frame: Any) -> None:
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupted(number: int) -> int:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    return _BY_SIGNAL + number


# Devices ------------------------------------------------------------------------------------------


def use_all_cores(host_devices: int | None = None) -> None:
    """Give JAX one CPU device per core, or so many, and keep compiled functions between runs.

    $JAX_NUM_CPU_DEVICES and $JAX_COMPILATION_CACHE_DIR, where they are set, stand.

    To be called before JAX is first used: the number of devices is fixed from then on. An
    accelerator, where there is one, is used all the same.
    """
    import jax

    if host_devices is not None or "JAX_NUM_CPU_DEVICES" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        jax.config.update("jax_num_cpu_devices", host_devices or cores)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# Checks -------------------------------------------------------------------------------------------


def flag(option: str) -> str:
    """`--an-option` of an_option."""
    return "--" + option.replace("_", "-")


def check_positive(option: str, value: float) -> None:
    """Raise InputError unless a number is positive and finite in the float32 that computes."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    if not np.finfo(np.float32).tiny <= single < np.inf:
        raise InputError(f"{flag(option)} must be positive and finite, got {value}")


def check_each(option: str, values: Sequence[float]) -> None:
    """Raise InputError unless there are numbers, positive, finite, and different as shown."""
    if not values:
        raise InputError(f"{flag(option)} must name at least one")
    for value in values:
        check_positive(option, value)
    if len({f"{value:g}" for value in values}) < len(values):
        raise InputError(f"{flag(option)} must all be different")


def check_count(option: str, value: int) -> None:
    """Raise InputError unless a number of things is 1 or more, and fits 32 bits."""
    if value < 1:
        raise InputError(f"{flag(option)} must be 1 or more, got {value}")
    if value >= 2**31:
        raise InputError(f"{flag(option)} must be below 2^31, got {value}")


def check_seed(seed: int) -> None:
    """Raise InputError unless a seed is in the range of JAX's."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to 2^32 - 1, got {seed}")


def check_settings(settings: Any, build: Callable[[Any], Any]) -> None:
    """Raise InputError, naming the option, where a NamedTuple of settings is out of range, as told
    by `build`, which takes them and refuses what it cannot take."""
    for name, value in settings._asdict().items():
        if isinstance(value, float) and value > 0:
            check_positive(name, value)
        if isinstance(value, int) and value >= 2**31:
            raise InputError(f"{flag(name)} must be below 2^31, got {value}")
    try:
        build(settings)
    except InputError as error:
        first, _, rest = str(error).partition(" ")
        raise InputError(f"{flag(first)} {rest}" if first in settings._fields else error) from error
