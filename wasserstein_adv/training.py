"""Training a network under a defence, one pure step at a time.

A step is a function of a state and a batch. What is random in it comes from a seed, the number of
the step and each example's number in the dataset: neither the device that an example is on nor the
batch's other examples have a part in it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from wasserstein_adv.attacks.first_order import image_keys
from wasserstein_adv.defenses.defense import ADVERSARIAL, CLEAN, Defense

Variables = dict[str, Any]
"""What `model.apply` takes first: "params", and "batch_stats" where a network has them."""

Augment = Callable[[PRNGKeyArray, Array], Array]
"""(key, one image) ↦ an image of the same shape and type."""


class TrainState(NamedTuple):
    """What a step changes, and all that it needs besides a batch."""

    step: Int[Array, ""]
    """Steps taken."""
    variables: Variables
    optimizer: optax.OptState


class Batch(NamedTuple):
    """Examples of a dataset."""

    index: Int[Array, "n"]  # type: ignore[assignment]  # in place of `tuple.index`
    """Their numbers in the dataset."""
    images: UInt8[Array, "n h w c"] | Float[Array, "n h w c"]
    """In 8 bits, or from 0 to 1."""
    labels: Int[Array, "n"]


class Measures(NamedTuple):
    """What a step found before it changed the weights; means over the batch.

    Of the answers that the loss is of: in training, so that a network with batch normalisation
    takes the batch's own statistics, and after all that the defence did to the images. A defence
    that shows no clean images has them classified as in use.
    """

    loss: Float[Array, ""]
    """The defence's, in nats."""
    clean_accuracy: Float[Array, ""]
    adversarial_accuracy: Float[Array, ""]
    """NaN where the defence shows no adversarial images."""


Step = Callable[[TrainState, Batch], tuple[TrainState, Measures]]


def initialise(
    model: Any,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int,
) -> TrainState:
    """Return the state before the first step, with random weights.

    Args:
      model: a Linen module of (n, h, w, c) images, as those of `wasserstein_adv.models`.
      optimizer: Optax's.
      image_shape: (h, w, c).
      seed: of the weights.
    """
    # Not the key that the steps' keys come from.
    key = jax.random.fold_in(jax.random.key(seed), 2**32 - 1)
    # Run once: for a large network a quick program takes longer to compile than a slow one to run.
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    variables = init(key, jnp.zeros((1, *image_shape)))
    return TrainState(jnp.zeros((), jnp.int32), variables, optimizer.init(variables["params"]))


def train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    defense: Defense,
    seed: int,
    *,
    augment: Augment = lambda key, image: image,
    axis_name: str | None = None,
) -> Step:
    """A step of training: min E loss(Φ(views)), over batches, by an optimiser.

    Attacks see the network as it answers in use, with running batch statistics; the loss is of its
    answers in training, the views of a batch together.

    Args:
      model: a Linen module of (images, train=False), as those of `wasserstein_adv.models`; one
        with batch normalisation must have been made with the same `axis_name`.
      optimizer: Optax's, as `initialise` was given.
      defense: what the network is shown, and the loss of its answers.
      seed: of all that is random.
      augment: a random change of every image.
      axis_name: the mapped axis over whose parts of a batch gradients and measures are averaged, if
        any; the parts must be of one size.

    Returns:
      (state, batch) ↦ (state, measures), traceable.
    """

    def mean_over_parts(tree: Any) -> Any:
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Measures]:
        keys = image_keys(jax.random.fold_in(jax.random.key(seed), state.step), batch.index)
        keys = jax.vmap(jax.random.split)(keys)
        x, y = to_unit_interval(jax.vmap(augment)(keys[:, 0], batch.images)), batch.labels

        def logits_fn(images: Array) -> Array:
            return model.apply(state.variables, images)

        views = jax.lax.stop_gradient(defense.views(keys[:, 1], logits_fn, x, y))
        params, statistics = state.variables["params"], dict(state.variables)
        del statistics["params"]

        def loss_fn(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            logits, changed = model.apply(
                {"params": params, **statistics},
                jnp.concatenate(list(views.values())),
                train=True,
                mutable=list(statistics),
            )
            answers = dict(zip(views, jnp.split(logits, len(views)), strict=True))
            return jnp.mean(defense.loss(answers, y)), (changed, answers)

        (loss, (changed, answers)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        gradient, changed = mean_over_parts((gradient, changed))
        updates, moments = optimizer.update(gradient, state.optimizer, params)
        variables = {"params": optax.apply_updates(params, updates), **changed}

        def share(logits: Array) -> Array:
            return jnp.mean(jnp.argmax(logits, axis=-1) == y, dtype=jnp.float32)

        clean = answers[CLEAN] if CLEAN in answers else logits_fn(x)
        fooled = share(answers[ADVERSARIAL]) if ADVERSARIAL in answers else jnp.full((), jnp.nan)
        measures = mean_over_parts(Measures(loss, share(clean), fooled))
        return TrainState(state.step + 1, variables, moments), measures

    return step


def to_unit_interval(images: Array) -> Float[Array, "..."]:
    """8 bits ↦ [0, 1]; what is floating point already stays."""
    return images / 255.0 if jnp.issubdtype(images.dtype, jnp.integer) else images
