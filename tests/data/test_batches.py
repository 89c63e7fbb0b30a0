"""Which images make up a batch, and batches made ahead of time."""

import itertools
import threading

import numpy as np
import pytest

from wasserstein_adv.data import batch_indices, prefetch
from wasserstein_adv.errors import InputError

FIRST = [855, 921, 269, 11, 850]
LATER = [342, 983, 701, 891, 309]


def epoch(seed, number, count, batch_size):
    steps = count // batch_size
    return [batch_indices(seed, number * steps + i, count, batch_size) for i in range(steps)]


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (14, 4), (7, 7), (5, 1)])
def test_an_epoch_takes_each_image_at_most_once(count, batch_size):
    orders = [np.concatenate(epoch(3, number, count, batch_size)) for number in range(4)]
    for order in orders:
        assert len(order) == count // batch_size * batch_size
        assert len(set(order)) == len(order)
        assert set(order) <= set(range(count))
    assert len({tuple(order) for order in orders}) == 4


def test_batches_depend_on_seed_and_step_alone():
    there = [batch_indices(0, step, 50, 8).tolist() for step in range(20)]
    back = [batch_indices(0, step, 50, 8).tolist() for step in reversed(range(20))]
    assert there == back[::-1]
    assert there[0] != batch_indices(1, 0, 50, 8).tolist()


def test_images_left_over_come_in_other_epochs():
    seen = np.concatenate([batch_indices(0, step, 10, 4) for step in range(20)])
    assert set(seen) == set(range(10))


def test_order_is_fixed():
    # As first released: a training that is taken up again must get the same batches.
    assert batch_indices(0, 0, 1000, 5).tolist() == FIRST
    assert batch_indices(7, 12345, 1000, 5).tolist() == LATER


def test_batches_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        batch_indices(0, 0, 10, 4)[0] = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0, 10, 11), "batch_size must be from 1 to the 10 images, got 11"),
        ((0, 0, 10, 0), "got 0"),
        ((-1, 0, 10, 2), "got -1 and 0"),
        ((0, -1, 10, 2), "got 0 and -1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        batch_indices(*arguments)


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_items_come_in_order_with_the_time_they_took():
    items = list(prefetch(lambda step: step**2, range(5)))
    assert [item for item, _ in items] == [0, 1, 4, 9, 16]
    assert all(waited >= 0 for _, waited in items)
    assert not threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_items_are_made_ahead_but_not_too_far(depth):
    taken = 0
    made = [threading.Event() for _ in range(8)]

    def make(step):
        assert step <= taken + depth  # the one asked for, and `depth` more
        made[step].set()
        return threading.current_thread().name

    for name, _ in prefetch(make, range(8), depth):
        assert name.startswith("prefetch")
        # While this item is in use, and before the next is asked for.
        assert made[min(taken + depth, 7)].wait(60)
        taken += 1
    assert taken == 8


def test_closing_ends_the_thread():
    items = prefetch(lambda step: step, itertools.count())
    assert [next(items)[0] for _ in range(3)] == [0, 1, 2]
    assert threads()
    items.close()
    assert not threads()


def test_an_exception_comes_in_its_turn():
    def make(step):
        if step == 2:
            raise KeyError("step 2")
        return step

    items = prefetch(make, range(5))
    assert [next(items)[0], next(items)[0]] == [0, 1]
    with pytest.raises(KeyError, match="step 2"):
        next(items)
    assert not threads()
    assert next(items, None) is None


def test_depth_out_of_range_is_refused():
    with pytest.raises(InputError, match="depth must be 1 or more, got 0"):
        next(prefetch(abs, range(3), depth=0))
