"""Probes by name: each an unfitted scikit-learn estimator whose `cell_scores` fits and scores a whole grid in one pass.

| name | when |
|---|---|
| mean_difference | few prompts; a direction to ablate or to steer with |
| lda | features vary together, prompts are few: the usual second choice |
| mass_mean | as published, for comparison; many prompts per feature |
| logistic_regression | many prompts, and a control to hold it against |
| principal_component | does the trigger dominate? Labels only orient it |
| contrast_consistent | the same within pairs: `groups` says which prompts pair |
| mahalanobis | trusted prompts only, one cloud |
| nearest_neighbours | trusted prompts only, any number of clusters |
| local_outlier_factor | trusted prompts only, clusters of different density |

Pooled probes read all tokens of a prompt: attention_pooled where the tell may be anywhere, max_pooled where it is one
token. The three detectors are larger for what is anomalous in `cell_scores` and `anomaly_score`, and keep
scikit-learn's sign, larger for what is normal, in `decision_function`.
"""

from collections.abc import Callable

from .anomaly import AnomalyDetector
from .attention_pooled import AttentionPooled
from .contrast_consistent import ContrastConsistent
from .lda import LinearDiscriminant
from .linear import LinearProbe
from .local_outlier_factor import LocalOutlierFactorDetector
from .logistic_regression import LogisticRegressionProbe
from .mahalanobis import MahalanobisDistance
from .mass_mean import MassMean
from .max_pooled import MaxPooled
from .mean_difference import MeanDifference
from .nearest_neighbours import NearestNeighbourDistance
from .pooled import PooledProbe
from .principal_component import PrincipalComponent

PROBES: dict[str, Callable[[], LinearProbe | AnomalyDetector]] = {
    "mean_difference": MeanDifference,
    "logistic_regression": LogisticRegressionProbe,
    "lda": LinearDiscriminant,
    "mass_mean": MassMean,
    "principal_component": PrincipalComponent,
    "contrast_consistent": ContrastConsistent,
    "mahalanobis": MahalanobisDistance,
    "local_outlier_factor": LocalOutlierFactorDetector,
    "nearest_neighbours": NearestNeighbourDistance,
}
POOLED: dict[str, Callable[[], PooledProbe]] = {
    "attention_pooled": AttentionPooled,
    "max_pooled": MaxPooled,
}

__all__ = [
    "POOLED",
    "PROBES",
    "AnomalyDetector",
    "AttentionPooled",
    "ContrastConsistent",
    "LinearDiscriminant",
    "LinearProbe",
    "LocalOutlierFactorDetector",
    "LogisticRegressionProbe",
    "MahalanobisDistance",
    "MassMean",
    "MaxPooled",
    "MeanDifference",
    "NearestNeighbourDistance",
    "PooledProbe",
    "PrincipalComponent",
]
