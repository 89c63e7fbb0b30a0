"""How `unbalanced_sinkhorn` updates its potentials and z: exact, Euclidean, or as published.

The problem and its equations (a), (b) and (c) are stated there; other numbers are the paper's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wasserstein_adv.checks import check_positive
from wasserstein_adv.geometry.log_kernel import LogKernel
from wasserstein_adv.projections.block_ascent import beta_step


class UnbalancedDuals(NamedTuple):
    """Potentials of the plan, in units of cost."""

    alpha: Float[Array, "h w *c"]
    """Potential of the clean image; by `exact`, −∞ where it has no mass."""
    beta: Float[Array, "h w *c"]
    """Potential of the projected image; by `exact`, 0 where no mass can arrive."""


class UnbalancedProblem(NamedTuple):
    """The problem as a rule works on it: pixels first, then the axes of every vmap.

    Where images are the last axis, all that is computed runs over contiguous memory; where vmap
    would put it, kernel applications cost a transposition each, and the rest four times the time.
    """

    x: Float[Array, "n *b"]
    log_x: Float[Array, "n *b"]
    w: Float[Array, "n *b"]
    eta: Float[Array, "*b"]
    tau: Float[Array, "*b"]
    gamma: Float[Array, "*b"]


class UnbalancedPlan(NamedTuple):
    """An answer: Π_ij = exp((α_i + β_j − C_ij)/η − shift), and z. Potentials divided by η."""

    alpha: Float[Array, "n *b"]
    beta: Float[Array, "n *b"]
    z: Float[Array, "n *b"]
    arrived: Float[Array, "n *b"]
    """Πᵀ1."""
    shift: float


PixelKernel = Callable[[Array, int], LogKernel]
"""(h, axis) ↦ the `LogKernel` of h − C/η, in the layout of `UnbalancedProblem`."""


class Rule(NamedTuple):
    """How the potentials and z are updated."""

    start: Callable[[UnbalancedProblem, UnbalancedDuals | None], Any]
    """The state before the first iteration."""
    step: Callable[[PixelKernel, UnbalancedProblem, Any], tuple[Any, Array]]
    """The next state, and a residual by which to stop."""
    finish: Callable[[PixelKernel, UnbalancedProblem, Any], UnbalancedPlan]
    """The answer that a state stands for."""
    residual: Callable[[PixelKernel, UnbalancedProblem, UnbalancedPlan, Array, Array], Array]
    """Its residual, given ln Σ_j exp((β_j − C_ij)/η) and what the last step said."""


class Marginals(NamedTuple):
    """The closed-form updates that a penalty on the marginals leads to."""

    start: Callable[[UnbalancedProblem], Array]
    """A first α/η."""
    alpha: Callable[[UnbalancedProblem, Array], Array]
    """ln Σ_j exp(β_j/η − C_ij/η) ↦ α/η."""
    row_sums: Callable[[UnbalancedProblem, Array], Array]
    """α/η ↦ what Π1 is at the optimum."""
    beta: Callable[[UnbalancedProblem, Array], tuple[Array, Array]]
    """ln q ↦ (β/η, z)."""
    contraction: Callable[[UnbalancedProblem], Array]
    """A bound on how much of an error in α an α step and a β step leave, below 1."""


def kl_alpha_step(
    log_x: Float[Array, "..."],
    row_lse: Float[Array, "..."],
    eta: Float[Array, ""],
    tau: Float[Array, ""],
) -> Float[Array, "..."]:
    """α/η by (a), equation (11) with the entropy's "−1". −∞ where x = 0.

    Args:
      log_x: ln x, −∞ allowed.
      row_lse: ln Σ_j exp((β_j − C_ij)/η), finite.
      eta, tau: η, τ.
    """
    return tau / (eta + tau) * (log_x - row_lse + 1.0)


def kl_beta_step(
    w: Float[Array, "..."],
    log_q: Float[Array, "..."],
    eta: Float[Array, ""],
    tau: Float[Array, ""],
    gamma: Float[Array, ""],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """β/η and z, the solution of (b) and (c) together for every pixel.

    With s = η/(η + τ), r = τ/γ, W = w/r and L = ln q − ln r, the unknown y = ln(z/r) solves
    e^y = W − 1 + exp(s(L − y)), whose sides rise and fall; and −β/τ = s(L − y). Where W < 1 it is
    taken as y + ln(1 − W + e^y)/s = L, else as y = ln(W − 1 + exp(s(L − y))): from a start within a
    factor of two of z, Halley's iteration reaches 4e-8 in two steps and 2e-12 in three, over the
    ranges that the tests sweep. z is positive wherever mass can arrive, and relatively exact
    however small. Where none can (q = 0), z = max(w − r, 0) and β is put at 0.

    Args:
      w: the stepped image.
      log_q: ln Σ_i exp((α_i − C_ij)/η − 1), −∞ allowed.
      eta, tau, gamma: η, τ, γ.

    Returns:
      (β/η, z).
    """
    reach = ~(log_q == -jnp.inf)  # so that NaN stays NaN
    s, r = eta / (eta + tau), tau / gamma
    excess = w / r - 1.0  # W − 1
    level = jnp.where(reach, log_q, 0.0) - jnp.log(r)
    low = excess < 0.0
    # The constant term, and where it is the whole of the sum: exactly W = 1.
    constant = jnp.abs(excess)
    constant = jnp.where(constant == 0.0, 1.0, constant)
    bare = excess == 0.0
    log_constant = jnp.log(constant)

    def log_sum(term: Array) -> Array:
        # W near 0 is most of an image: there the sum is near 1, and its logarithm small.
        return jnp.where(excess < -0.5, jnp.log1p(term - w / r), jnp.log(constant + term))

    # Without the constant term y = sL/(1 + s); where it rules, W > 1 gives ln(W − 1) and W < 1 a
    # Wright omega function, of which a start needs a rough value only.
    linear = s / (1.0 + s) * level
    t = level - log_sum(jnp.zeros_like(level)) / s - jnp.log(s) - log_constant
    e, high_t = jnp.exp(jnp.minimum(t, 1.0)), jnp.maximum(t, 1.0)
    log_omega = jnp.where(
        t < 1.0,
        t + jnp.log((1.0 + 4.0 / 3.0 * e) / (1.0 + e * (7.0 / 3.0 + 5.0 / 6.0 * e))),
        jnp.log(high_t - jnp.log(high_t) * (high_t / (1.0 + high_t))),
    )
    ruled = log_omega + jnp.log(s) + log_constant
    start_low = jnp.where(ruled < log_constant, ruled, linear)
    start_high = jnp.where(bare, linear, jnp.maximum(log_constant, linear))
    y = jnp.where(low, start_low, start_high)

    slope, bend = jnp.where(low, 1.0 / s, s), jnp.where(low, 1.0, -s)
    for _ in range(2 if w.dtype == jnp.float32 else 3):
        exponent = jnp.where(low, y, s * (level - y))
        term = jnp.exp(exponent)
        log_total = jnp.where(bare, exponent, log_sum(term))
        share = jnp.where(bare, 1.0, term / (constant + term))
        value = jnp.where(low, y - level + log_total / s, y - log_total)
        first = 1.0 + slope * share
        second = slope * bend * share * (1.0 - share)
        newton = value / first
        y = y - newton / (1.0 - 0.5 * newton * second / first)

    z = r * jnp.exp(y)
    beta = -(tau / eta) * jnp.where(low, log_sum(jnp.exp(y)), s * (level - y))
    return jnp.where(reach, beta, 0.0), jnp.where(reach, z, r * jnp.maximum(excess, 0.0))


def _kl_start(problem: UnbalancedProblem) -> Array:
    """α/η where every pixel keeps its mass and meets w as well as it can: right if nothing moves.

    With Π diagonal, (a) and (b) are linear in α, β, ln x and ln z, and with α eliminated (c) is the
    equation of `kl_beta_step` again, with η + τ in place of η.
    """
    _, log_x, w, eta, tau, gamma = problem
    kappa = tau / (eta + tau)
    has_mass = ~(log_x == -jnp.inf)
    log_mass = jnp.where(has_mass, log_x, 0.0)
    scaled, _ = kl_beta_step(w, kappa * log_mass - (1.0 - kappa), eta + tau, tau, gamma)
    beta = scaled * ((eta + tau) / eta)
    return jnp.where(has_mass, kl_alpha_step(log_mass, beta, eta, tau), -jnp.inf)


def _kl_row_sums(problem: UnbalancedProblem, alpha: Array) -> Array:
    _, log_x, _, eta, tau, _ = problem
    has_mass = ~(log_x == -jnp.inf)
    finite = jnp.where(has_mass, log_x - jnp.where(has_mass, alpha, 0.0) * (eta / tau), -jnp.inf)
    return jnp.exp(finite)


kl = Marginals(
    start=_kl_start,
    alpha=lambda p, lse: kl_alpha_step(p.log_x, lse, p.eta, p.tau),
    row_sums=_kl_row_sums,
    beta=lambda p, log_q: kl_beta_step(p.w, log_q, p.eta, p.tau, p.gamma),
    contraction=lambda p: (p.tau / (p.eta + p.tau)) ** 2,
)
"""Generalised Kullback-Leibler divergences, section III."""


def _square_alpha(problem: UnbalancedProblem, row_lse: Array) -> Array:
    # Stationary where α = 2τ(x − Π1): the equation of `beta_step`, with x in the place of w.
    alpha, _ = beta_step(problem.x, row_lse - 1.0, 2.0 * problem.tau / problem.eta)
    return alpha


def _square_beta(problem: UnbalancedProblem, log_q: Array) -> tuple[Array, Array]:
    # z = (2τΠᵀ1 + γw)/(2τ + γ) eliminated leaves β = κ(w − Πᵀ1), κ = 2τγ/(2τ + γ).
    _, _, w, eta, tau, gamma = problem
    both = 2.0 * tau + gamma
    beta, arrived = beta_step(w, log_q, 2.0 * tau * gamma / both / eta)
    return beta, (2.0 * tau * arrived + gamma * w) / both


def _square_contraction(problem: UnbalancedProblem) -> Array:
    # A step changes α by ω/(1 + ω) of an error, ω = (2τ/η)·(Π1)_i.
    omega = 2.0 * problem.tau / problem.eta * jnp.max(jnp.maximum(problem.x, problem.w), axis=0)
    return (omega / (1.0 + omega)) ** 2


squares = Marginals(
    start=lambda p: _square_alpha(p, jnp.zeros_like(p.x)),
    alpha=_square_alpha,
    row_sums=lambda p, alpha: p.x - alpha * (p.eta / (2.0 * p.tau)),
    beta=_square_beta,
    contraction=_square_contraction,
)
"""τ‖Π1 − x‖² and τ‖Πᵀ1 − z‖² in place of the divergences, section IV; z may be negative."""


class _Ascent(NamedTuple):
    alpha: Array
    """What the last iteration started from,"""
    residual: Array
    """its residual,"""
    plain: Array
    """the α step that came of it,"""
    ahead: Array
    """extrapolated: where the next iteration starts."""


def accelerated_ascent(marginals: Marginals) -> Rule:
    """Ascent of the dual by blocks, α and then (β, z): two kernel applications an iteration.

    One turn leaves at most a share ρ = `contraction` of an error, and near an optimum that share is
    between 0 and ρ in every direction. With Nesterov's momentum (1 − √(1−ρ))/(1 + √(1−ρ)) it takes
    in the order of 1/√(1−ρ) turns, where plain ascent takes 1/(1−ρ). The momentum pauses for a turn
    when the residual has grown.

    The residual is Σ_i |(Π1)_i − what (a) makes of α_i| / max(Σx, ΣΠ), known from the next α's own
    kernel application. (b) and (c) hold exactly.
    """

    def start(problem: UnbalancedProblem, duals: UnbalancedDuals | None) -> _Ascent:
        first = marginals.start(problem)
        if duals is not None:
            given = duals.alpha / problem.eta
            # Those of another image may be −∞ where this one has mass.
            first = jnp.where(jnp.isfinite(given), given, first)
        return _Ascent(first, jnp.full_like(problem.eta, jnp.inf), first, first)

    def step(
        kernel: PixelKernel, problem: UnbalancedProblem, state: _Ascent
    ) -> tuple[_Ascent, Array]:
        alpha = state.ahead
        beta, _ = marginals.beta(problem, kernel(alpha - 1.0, 0).lse)
        lse = kernel(beta, 1).lse
        left = jnp.exp(alpha + lse - 1.0)
        misfit = jnp.abs(left - marginals.row_sums(problem, alpha))
        residual = relative_misfit(misfit, problem.x, left)
        plain = marginals.alpha(problem, lse)
        root = jnp.sqrt(1.0 - marginals.contraction(problem))
        momentum = jnp.where(residual < state.residual, (1.0 - root) / (1.0 + root), 0.0)
        finite = jnp.isfinite(plain)
        change = jnp.where(finite, plain, 0.0) - jnp.where(finite, state.plain, 0.0)
        return _Ascent(alpha, residual, plain, plain + momentum * change), residual

    def finish(kernel: PixelKernel, problem: UnbalancedProblem, state: _Ascent) -> UnbalancedPlan:
        log_q = kernel(state.alpha - 1.0, 0).lse
        beta, z = marginals.beta(problem, log_q)
        return UnbalancedPlan(state.alpha, beta, z, jnp.exp(beta + log_q), 1.0)

    return Rule(start, step, finish, lambda kernel, problem, plan, row_lse, last: last)


exact = accelerated_ascent(kl)
"""Solves the stated problem."""

euclidean = accelerated_ascent(squares)
"""Solves section IV's problem,

    min over Π ≥ 0, z of  ⟨Π, C⟩ + η⟨Π, ln Π⟩ + τ‖Π1 − x‖² + τ‖Πᵀ1 − z‖² + γ/2 ‖z − w‖²

