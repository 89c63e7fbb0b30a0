"""Wasserstein adversarial attacks and defences in JAX.

    import wasserstein_adv as wa

Geometries say where mass may move and at what cost, projections find the nearest point of a ball,
attacks maximise an objective over it, defences train against attacks. Everything is a pure function
of arrays; nothing here reads files or prints, and importing it changes nothing.
"""

from wasserstein_adv import (
    attacks,
    defenses,
    evidence,
    geometry,
    metrics,
    parallel,
    projections,
    training,
)
from wasserstein_adv.attacks import (
    AttackResult,
    capped_ball,
    couplings,
    first_order,
    flow,
    flow_ball,
    frank_wolfe,
    hu,
    linf_unit,
    pgd,
    sign,
    unbalanced,
    unbalanced_neighbourhood,
    wasserstein_ball,
    wong,
    wu_frank_wolfe,
    wu_projection,
)
from wasserstein_adv.checks import check_images
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import (
    dense_grid,
    euclidean_power,
    local_grid,
    minkowski,
    separable_grid,
)
from wasserstein_adv.projections import (
    Duals,
    Projection,
    UnbalancedProjection,
    dual_projection,
    flow_projection,
    linear_oracle,
    projected_sinkhorn,
    support_function,
    unbalanced_sinkhorn,
)

__version__ = "0.1.0"

__all__ = [
    "AttackResult",
    "Duals",
    "InputError",
    "Projection",
    "UnbalancedProjection",
    "__version__",
    "attacks",
    "capped_ball",
    "check_images",
    "couplings",
    "defenses",
    "dense_grid",
    "dual_projection",
    "euclidean_power",
    "evidence",
    "first_order",
    "flow",
    "flow_ball",
    "flow_projection",
    "frank_wolfe",
    "geometry",
    "hu",
    "linear_oracle",
    "linf_unit",
    "local_grid",
    "metrics",
    "minkowski",
    "parallel",
    "pgd",
    "projected_sinkhorn",
    "projections",
    "separable_grid",
    "sign",
    "support_function",
    "training",
    "unbalanced",
    "unbalanced_neighbourhood",
    "unbalanced_sinkhorn",
    "wasserstein_ball",
    "wong",
    "wu_frank_wolfe",
    "wu_projection",
]
