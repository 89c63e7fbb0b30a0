"""The nearest point of a set, one file per method."""

from wasserstein_adv.projections.dual_projection import (
    CouplingDuals,
    CouplingProjection,
    column_sums,
    coupling_cost,
    diagonal_plan,
    dual_projection,
)
from wasserstein_adv.projections.flow_projection import (
    FlowProjection,
    FlowState,
    flow_projection,
)
from wasserstein_adv.projections.grid_flow import descent, divergence
from wasserstein_adv.projections.kernel import alpha_step
from wasserstein_adv.projections.linear_oracle import (
    LinearMaximum,
    linear_oracle,
    support_function,
)
from wasserstein_adv.projections.projected_sinkhorn import (
    Duals,
    Projection,
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
    "CouplingDuals",
    "CouplingProjection",
    "Duals",
    "FlowProjection",
    "FlowState",
    "LinearMaximum",
    "Projection",
    "Rule",
    "UnbalancedDuals",
    "UnbalancedProjection",
    "alpha_step",
    "beta_step",
    "block_ascent",
    "column_sums",
    "coupling_cost",
    "descent",
    "diagonal_plan",
    "divergence",
    "dual_objective",
    "dual_projection",
    "euclidean",
    "exact",
    "flow_projection",
    "kkt_residual",
    "kl_alpha_step",
    "kl_beta_step",
    "linear_oracle",
    "log_wright_omega",
    "projected_sinkhorn",
    "psi_step",
    "published",
    "support_function",
    "unbalanced_sinkhorn",
    "wright_omega",
]
