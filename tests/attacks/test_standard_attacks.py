"""The standard attacks against plain NumPy loops, their balls, and what their parts promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from plainly import jit

from wasserstein_adv import parallel
from wasserstein_adv.attacks import (
    constant,
    first_order,
    last,
    linf_ball,
    objectives,
    pgd,
    sign,
    standard,
)
from wasserstein_adv.errors import InputError

SIDE, CLASSES, COUNT = 6, 5, 7
RNG = np.random.default_rng(0)
X = (RNG.random((COUNT, SIDE, SIDE, 1)) * (RNG.random((COUNT, SIDE, SIDE, 1)) < 0.7)).astype("f4")
Y = np.arange(COUNT, dtype=np.int32) % CLASSES
WEIGHTS = RNG.normal(size=(SIDE * SIDE, CLASSES)).astype("f4")
KEY = jax.random.key(3)


def linear(images):
    return 0.3 * images.reshape(len(images), -1) @ WEIGHTS


def curved(images):
    return jnp.tanh(2.0 * images.reshape(len(images), -1) - 1.0) @ WEIGHTS


def slope(x, y):
    """The cross-entropy's gradient under `linear`, in NumPy."""
    logits = 0.3 * x.reshape(len(x), -1).astype(np.float64) @ WEIGHTS
    answer = scipy.special.softmax(logits, axis=1) - np.eye(CLASSES)[y]
    return 0.3 * (answer @ WEIGHTS.T).reshape(x.shape)


def attacked(attack, logits_fn=linear, x=X, y=Y):
    return jit(lambda key, x, y: attack(key, logits_fn, x, y))(KEY, x, y)


