"""First-order attacks: an objective maximised over a feasible set by a method."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from wasserstein_adv.attacks.keep import Candidate, Keep, first_success
from wasserstein_adv.attacks.methods import Method, Moves
from wasserstein_adv.attacks.objectives import Objective, cross_entropy
from wasserstein_adv.attacks.objectives import targeted as towards
from wasserstein_adv.attacks.sets import FeasibleSet
from wasserstein_adv.attacks.transforms import Transform
from wasserstein_adv.checks import check_images
from wasserstein_adv.errors import InputError

LogitsFn = Callable[[Float[Array, "n h w c"]], Float[Array, "n k"]]
"""A pure function from images in [0, 1] to logits, each image by itself, normalising included."""


class AttackResult(NamedTuple):
    """What an attack found, with its evidence; every field has a leading axis of n images."""

    image: Float[Array, "n h w c"]
    """The adversarial image; where the attack failed, its last iterate."""
    success: Bool[Array, "n"]
    radius: Float[Array, "n"]
    """Radius at which it succeeded: 0 if the clean image was enough, inf if it never did."""
    budget: Float[Array, "n"]
    """Radius of the set that `image` was projected on; 0 for the clean image."""
    distance: Float[Array, "n"]
    """How much of a radius `image` uses, by the feasible set's account."""
    objective: Float[Array, "n"]
    steps: Int[Array, "n"]
    """Steps that led to `image`."""
    evidence: Any
    """The feasible set's memory at `image`, for example `BallEvidence`."""


class AttackState(NamedTuple):
    """An attack under way on n images; every leaf has a leading axis of n, so that images can be
    gathered, dropped and scattered at will."""

    u: Any
    memory: Any
    method: Any
    budget: Float[Array, "n"]
    step: Int[Array, "n"]
    kept: Candidate
    context: Any = ()
    """What the objective is told of each image besides its logits and label."""
    key: Any = ()
    """(n, 2) bits that the draws of the transform come from, where there is one."""


class FirstOrderAttack(NamedTuple):
    """An attack, ready to run: call it, or drive `init` and `step` yourself.

    Its states are `AttackState`s, or of an attack with a loop of its own anything like them:
    pytrees with a leading axis of n images, among them `step` and `kept`.
    """

    init: Callable[..., Any]
    """(one key per image, logits_fn, x, y, restart=0) ↦ the state before the first step."""
    step: Callable[[LogitsFn, Array, Array, Any], Any]
    """(logits_fn, x, y, state) ↦ the next state; images that are settled stay as they are."""
    unsettled: Callable[[Any], Array]
    """state ↦ which images still need steps."""
    merge: Callable[[Any, Any], Any]
    """(newer, older) ↦ the newer state, keeping the better answer of both."""
    result: Callable[[Any], AttackResult]
    restarts: int
    final: Callable[[Any], Array] = lambda state: jnp.zeros_like(state.kept.success)
    """state ↦ which images have an answer that no other restart can better."""

    def __call__(
        self, key: PRNGKeyArray | Key[Array, "n"], logits_fn: LogitsFn, x: Array, y: Array
    ) -> AttackResult:
        """Attack n images: traceable under jit, vmap, pmap.

        Args:
          key: random key, of which image i uses `fold_in(key, i)`; or n keys, one per image.
          logits_fn: the model. Gradients stop here: a loss may call the attack on a model whose
            parameters it differentiates, and gets no gradient through the images.
          x: (n, h, w, c) clean images in [0, 1]; of less than single precision they are taken to
            it, and the model is given such.
          y: (n,) labels; the wanted labels if the attack is targeted.

        Raises:
          InputError: shapes that do not agree; of arrays that are not traced, values that are no
            images or no labels of the model's.
        """
        images, y = as_batch(x, y)
        check_model(logits_fn, images, y)
        check_key(key, images.shape[0])
        one_for_all = _is_one(key)

        def keys_of(restart: int | Array) -> Key[Array, "n"]:
            if one_for_all:
                return image_keys(jax.random.fold_in(key, restart), jnp.arange(x.shape[0]))
            return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, restart)

        def attempt(restart: int | Array) -> AttackState:
            return jax.lax.while_loop(
                lambda state: jnp.any(self.unsettled(state)),
                lambda state: self.step(logits_fn, images, y, state),
                self.init(keys_of(restart), logits_fn, images, y, restart),
            )

        state = jax.lax.fori_loop(
            1, self.restarts, lambda r, older: self.merge(attempt(r), older), attempt(0)
        )
        return self.result(state)


