"""Logistic regression on standardised activations."""

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def logistic_regression() -> Pipeline:
    """The usual defaults (C = 1). A stronger prior would hide a weakly written trigger in a twin, and so flatter
    specificity.
    """
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
