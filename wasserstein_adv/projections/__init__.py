"""The nearest point of a set, one file per method."""

from wasserstein_adv.projections.projected_sinkhorn import (
    Duals,
    Projection,
    alpha_step,
    beta_step,
    block_ascent,
    dual_objective,
    projected_sinkhorn,
    psi_step,
)
from wasserstein_adv.projections.unbalanced_sinkhorn import (
    Rule,
    UnbalancedDuals,
    UnbalancedProjection,
    euclidean,
    exact,
    kkt_residual,
    kl_alpha_step,
    kl_beta_step,
    published,
    unbalanced_sinkhorn,
)
from wasserstein_adv.projections.wright_omega import log_wright_omega, wright_omega

__all__ = [
    "Duals",
    "Projection",
    "Rule",
    "UnbalancedDuals",
    "UnbalancedProjection",
    "alpha_step",
    "beta_step",
    "block_ascent",
    "dual_objective",
    "euclidean",
    "exact",
    "kkt_residual",
    "kl_alpha_step",
    "kl_beta_step",
    "log_wright_omega",
    "projected_sinkhorn",
    "psi_step",
    "published",
    "unbalanced_sinkhorn",
    "wright_omega",
]