def image_keys(key: PRNGKeyArray, index: Int[Array, "n"]) -> Key[Array, "n"]:
    """One key per image, a function of the image's index alone: batching does not change it."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def as_batch(x: Any, y: Any) -> tuple[Any, Any]:
    """A batch as attacks take it: images of single precision or better, and integer labels.

    Args:
      x: (n, h, w, c) images of a floating type; finite and in [0, 1], which is seen to unless they
        are traced.
      y: (n,) integers.

    Raises:
      InputError: one line that names the argument and says what is wrong.
    """
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, (jax.Array, np.ndarray)):
            raise InputError(f"{name} must be an array, got {type(value).__name__}")
    check_images(x, "x")
    if y.shape != x.shape[:1] or not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(f"y must be {x.shape[0]} integer labels, got {y.dtype} {y.shape}")
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return x if x.dtype == wide else x.astype(wide), y


def check_model(logits_fn: LogitsFn, x: Array | np.ndarray, y: Array | np.ndarray) -> None:
    """Raise InputError unless the model has logits for each image, and the labels are among them.

    Labels that are traced are let pass.
    """
    image = jax.ShapeDtypeStruct(x.shape, x.dtype)
    logits = jax.eval_shape(logits_fn, image)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != x.shape[0] or shape[1] == 0:
        got = type(logits).__name__ if shape is None else shape
        raise InputError(
            f"logits_fn must return logits of shape ({x.shape[0]}, classes), got {got}"
        )
    if not isinstance(y, jax.core.Tracer):
        labels = np.asarray(y)  # JAX's own would be traced where something else is
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= shape[1]:
            raise InputError(
                f"y must be labels from 0 to {shape[1] - 1}, as the model has {shape[1]} classes, "
                f"got {low if low < 0 else high}"
            )


def check_key(key: Any, n: int) -> None:
    """Raise InputError unless it is a random key, or n of them."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, (jax.Array, np.ndarray)) and key.dtype == np.uint32
    if not (typed or raw):
        raise InputError(f"key must be a random key such as jax.random.key(0), got {key!r:.40}")
    if not _is_one(key) and key.shape[0] != n:
        raise InputError(f"key must be one random key, or one for each of {n} images")


def _is_one(key: Any) -> bool:
    return key.ndim == (0 if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else 1)


Context = Callable[[Array, Array, Array, PRNGKeyArray, Array], Any]
"""(clean logits, label, clean image, key, restart) ↦ what the objective is given as a third
argument: the clean answer, the label that is wanted of it, … Of one image."""
Start = Callable[[PRNGKeyArray, Array, Array], Any]
"""(key, clean image, radius) ↦ where to start, which the set then projects. Of one image."""


class FirstOrderOptions(TypedDict, total=False):
    """The arguments of `first_order` that a paper leaves open; its attack hands them on."""

    objective: Objective
    keep: Keep | None
    targeted: bool
    random_start: bool | Start
    restarts: int


