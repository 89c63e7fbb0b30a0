"""`jit` for tests of what a program computes: it compiles in a third of the time, and runs slower.

It leaves out what optimises, and makes XLA write its loops in the older, shorter way where it still
can. Rounding differs by a few units in the last place, as it does from one device to another.
Tests of the commands compile in the usual way.
"""

import functools
import os

import jax

OPTIONS = {"xla_backend_optimization_level": 0}
SHORTER = {**OPTIONS, "xla_cpu_use_fusion_emitters": False}


def _known(options: dict) -> bool:
    """Whether this XLA has the options."""
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except jax.errors.JaxRuntimeError:
        return False
    return True


CHOSEN = SHORTER if _known(SHORTER) else OPTIONS
jit = functools.partial(jax.jit, compiler_options=CHOSEN)
# The same for a process of its own, as the value of XLA_FLAGS.
FLAGS = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        *(f"--{name}={str(value).lower()}" for name, value in CHOSEN.items()),
    ]
)