def test_one_step_is_the_gradients_sign():
    found = attacked(standard.fgsm(standard.SignProtocol(radius=0.1), keep=last()))
    expected = np.clip(X + 0.1 * np.sign(slope(X, Y)), 0, 1)
    np.testing.assert_allclose(found.image, expected, atol=1e-6)
    along = attacked(standard.fgsm(standard.SignProtocol("l2", 0.1), keep=last()))
    gradient = slope(X, Y)
    unit = gradient / np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(along.image, np.clip(X + 0.1 * unit, 0, 1), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projected_gradients_are_the_plain_loop(norm):
    protocol = standard.IteratedProtocol(norm, radius=0.2, step_size=0.07, steps=6)
    found = attacked(standard.projected_gradient(protocol, random_start=False, keep=last()))
    x = X.astype(np.float64)
    for _ in range(6):
        gradient = slope(x, Y)
        if norm == "linf":
            x = np.clip(x + 0.07 * np.sign(gradient), X - 0.2, X + 0.2)
        else:
            size = np.sqrt((gradient**2).sum((1, 2, 3), keepdims=True))
            change = x + 0.07 * gradient / size - X
            length = np.sqrt((change**2).sum((1, 2, 3), keepdims=True))
            x = X + change * np.minimum(1.0, 0.2 / length)
        x = np.clip(x, 0, 1)
    np.testing.assert_allclose(found.image, x, atol=1e-5)


def test_momentum_is_the_plain_loop():
    protocol = standard.MomentumProtocol(radius=0.2, step_size=0.06, steps=6, decay=0.8)
    found = attacked(standard.mi_fgsm(protocol, keep=last()))
    x, momentum = X.astype(np.float64), 0.0
    for _ in range(6):
        gradient = slope(x, Y)
        momentum = 0.8 * momentum + gradient / abs(gradient).sum((1, 2, 3), keepdims=True)
        x = np.clip(np.clip(x + 0.06 * np.sign(momentum), X - 0.2, X + 0.2), 0, 1)
    np.testing.assert_allclose(found.image, x, atol=1e-5)


def auto_pgd(x, y, loss_and_slope, project, direction, radius, steps):
    """Croce and Hein's algorithm 1 on one image, in NumPy, with lists in place of counters."""
    checks, length = [0, int(0.22 * steps)], int(0.22 * steps)
    while checks[-1] < steps:
        length = max(length - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
        checks.append(checks[-1] + length)
    loss, slope = loss_and_slope(x, y)
    losses, points = [loss], [x]
    best, best_slope, best_loss = x, slope, loss
    before, eta, halved, checked = x, 2 * radius, True, loss
    for t in range(steps):
        here = x
        ahead = project(here + eta * direction(slope))
        share = 0.75 if t > 0 else 1.0
        x = project(here + share * (ahead - here) + (1 - share) * (here - before))
        before = here
        loss, slope = loss_and_slope(x, y)
        losses.append(loss)
        points.append(x)
        if loss > best_loss:
            best, best_slope, best_loss = x, slope, loss
        if t + 1 in checks:
            start = checks[checks.index(t + 1) - 1]
            rose = sum(losses[k + 1] > losses[k] for k in range(start, t + 1))
            halve = rose <= 0.75 * (t + 1 - start) or (not halved and checked >= best_loss)
            halved, checked = halve, best_loss
            if halve:
                eta, x, slope = eta / 2, best, best_slope
    return points[-1], best_loss


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_pgd_is_the_papers_algorithm(norm):
    with jax.enable_x64(True):
        _agree(norm)


def _agree(norm):
    radius, steps = (0.3, 40) if norm == "linf" else (1.0, 40)
    weights = WEIGHTS.astype(np.float64)

    def logits_fn(images):
        z = images.reshape(len(images), -1)
        return jnp.sin(7.0 * z) @ weights

    found = attacked(
        standard.apgd_ce(
            standard.ApgdProtocol(norm, radius, steps), random_start=False, keep=last()
        ),
        logits_fn,
        X.astype(np.float64),
    )

    @jax.jit
    def value(x, y):
        logits = logits_fn(x[None])[0]
        return jax.nn.logsumexp(logits) - logits[y]

    gradient = jax.jit(jax.grad(value))

    for k in range(COUNT):
        clean = X[k].astype(np.float64)

        def project(z, clean=clean):
            change = z - clean
            if norm == "linf":
                return np.clip(clean + np.clip(change, -radius, radius), 0, 1)
            size = np.linalg.norm(change)
            return np.clip(clean + change * min(1.0, radius / max(size, 1e-300)), 0, 1)

        def direction(g):
            return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)

        def both(x, y):
            return float(value(x, y)), np.asarray(gradient(x, y))

        truth, best = auto_pgd(clean, Y[k], both, project, direction, radius, steps)
        np.testing.assert_allclose(found.image[k], truth, atol=1e-9)
        assert best > float(value(clean, Y[k]))


ATTACKS = {
    "fgsm": (standard.fgsm, standard.SignProtocol),
    "ffgsm": (standard.ffgsm, standard.SignProtocol),
    "pgd": (standard.projected_gradient, standard.IteratedProtocol),
    "tpgd": (standard.tpgd, standard.IteratedProtocol),
    "mi-fgsm": (standard.mi_fgsm, standard.MomentumProtocol),
    "di-fgsm": (standard.di_fgsm, standard.DiversityProtocol),
    "eot-pgd": (standard.eot_pgd, standard.EotProtocol),
    "apgd-ce": (standard.apgd_ce, standard.ApgdProtocol),
    "apgd-dlr": (standard.apgd_dlr, standard.ApgdProtocol),
    "apgd-t": (standard.apgd_t, standard.TargetedApgdProtocol),
}
FEW = {"steps": 4, "draws": 2, "classes": 3}


def small(name, norm, radius=0.2):
    build, protocol = ATTACKS[name]
    few = {field: FEW[field] for field in FEW if field in protocol._fields}
    return build(protocol(norm=norm, radius=radius, **few), keep=last())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_every_image_is_in_its_ball_also_where_gradients_vanish(name, norm):
    attack = small(name, norm)
    for scale in (1.0, 1e6):
        found = attacked(attack, lambda images, scale=scale: scale * curved(images))
        image = np.asarray(found.image, np.float64)
        assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
        change = image - X
        size = abs(change).max() if norm == "linf" else np.sqrt((change**2).sum((1, 2, 3))).max()
        assert size <= 0.2 * (1 + 1e-6) and (size > 0 or scale > 1)


@pytest.mark.parametrize("name", ["ffgsm", "di-fgsm", "eot-pgd", "apgd-t"])
def test_an_answer_does_not_depend_on_the_other_images(name):
    attack = small(name, "linf")
    keys = jax.random.split(KEY, COUNT)
    run = jit(lambda key, x, y: attack(key, curved, x, y).image)
    alone, together = run(keys[4:], X[4:], Y[4:]), run(keys, X, Y)
    # Sums over a batch of another size round differently, and signs may flip on it.
    assert np.mean(abs(alone - together[4:]) < 1e-4) > 0.9


def test_the_ratio_does_not_care_for_the_logits_scale():
    protocol = standard.ApgdProtocol("linf", 0.2, 10)
    base, scaled = (
        attacked(standard.apgd_dlr(protocol), lambda images, c=c: c * curved(images))
        for c in (1.0, 1024.0)  # a power of two: bits do not change either
    )
    np.testing.assert_array_equal(base.image, scaled.image)


def test_ratios_are_their_formulas():
    rng = np.random.default_rng(1)
    for _ in range(20):
        logits, label, target = rng.normal(size=6), rng.integers(6), rng.integers(6)
        top = np.sort(logits)[::-1]
        wrong = np.delete(logits, label).max()
        expected = -(logits[label] - wrong) / (top[0] - top[2])
        assert float(objectives.dlr(logits, label)) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        expected = -(logits[label] - logits[target]) / (top[0] - 0.5 * (top[2] + top[3]))
        found = objectives.dlr_targeted(logits, label, target)
        assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    level = jnp.ones(6)
    assert float(objectives.dlr(level, 0)) == 0.0
    assert np.isfinite(jax.grad(objectives.dlr)(level, 0)).all()


def test_the_divergence_is_scipys():
    rng = np.random.default_rng(2)
    clean, logits = rng.normal(size=(2, 6))
    p, q = scipy.special.softmax(clean), scipy.special.softmax(logits)
    found = objectives.kl_divergence(jnp.asarray(logits), 0, jnp.asarray(clean))
    assert float(found) == pytest.approx(scipy.special.rel_entr(p, q).sum(), rel=1e-5)


@pytest.mark.parametrize(("name", "classes"), [("apgd-dlr", 2), ("apgd-t", 3)])
def test_too_few_classes_are_refused(name, classes):
    with pytest.raises(InputError, match=r"needs .* classes"):
        small(name, "linf")(KEY, lambda images: linear(images)[:, :classes], X, Y % classes)


def test_each_restart_aims_at_the_next_class():
    attack = standard.apgd_t(standard.TargetedApgdProtocol(steps=2, classes=4))
    logits = np.asarray(linear(X))
    for restart in range(5):
        state = attack.init(jax.random.split(KEY, COUNT), linear, X, Y, restart)
        for k in range(COUNT):
            order = [c for c in np.argsort(-logits[k]) if c != Y[k]]
            assert int(state.context[k]) == order[restart % 4]


def test_an_evaluation_gives_the_attacks_answers_and_spares_what_is_fooled():
    attack = standard.apgd_t(standard.TargetedApgdProtocol("linf", 0.03, 5, classes=4))
    y = np.argmax(curved(X), axis=1).astype(np.int32)
    answer = attacked(attack, curved, X, y)
    seen = []
    found = parallel.evaluate(
        attack, KEY, curved, X, y, batch_size=4,
        on_round=lambda progress: seen.append((int(progress.restart), progress.settled.copy())),
    )  # fmt: skip
    np.testing.assert_array_equal(found.success, answer.success)
    np.testing.assert_allclose(found.radius, answer.radius)
    assert 0 < found.success.sum() < COUNT
    fooled_at_once = seen[0][1] & found.success
    assert fooled_at_once.any()
    for restart, settled in seen:
        assert restart == 0 or settled[fooled_at_once].all()


def test_gradients_are_means_over_the_draws():
    def scaled(key, image):  # by −0.4 to 0.6: one draw in five leads the wrong way, the mean none
        return image * jax.random.uniform(key, (), image.dtype, -0.4, 0.6)

    def up(draws):
        attack = first_order(
            linf_ball(), pgd(sign(0.01)), radius=constant(0.01), steps=1, keep=last(),
            objective=lambda logits, label: logits[0], transform=scaled, draws=draws,
        )  # fmt: skip
        image = attacked(attack).image
        towards = np.sign(WEIGHTS[:, 0]).reshape(SIDE, SIDE, 1)
        changed = np.sign(np.asarray(image) - X) * towards
        return np.array([np.median(one[(x > 0) & (x < 1)]) for one, x in zip(changed, X)])  # noqa: B905

    assert (up(400) == 1).all()
    assert set(up(1)) == {-1, 1}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: standard.fgsm(standard.SignProtocol(norm="l1")), "norm must be linf or l2"),
        (lambda: standard.ffgsm(standard.SignProtocol(radius=0.0)), "radius must be positive"),
        (lambda: standard.mi_fgsm(standard.MomentumProtocol(decay=2.0)), "decay must be between"),
        (lambda: standard.tpgd(standard.IteratedProtocol(step_size=-1.0)), "step_size must be"),
        (lambda: standard.apgd_ce(standard.ApgdProtocol(steps=0)), "steps must be 1"),
        (lambda: standard.di_fgsm(standard.DiversityProtocol(smallest=1.5)), "smallest must be"),
        (lambda: standard.eot_pgd(standard.EotProtocol(draws=0)), "draws must be 1"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
