"""The radius of the attacker's ball at step t: Optax schedules under the papers' names."""

import optax


def constant(radius: float) -> optax.Schedule:
    """`radius` at every step."""
    return optax.constant_schedule(radius)


def growing(start: float, factor: float, every: int) -> optax.Schedule:
    """start · factor^⌊t / every⌋. Wong et al. (2019), appendix B and section 5."""
    return optax.exponential_decay(start, transition_steps=every, decay_rate=factor, staircase=True)


def linear(increment: float) -> optax.Schedule:
    """increment · (t + 1). Hu et al. (2020)."""
    return lambda step: increment * (step + 1)
