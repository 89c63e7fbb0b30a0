"""One process of several that train together, or one by itself: what `test_distributed` compares.

python tests/train_together.py OUT.npz DEVICES [PORT PROCESSES ID]
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax
from flax import linen as nn

OUT, DEVICES = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", DEVICES)
if len(sys.argv) > 3:
    port, processes, number = map(int, sys.argv[3:])
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, number)

import jax.numpy as jnp  # noqa: E402

from experiments.training.weights import save  # noqa: E402
from wasserstein_adv import parallel  # noqa: E402
from wasserstein_adv.attacks import constant, first_order, last, linf_ball, pgd, sign  # noqa: E402
from wasserstein_adv.data import batch_indices, random_crop  # noqa: E402
from wasserstein_adv.defenses import adversarial_training, plain  # noqa: E402
from wasserstein_adv.training import Batch, initialise, to_unit_interval, train_step  # noqa: E402

SIDE, COUNT, BATCH, STEPS, SEED = 8, 320, 32, 40, 5


class Network(nn.Module):
    """A convolution with batch statistics over all devices, and a dense layer."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(8, (3, 3), use_bias=False)(images)
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=parallel.AXIS)(x)
        return nn.Dense(4)(nn.relu(x).mean((1, 2)))


def dataset():
    """Stripes of four directions, under noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT, dtype=np.int32) % 4
    rows, columns = np.mgrid[:SIDE, :SIDE]
    stripes = np.stack([rows, columns, rows + columns, rows - columns]) % 3 == 0
    images = 100 * stripes[labels][..., None] + rng.integers(0, 120, (COUNT, SIDE, SIDE, 1))
    return images.astype(np.uint8), labels


IMAGES, LABELS = dataset()
MODEL = Network()
ATTACK = first_order(
    linf_ball(), pgd(sign(0.02)), radius=constant(0.06), steps=5, keep=last(), random_start=True
)


def run(optimizer, defense, steps):
    """The state after so many steps, and the measures of the last ten."""
    step_fn = train_step(
        MODEL, optimizer, defense, SEED,
        augment=lambda key, image: random_crop(key, image, 1), axis_name=parallel.AXIS,
    )  # fmt: skip
    together = parallel.replicate(step_fn, parallel.devices_for(BATCH))
    own = parallel.own_part(BATCH)
    state = together.put(initialise(MODEL, optimizer, (SIDE, SIDE, 1), SEED))
    told = []
    for step in range(steps):
        index = batch_indices(SEED, step, COUNT, BATCH)[own]
        batch = Batch(index.astype(np.int32), IMAGES[index], LABELS[index])
        state, measures, _ = together.step(state, batch, False)
        told.append(np.asarray(measures))
    return together.get(state), np.mean(told[-10:], axis=0)


def leaves(tree):
    return {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


found = {}
first = jax.tree.map(np.asarray, initialise(MODEL, optax.sgd(1.0), (SIDE, SIDE, 1), SEED).variables)
state, _ = run(optax.sgd(0.02, momentum=0.9), plain(), STEPS)
found |= {f"plain {name}": leaf for name, leaf in leaves(state.variables).items()}
# One step of gradient descent at rate 1: what was subtracted is the gradient.
state, _ = run(optax.sgd(1.0), adversarial_training(ATTACK), 1)
gradient = jax.tree.map(lambda a, b: a - b, first["params"], state.variables["params"])
found |= {f"gradient {name}": leaf for name, leaf in leaves(gradient).items()}
state, _ = run(optax.sgd(0.1, momentum=0.9), adversarial_training(ATTACK), 2 * COUNT // BATCH)


@jax.jit
def accuracies(variables):
    def logits_fn(images):
        return MODEL.apply(variables, images)

    x = to_unit_interval(jnp.asarray(IMAGES))
    attacked = ATTACK(jax.random.key(0), logits_fn, x, LABELS).image
    return [jnp.mean(jnp.argmax(logits_fn(z), -1) == LABELS) for z in (x, attacked)]


variables = jax.tree.map(np.asarray, state.variables)
found["nominal"], found["adversarial"] = map(np.asarray, accuracies(variables))
np.savez(OUT, **found)
if jax.process_index() == 0:  # which waits for no other
    save(Path(OUT).with_suffix(".weights"), variables)