def first_order(
    feasible: FeasibleSet,
    method: Method,
    *,
    radius: optax.Schedule,
    steps: int,
    objective: Objective = cross_entropy,
    keep: Keep | None = None,
    targeted: bool = False,
    random_start: bool | Start = False,
    restarts: int = 1,
    context: Context | None = None,
    transform: Transform | None = None,
    draws: int = 1,
) -> FirstOrderAttack:
    """max over images z in the set around x of objective(logits(z), y), by a first-order method.

    The iterates are u₀ (the clean image, or a random start) and u_{t+1} = project(step(u_t)) on the
    set of radius `radius(t)`. A candidate is judged on the logits that the next gradient needs
    anyway, so that a step costs one forward and one backward pass; one more forward pass where the
    set has a `finish`, whose image is what is judged, or where there is a transform: gradients are
    means over its draws, and what is judged is the image as it is. The clean image is always the
    first candidate.

    Args:
      feasible: what the attacker may do.
      method: how it moves, such as `pgd(sign(0.1))`.
      radius: schedule of the set's radius.
      steps: steps at most per restart.
      objective: what it maximises, of logits and label, and of the context if there is one; written
        for the untargeted case.
      keep: which iterate is the answer; `first_success()` by default.
      targeted: whether y is the label that is to win: success is argmax = y instead of ≠ y, and the
        objective changes sign.
      random_start: whether to start from a random feasible point of radius `radius(0)`; or from
        where.
      restarts: how often to start; more than one is only useful with `random_start`, or with a
        context that goes by the restart.
      context: what the objective is told besides logits and label, found once from the clean image.
      transform: a random map between the image and the model, with a key for each image and step.
      draws: how many draws of the transform a gradient is the mean over.

    Raises:
      InputError: `steps`, `restarts` or `draws` below 1, or restarts without a random start.
    """
    keep = first_success() if keep is None else keep
    if not 1 <= steps < 2**31:
        raise InputError(f"steps must be 1 or more, below 2^31, got {steps}")
    for name, count in (("restarts", restarts), ("draws", draws)):
        if count < 1:
            raise InputError(f"{name} must be 1 or more, got {count}")
    if restarts > 1 and not random_start and context is None:
        raise InputError("restarts above 1 repeat the same attack unless random_start is set")
    aim = towards(objective) if targeted else objective

    def aims(logits: Array, y: Array, told: Any) -> Array:
        extra = () if context is None else (told,)
        return jax.vmap(aim)(logits, y, *extra)

    def judge(logits: Array, y: Array, told: Any) -> tuple[Array, Array, Array]:
        """The objective, whether the attack succeeded, and whether there was an answer."""
        hit = jnp.argmax(logits, axis=-1) == y
        # Logits that are not numbers are an accident of the model, not a success of the attack.
        known = ~jnp.any(jnp.isnan(logits), axis=-1)
        return aims(logits, y, told), known & (hit if targeted else ~hit), known

    def init(
        keys: Key[Array, "n"], logits_fn: LogitsFn, x: Array, y: Array, restart: int | Array = 0
    ) -> AttackState:
        x = jax.lax.stop_gradient(x)
        n = x.shape[0]
        clean, memory = jax.vmap(feasible.init)(x)
        logits = jax.lax.stop_gradient(logits_fn(x))
        told = ()
        if context is not None:
            turn = jnp.full(n, restart, jnp.int32)
            told = jax.vmap(context)(logits, y, x, _other(keys, 1), turn)
        value, success, _ = judge(logits, y, told)
        zero = jnp.zeros(n, x.dtype)
        count = jnp.zeros(n, jnp.int32)
        kept = Candidate(x, memory, value, success, zero, zero, count)
        u, budget = clean, zero
        if random_start:
            first = jnp.full(n, radius(0), x.dtype)
            u, memory = jax.vmap(begin)(keys, x, first)
            budget = first
        bits = () if transform is None else jax.vmap(_bits)(_other(keys, 2))
        state = jax.vmap(method.init)(u)
        return AttackState(u, memory, state, budget, count, kept, told, bits)

    def begin(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Any, Any]:
        if not callable(random_start):
            return feasible.random(key, x, radius)
        u, memory = feasible.init(x)
        return feasible.project(x, u, random_start(key, x, radius), radius, memory)

    def unsettled(state: AttackState) -> Array:
        return ~keep.settled(state.kept) & (state.step <= steps)

    def step(logits_fn: LogitsFn, x: Array, y: Array, state: AttackState) -> AttackState:
        x = jax.lax.stop_gradient(x)

        def loss(u):
            images = jax.vmap(feasible.decode)(x, u)
            logits = logits_fn(images)
            judged = judge(logits, y, state.context)
            return -jnp.sum(judged[0]), (images, judged)

        def mean_loss(transform: Transform) -> tuple[Any, Array]:
            """Gradient and objective, both the means over the draws."""

            def one(u, draw):
                images = jax.vmap(feasible.decode)(x, u)
                keys = jax.vmap(_draw_key, (0, 0, None))(state.key, state.step, draw)
                values = aims(logits_fn(jax.vmap(transform)(keys, images)), y, state.context)
                return -jnp.sum(values), values

            found = jax.lax.map(
                lambda draw: jax.grad(one, has_aux=True)(state.u, draw), jnp.arange(draws)
            )
            return jax.tree.map(lambda a: jnp.mean(a, axis=0), found)

        if transform is None:
            gradient, (images, judged) = jax.lax.stop_gradient(
                jax.grad(loss, has_aux=True)(state.u)
            )
            seen = judged[0]
        else:
            gradient, seen = jax.lax.stop_gradient(mean_loss(transform))
            _, (images, judged) = jax.lax.stop_gradient(loss(state.u))
        memory = state.memory
        if feasible.finish is not None:
            images, memory = jax.vmap(feasible.finish)(x, state.u, state.budget, memory)
            judged = judge(jax.lax.stop_gradient(logits_fn(images)), y, state.context)
        value, success, known = judged
        state = state._replace(memory=memory)
        distance = jax.vmap(feasible.distance)(x, state.u, memory)
        new = Candidate(images, memory, value, success, state.budget, distance, state.step)
        better = known & unsettled(state) & keep.better(new, state.kept)
        kept = select(better, new, state.kept)
        # Without a direction there is none to go, and no image may become NaN.
        leads = jax.tree.reduce(jnp.logical_and, jax.tree.map(_finite, gradient))
        gradient = select(leads, gradient, jax.tree.map(jnp.zeros_like, gradient))

        def move(x, gradient, seen, method_state, u, budget, memory):
            def lmo(gradient):
                if feasible.lmo is None:
                    raise InputError("the set has no linear minimisation oracle for this method")
                return feasible.lmo(x, u, gradient, budget, memory)

            def project(stepped):
                return feasible.project(x, u, stepped, budget, memory)

            return method.update(gradient, method_state, u, Moves(project, lmo), value=-seen)

        budget = jnp.asarray(radius(state.step), x.dtype) * jnp.ones_like(state.budget)
        # After the last step there is an iterate to judge, but nowhere to move to.
        u, memory, method_state = jax.lax.cond(
            jnp.any(state.step < steps),
            lambda: jax.vmap(move)(x, gradient, seen, state.method, state.u, budget, state.memory),
            lambda: (state.u, state.memory, state.method),
        )
        state = state._replace(kept=kept)
        moved = state._replace(
            u=u, memory=memory, method=method_state, budget=budget, step=state.step + 1
        )
        return select(unsettled(state), moved, state)

    def merge(newer: AttackState, older: AttackState) -> AttackState:
        better = keep.across or keep.better
        kept = select(better(newer.kept, older.kept), newer.kept, older.kept)
        return newer._replace(kept=kept)

    def final(state: AttackState) -> Array:
        return keep.settled(state.kept) & (state.kept.budget <= radius(0))

    return FirstOrderAttack(init, step, unsettled, merge, result_of, restarts, final)


def _other(keys: Key[Array, "n"], use: int) -> Key[Array, "n"]:
    """Keys for another use than the start, which has those given."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def _bits(key: PRNGKeyArray) -> Array:
    """A key as plain numbers, which states are made of."""
    return jax.random.bits(key, (2,), jnp.uint32)


def _draw_key(bits: Array, step: Array, draw: Array) -> PRNGKeyArray:
    key = jax.random.wrap_key_data(bits, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, step), draw)


def result_of(state: Any) -> AttackResult:
    """What is known of the answers of a state."""
    kept = state.kept
    reached = jnp.where(kept.success, kept.budget, jnp.inf)
    return AttackResult(
        kept.image, kept.success, reached, kept.budget, kept.distance, kept.objective, kept.steps,
        kept.evidence,
    )  # fmt: skip


def _finite(leaf: Array) -> Bool[Array, "n"]:
    return jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))


def select(chosen: Bool[Array, "n"], new: Any, old: Any) -> Any:
    """Per image, the leaves of `new` where chosen, else those of `old`."""

    def pick(a: Array, b: Array) -> Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, new, old)
