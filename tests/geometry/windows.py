"""Windows that tests of several files take."""

import numpy as np


def skewed(side, seed):
    """A window without symmetry and with forbidden moves."""
    rng = np.random.default_rng(seed)
    window = 3 * rng.random((side, side))
    window[rng.random((side, side)) < 0.3] = np.inf
    window[side // 2, side // 2] = 0.0
    return window
