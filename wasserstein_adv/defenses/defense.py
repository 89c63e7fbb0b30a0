"""What a defence is: the images that a network is shown, and the loss of what it answers."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from wasserstein_adv.attacks import FirstOrderAttack, LogitsFn

CLEAN = "clean"
"""What a batch's clean images are called among the views."""
ADVERSARIAL = "adversarial"
"""What its adversarial images are called."""

Views = dict[str, Float[Array, "n h w c"]]
"""Images of one batch by what was done to them: `CLEAN`, `ADVERSARIAL`."""
Answers = dict[str, Float[Array, "n k"]]
"""The logits of `Views`, by the same names."""


class Defense(NamedTuple):
    """A way to train: the minimum over the weights of the mean of `loss`(logits of `views`).

    Both are pure and of each image by itself, so that a batch may be cut in any way.
    """

    views: Callable[[Key[Array, "n"], LogitsFn, Array, Array], Views]
    """(one key per image, the model as it answers in use, x, y) ↦ what the network is trained on.
    No gradient flows through it."""
    loss: Callable[[Answers, Int[Array, "n"]], Float[Array, "n"]]
    """(logits of the views, y) ↦ one loss per image, in nats."""


def plain() -> Defense:
    """No defence: min E CE(Φ(x), y), Φ the logits."""

    def views(keys: Key[Array, "n"], logits_fn: LogitsFn, x: Array, y: Array) -> Views:
        del keys, logits_fn, y
        return {CLEAN: x}

    return Defense(views, lambda logits, y: _cross_entropy(logits[CLEAN], y))


def adversarial_training(attack: FirstOrderAttack) -> Defense:
    """Train on adversarial images in place of the clean ones: min E CE(Φ(z), y), z = attack(x, y).

    Madry et al. (2018) with an attack that ends anywhere in one ball; Wong et al. (2019), algorithm
    1, with one whose ball grows until the network errs, so that z is the first adversarial image
    found, or the last iterate where none was.

    Args:
      attack: how z is found, on the network as it stands.
    """

    def views(keys: Key[Array, "n"], logits_fn: LogitsFn, x: Array, y: Array) -> Views:
        return {ADVERSARIAL: attack(keys, logits_fn, x, y).image}

    return Defense(views, lambda logits, y: _cross_entropy(logits[ADVERSARIAL], y))


def consistency(attack: FirstOrderAttack, weight: float = 0.9, noise: float = 0.01) -> Defense:
    """Keep the answers to clean and adversarial images together.

        min E λ CE(Φ(x), y) + (1 − λ) KL(softmax Φ(x) ‖ softmax Φ(z)),  z = attack(x, y),

    x the clean image plus Gaussian noise, in [0, 1] again. Subramanyam, section V.A. The paper
    calls Φ a feature extractor and takes the cross-entropy of Φ(x) itself, so Φ are the logits
    here. The gradient flows through both arguments of the divergence.

    Args:
      attack: how z is found from the noisy x, on the network as it stands.
      weight: λ, from 0 to 1.
      noise: standard deviation of the noise, in intensities.
    """

    def views(keys: Key[Array, "n"], logits_fn: LogitsFn, x: Array, y: Array) -> Views:
        noise_keys, attack_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))
        noisy = jnp.clip(x + noise * draw(noise_keys), 0.0, 1.0)
        return {CLEAN: noisy, ADVERSARIAL: attack(attack_keys, logits_fn, noisy, y).image}

    def loss(logits: Answers, y: Int[Array, "n"]) -> Float[Array, "n"]:
        clean, adversarial = (jax.nn.log_softmax(logits[v]) for v in (CLEAN, ADVERSARIAL))
        divergence = optax.losses.kl_divergence_with_log_targets(adversarial, clean)
        return weight * _cross_entropy(logits[CLEAN], y) + (1.0 - weight) * divergence

    return Defense(views, loss)


def _cross_entropy(logits: Float[Array, "n k"], y: Int[Array, "n"]) -> Float[Array, "n"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)
