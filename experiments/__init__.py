"""Commands that run the attacks and defences: `python -m experiments.NAME`."""

from pathlib import Path

# The unbalanced attack's commands are still found without their folder's name.
__path__.append(str(Path(__file__).parent / "unbalanced"))
