"""The order of training data: exact shares, complete rounds, and independence of workers."""
from collections import Counter
from math import gcd

import numpy as np
import pytest

from rdbm_plugin.data.task_mixture import TaskMixture, counts_of_weights


@pytest.mark.parametrize('counts', [[4] * 5, [1], [1, 2, 7], [3, 3, 1], [10, 1]])
@pytest.mark.parametrize('multiple', [1, 3])
def test_every_batch_holds_exactly_its_counts(counts, multiple):
    mixture = TaskMixture([7] * len(counts), counts, seed=0)
    batch = multiple * sum(counts)
    for number in range(20):
        tasks = Counter(mixture.draw(number * batch + place).task for place in range(batch))
        assert tasks == {task: multiple * count for task, count in enumerate(counts)}


def test_tasks_alternate_rather_than_come_in_blocks():
    """So that batches that are no multiple of the period are balanced as well as can be."""
    mixture = TaskMixture([9] * 3, [4, 4, 2], seed=0)
    for start in range(40):
        tasks = Counter(mixture.draw(start + place).task for place in range(5))
        assert abs(tasks[0] - 2) <= 1 and abs(tasks[1] - 2) <= 1 and abs(tasks[2] - 1) <= 1


def test_no_image_comes_twice_before_all_came_once():
    sizes = [3, 11, 40]
    mixture = TaskMixture(sizes, [2, 1, 3], seed=5)
    seen = [[], [], []]
    for place in range(6 * 400):
        draw = mixture.draw(place)
        assert draw.number == len(seen[draw.task])
        seen[draw.task].append(mixture.image(draw.task, draw.number))
    for size, images in zip(sizes, seen):
        rounds = [images[i:i + size] for i in range(0, len(images) - size + 1, size)]
        assert len(rounds) > 10 and all(sorted(each) == list(range(size)) for each in rounds)
        assert rounds[0] != rounds[1]


def test_seed_changes_order_and_randomness_and_repeats_them():
    first, again, other = (TaskMixture([100, 100], [1, 1], seed) for seed in (1, 1, 2))

    def content(mixture):
        draws = [mixture.draw(place) for place in range(40)]
        return [(mixture.image(draw.task, draw.number), draw.rng.random()) for draw in draws]

    assert content(first) == content(again) != content(other)


def test_randomness_of_neighbouring_places_is_independent():
    mixture = TaskMixture([10], [1], seed=0)
    values = np.array([mixture.draw(place).rng.random() for place in range(4000)])
    assert len(set(values)) == 4000
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.05


@pytest.mark.parametrize('weights', [[1, 1, 1], [5, 3, 2], [0.1, 0.9], [1e-3, 1, 1]])
def test_weights_are_met_as_closely_as_whole_numbers_can(weights):
    counts = counts_of_weights(weights)
    assert sum(counts) == 1000 and gcd(*counts) >= 1
    assert np.abs(np.array(counts) / 1000 - np.array(weights) / sum(weights)).max() < 1e-3
