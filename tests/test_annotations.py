"""The numerical core with every annotation checked at run time, shapes and dtypes included."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent

# In a process of its own: the checks must be switched on before anything imports the library.
SCRIPT = """
from jaxtyping import TypeCheckError, install_import_hook
parts = [f"wasserstein_adv.{part}" for part in ("geometry", "projections", "attacks")]
install_import_hook(parts, "runtime_types.check")
import jax, jax.numpy as jnp
import wasserstein_adv as wa

x = jax.random.uniform(jax.random.key(0), (6, 5))
pair = jnp.stack([x, x])[..., None]
for geometry in (
    wa.local_grid((6, 5), wa.euclidean_power(1), 3),
    wa.separable_grid((6, 5)),
    wa.dense_grid((6, 5), wa.minkowski(2)),
):
    project = lambda image: wa.projected_sinkhorn(geometry, image, image + 0.1, 0.5)
    one, many = jax.jit(project)(x), jax.jit(jax.vmap(project))(pair)
    assert one.converged and many.converged.all()
window = wa.local_grid((6, 5), wa.euclidean_power(1), 3)
plan = wa.projections.diagonal_plan(window, x)
assert wa.projected_sinkhorn(window, x, x + 0.1, 0.5, cap=1.0).converged
assert wa.dual_projection(window, x, plan + 0.1, 0.5, cap=1.0).converged
assert wa.flow_projection(x, x + 0.1, 0.5, tolerance=0.1).converged
assert wa.linear_oracle(window, x, x, 0.5).converged
assert wa.linear_oracle(window, x, x, 0.5, 100.0).converged
options = dict(radius=wa.attacks.constant(0.3), steps=2, random_start=True, restarts=2)
labels = jnp.array([1, 2])
logits_fn = lambda z: z.reshape(len(z), -1)[:, :4]
for attack in (
    wa.first_order(wa.wasserstein_ball(window), wa.pgd(wa.sign(0.1)), **options),
    wa.first_order(wa.capped_ball(window), wa.pgd(wa.linf_unit(0.1)), **options),
    wa.first_order(wa.couplings(window), wa.frank_wolfe(), **options),
    wa.first_order(wa.flow_ball(), wa.pgd(wa.linf_unit(0.1)), **options),
):
    run = jax.jit(lambda key, x, y: attack(key, logits_fn, x, y))
    assert run(jax.random.key(0), pair, labels).radius.shape == (2,)
try:
    wa.projections.alpha_step("not an array", x)
except TypeCheckError:
    print("checked")
"""


def test_annotations_hold():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
            "PATH": "",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "checked"
