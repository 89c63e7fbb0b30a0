"""Attacks: an objective, a feasible set and a method, composed.

An attack hides the module that it has its name from, so the module's settings stand at the attack
too: `attacks.wong.MNIST_TRAINING`.
"""

import sys

from wasserstein_adv.attacks import objectives, schedules, standard
from wasserstein_adv.attacks.apgd import apgd
from wasserstein_adv.attacks.carlini_wagner import CarliniWagnerProtocol, carlini_wagner
from wasserstein_adv.attacks.deepfool import DeepFoolProtocol, deepfool
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
    l1_unit,
    l2_unit,
    linf_unit,
    pgd,
    sign,
)
from wasserstein_adv.attacks.objectives import (
    Objective,
    cross_entropy,
    dlr,
    dlr_targeted,
    kl_divergence,
    margin,
    targeted,
)
from wasserstein_adv.attacks.schedules import constant, growing, linear
from wasserstein_adv.attacks.sets import (
    BallEvidence,
    FeasibleSet,
    capped_ball,
    l2_ball,
    linf_ball,
    wasserstein_ball,
)
from wasserstein_adv.attacks.transforms import (
    Transform,
    input_diversity,
    rotation_and_shift,
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

for _attack in (carlini_wagner, deepfool, flow, hu, unbalanced, wong):
    _module = vars(sys.modules[_attack.__module__])
    vars(_attack).update({name: value for name, value in _module.items() if name.isupper()})

__all__ = [
    "AttackResult",
    "AttackState",
    "BallEvidence",
    "Candidate",
    "CarliniWagnerProtocol",
    "CouplingEvidence",
    "DeepFoolProtocol",
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
    "Transform",
    "UnbalancedEvidence",
    "UnbalancedProtocol",
    "WongProtocol",
    "apgd",
    "capped_ball",
    "carlini_wagner",
    "closest",
    "constant",
    "couplings",
    "cross_entropy",
    "deepfool",
    "dlr",
    "dlr_targeted",
    "first_order",
    "first_success",
    "flow",
    "flow_ball",
    "frank_wolfe",
    "growing",
    "highest_objective",
    "hu",
    "input_diversity",
    "kl_divergence",
    "l1_unit",
    "l2_ball",
    "l2_unit",
    "last",
    "linear",
    "linf_ball",
    "linf_unit",
    "margin",
    "objectives",
    "pgd",
    "rotation_and_shift",
    "schedules",
    "sign",
    "standard",
    "targeted",
    "unbalanced",
    "unbalanced_neighbourhood",
    "wasserstein_ball",
    "wong",
    "wu_frank_wolfe",
    "wu_projection",
]
