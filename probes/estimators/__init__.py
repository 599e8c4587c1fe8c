"""Probes by name, each a factory of an unfitted scikit-learn classifier with `decision_function`."""

from collections.abc import Callable
from typing import Any

from .logistic_regression import logistic_regression
from .mean_difference import MeanDifference

PROBES: dict[str, Callable[[], Any]] = {
    "mean_difference": MeanDifference,
    "logistic_regression": logistic_regression,
}

__all__ = ["PROBES", "MeanDifference", "logistic_regression"]