(the paper writes λ for γ, and its (36) and (38) have τ/2 for τ). In place of the paper's gradient
descent on Π, closed forms: with Wright's omega function ω,
α = 2τx − η ω(ln(2τ/η) + ln Σ_j exp((β_j − C_ij)/η − 1) + 2τx/η), and likewise β."""


@functools.cache
def published(floor: float) -> Rule:
    """The paper's Algorithm 1: equations (11), (13) and (15) in turn, from α = β = 0 and z = w.

    For reproducing its tables. Not a solution of the stated problem, see `unbalanced_sinkhorn`,
    and on dark pixels a cycle of two values rather than a convergent sequence. The residual
    reported is that of the stated problem. z may fall below 0 where w does.

    Args:
      floor: replaces x and z where they are smaller, in the logarithms. It stands for whatever the
        published code did about ln 0, which the paper does not say, and it changes the results.

    Raises:
      InputError: the floor is not positive and finite.
    """
    check_positive("floor", floor)

    def start(problem: UnbalancedProblem, duals: UnbalancedDuals | None) -> _Alternation:
        zero = jnp.zeros_like(problem.x)
        return _Alternation(zero, zero if duals is None else duals.beta / problem.eta, problem.w)

    def step(
        kernel: PixelKernel, problem: UnbalancedProblem, state: _Alternation
    ) -> tuple[_Alternation, Array]:
        x, _, w, eta, tau, gamma = problem
        kappa = tau / (eta + tau)
        alpha = kappa * (jnp.log(jnp.maximum(x, floor)) - kernel(state.beta, 1).lse)
        log_z = jnp.log(jnp.maximum(state.z, floor))
        beta = kappa * (log_z - kernel(alpha, 0).lse)
        z = w + tau / gamma * jnp.exp(-beta * (eta / tau))
        return _Alternation(alpha, beta, z), jnp.full_like(eta, jnp.inf)

    def finish(
        kernel: PixelKernel, problem: UnbalancedProblem, state: _Alternation
    ) -> UnbalancedPlan:
        arrived = jnp.exp(state.beta + kernel(state.alpha, 0).lse)
        return UnbalancedPlan(*state, arrived, 0.0)

    return Rule(start, step, finish, stated_residual)


class _Alternation(NamedTuple):
    alpha: Array
    beta: Array
    z: Array


def stated_residual(
    kernel: PixelKernel,
    problem: UnbalancedProblem,
    plan: UnbalancedPlan,
    row_lse: Array,
    last: Array,
) -> Array:
    """The residual of a `Rule` by all conditions of the stated problem, see `kkt_residual`."""
    del last
    x, _, w, eta, tau, gamma = problem
    alpha, beta, z, _, shift = plan
    left = jnp.exp(alpha + row_lse - shift)
    log_q = kernel(alpha - shift, 0).lse
    arrived = jnp.exp(beta + log_q)
    # exp(−β/τ) is the share of z that arrives: none where no mass can.
    share = jnp.where(log_q > -jnp.inf, jnp.exp(-beta * (eta / tau)), 0.0)
    balance = jnp.maximum(w + tau / gamma * (share - 1.0), 0.0)
    misfit = jnp.abs(left - _kl_row_sums(problem, alpha))
    misfit += jnp.abs(arrived - z * share) + jnp.abs(z - balance)
    return relative_misfit(misfit, x, left)


def relative_misfit(misfit: Array, *masses: Array) -> Array:
    """Σ misfit over the largest of the masses' sums, or Σ misfit itself where all are 0."""
    scale = functools.reduce(jnp.maximum, map(pixel_sum, masses))
    return pixel_sum(misfit) / jnp.where(scale > 0, scale, 1.0)


def pixel_sum(a: Array) -> Array:
    """Σ over pixels as a product of matrices: XLA's CPU backend makes scalar loops of sums."""
    ones = jnp.ones((2, a.shape[0]), a.dtype)  # with one row it would be a sum again
    total = jnp.matmul(ones, a.reshape(a.shape[0], -1), precision=jax.lax.Precision.HIGHEST)
    return total[0].reshape(a.shape[1:])
