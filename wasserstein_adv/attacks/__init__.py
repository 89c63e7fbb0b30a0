"""Attacks: an objective, a feasible set and a method, composed.

An attack hides the module that it has its name from, so the module's settings stand at the attack
too: `attacks.wong.MNIST_TRAINING`.
"""

import sys

from wasserstein_adv.attacks import schedules
from wasserstein_adv.attacks.first_order import (
    AttackResult,
    AttackState,
    FirstOrderAttack,
    FirstOrderOptions,
    LogitsFn,
    first_order,
)
from wasserstein_adv.attacks.flow import FlowEvidence, FlowProtocol, flow, flow_ball
from wasserstein_adv.attacks.hu import HuProtocol, hu
from wasserstein_adv.attacks.keep import (
    Candidate,
    Keep,
    closest,
    first_success,
    highest_objective,
    last,
)
from wasserstein_adv.attacks.methods import (
    Method,
    Moves,
    frank_wolfe,
    l2_unit,
    linf_unit,
    pgd,
    sign,
)
from wasserstein_adv.attacks.objectives import Objective, cross_entropy, margin, targeted
from wasserstein_adv.attacks.schedules import constant, growing, linear
from wasserstein_adv.attacks.sets import (
    BallEvidence,
    FeasibleSet,
    capped_ball,
    linf_ball,
    wasserstein_ball,
)
from wasserstein_adv.attacks.unbalanced import (
    UnbalancedEvidence,
    UnbalancedProtocol,
    unbalanced,
    unbalanced_neighbourhood,
)
from wasserstein_adv.attacks.wong import WongProtocol, wong
from wasserstein_adv.attacks.wu import (
    CouplingEvidence,
    FrankWolfeProtocol,
    ProjectionProtocol,
    couplings,
    wu_frank_wolfe,
    wu_projection,
)

for _attack in (flow, hu, unbalanced, wong):
    _module = vars(sys.modules[_attack.__module__])
    vars(_attack).update({name: value for name, value in _module.items() if name.isupper()})

__all__ = [
    "AttackResult",
    "AttackState",
    "BallEvidence",
    "Candidate",
    "CouplingEvidence",
    "FeasibleSet",
    "FirstOrderAttack",
    "FirstOrderOptions",
    "FlowEvidence",
    "FlowProtocol",
    "FrankWolfeProtocol",
    "HuProtocol",
    "Keep",
    "LogitsFn",
    "Method",
    "Moves",
    "Objective",
    "ProjectionProtocol",
    "UnbalancedEvidence",
    "UnbalancedProtocol",
    "WongProtocol",
    "capped_ball",
    "closest",
    "constant",
    "couplings",
    "cross_entropy",
    "first_order",
    "first_success",
    "flow",
    "flow_ball",
    "frank_wolfe",
    "growing",
    "highest_objective",
    "hu",
    "l2_unit",
    "last",
    "linear",
    "linf_ball",
    "linf_unit",
    "margin",
    "pgd",
    "schedules",
    "sign",
    "targeted",
    "unbalanced",
    "unbalanced_neighbourhood",
    "wasserstein_ball",
    "wong",
    "wu_frank_wolfe",
    "wu_projection",
]
