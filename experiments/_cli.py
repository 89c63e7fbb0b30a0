"""What the commands have in common."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from wasserstein_adv.errors import InputError

Config = TypeVar("Config")

_BAD_INPUT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def run_command(
    main: Callable[[Config], None], config_type: type[Config], argv: Sequence[str] | None = None
) -> int:
    """Parse a command's arguments, run it, and say how it ended.

    Args:
        main: the command.
        config_type: dataclass of its options; its docstrings are the command's `--help`.
        argv: the arguments without the program's name; None means those of this process.

    Returns:
        The exit status: 0; 2 after an `InputError`, whose message went to stderr as one line
        `error: …`; 130 after Ctrl-C.

    Raises:
        SystemExit: with status 2 for arguments that cannot be parsed, with 0 after `--help`.
    """
    config = tyro.cli(config_type, args=argv)
    try:
        main(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0
