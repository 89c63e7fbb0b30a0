"""Where a run's figures come from: which of its arrays, and by which function.

A figure is not computed and then described: it is described, and worked out from the description.
Descriptions can be written beside the results, as JSON, and so all can be worked out again from the
arrays alone, by somebody who does not know what made them. Everything here computes with NumPy.
"""

from wasserstein_adv.evidence import figures, truths
from wasserstein_adv.evidence.checking import Checked, check
from wasserstein_adv.evidence.claims import Claim
from wasserstein_adv.evidence.described import (
    Distance,
    Figure,
    Ground,
    Part,
    figure,
    from_json,
    to_json,
)
from wasserstein_adv.evidence.working_out import (
    Files,
    distances,
    entry_of,
    holds,
    lookup,
    mass_change,
    measure,
    results_of,
    work_out,
)

__all__ = [
    "Checked",
    "Claim",
    "Distance",
    "Figure",
    "Files",
    "Ground",
    "Part",
    "check",
    "distances",
    "entry_of",
    "figure",
    "figures",
    "from_json",
    "holds",
    "lookup",
    "mass_change",
    "measure",
    "results_of",
    "to_json",
    "truths",
    "work_out",
]
