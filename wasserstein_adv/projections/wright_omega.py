"""The Wright omega function ω(t) = W(e^t) and its logarithm, without ever forming e^t for large t.

ω + ln ω = t defines ω > 0 for every real t. Lambert's W of a huge argument, which the β step of the
projected Sinkhorn iteration needs, is ω of the argument's logarithm.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _omega_and_log(t: Array) -> tuple[Array, Array]:
    """(ω(t), ln ω(t)), both to a few ulps: a rational start, then Fritsch-Shafer-Crowley steps.

    For t < 1 the unknown is a = ω e^-t, whose logarithm is small: t itself never enters the
    residual, so that ω keeps its relative accuracy down to the underflow of e^t.
    """
    low = t < 1.0
    # ω < 1: a Padé form of W(e) / e at e = e^t, within 7 %. Otherwise t − ln ω, within 1.5 %.
    e = jnp.exp(jnp.minimum(t, 1.0))
    high_t = jnp.maximum(t, 1.0)
    scale = jnp.where(low, e, 1.0)
    start = jnp.where(
        low,
        (1.0 + 4.0 / 3.0 * e) / (1.0 + e * (7.0 / 3.0 + 5.0 / 6.0 * e)),
        high_t - jnp.log(high_t) * (high_t / (1.0 + high_t)),
    )
    target = jnp.where(low, 0.0, high_t)
    # The step is of fourth order: 3e-7 after one, float64's rounding after two.
    a = start
    for _ in range(1 if t.dtype == jnp.float32 else 2):
        log_a = jnp.log(a)
        w = scale * a
        newton = (target - w - log_a) / (1.0 + w)
        b = 2.0 + 4.0 / 3.0 * newton
        correction = newton / (1.0 + w)
        step = newton * (b - correction) / (b - 2.0 * correction)
        a = a * (1.0 + step)
    omega = scale * a
    # ln(1 + step) by its series: |step| is at most 0.015 for t ≥ 1 when it is used.
    log_high = log_a + step * (1.0 - step * (1.0 / 2.0 - step * (1.0 / 3.0 - step / 4.0)))
    return omega, jnp.where(low, t - omega, log_high)


@jax.custom_jvp
def wright_omega(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """ω(t), the positive root of ω + ln ω = t, that is Lambert's W(e^t).

    Relative accuracy 1e-6 in float32 and 1e-12 in float64 wherever e^t does not underflow; 0 where
    it does. Differentiable: dω/dt = ω / (1 + ω).

    Args:
      t: real numbers, −inf allowed.
    """
    return _omega_and_log(t)[0]


@jax.custom_jvp
def log_wright_omega(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """ln ω(t), the root y of y + e^y = t. Differentiable: dy/dt = 1 / (1 + ω).

    Never overflows or underflows: for t → −inf it is t, for large t it is ln t − ….

    Args:
      t: real numbers, −inf allowed.
    """
    return _omega_and_log(t)[1]


@wright_omega.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    omega = wright_omega(t)
    return omega, omega / (1.0 + omega) * dt


@log_wright_omega.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (t,), (dt,) = primals, tangents
    return log_wright_omega(t), dt / (1.0 + wright_omega(t))
