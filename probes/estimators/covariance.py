"""Covariances of many cells: Ledoit and Wolf's shrinkage, and solving without ever forming more than is needed.

Where there are more features than prompts, a covariance is a diagonal and a few rows; all that is asked of it then costs
prompts², not d².
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def ledoit_wolf(X: Float[Tensor, "cell prompt d"]) -> tuple[Float[Tensor, "cell"], Float[Tensor, "cell"]]:
    """Shrinkage and mean variance of centred cells: the covariance is (1 - shrinkage) XᵀX/n + shrinkage · variance · I.

    Equal to `sklearn.covariance.ledoit_wolf`. Source: Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices" (2004), section 3.
    """
    n, d = X.shape[1:]
    squares = torch.linalg.vector_norm(X, dim=2).square()
    variance = squares.sum(1) / (n * d)
    if d == 1:
        return torch.zeros_like(variance), variance
    gram = X.mT @ X if d <= n else X @ X.mT  # of the same Frobenius norm
    norm = torch.linalg.vector_norm(gram, dim=(1, 2)).square() / n**2
    error = ((squares.square().sum(1) / n - norm) / n).clamp(min=0)
    spread = (norm - d * variance.square()).clamp(min=0)
    return torch.where(error > 0, torch.minimum(error, spread) / spread, 0).nan_to_num(0), variance


def solve_rows(
    diagonal: Float[Tensor, "cell d"], rows: Float[Tensor, "cell n d"], target: Float[Tensor, "cell d k"]
) -> Float[Tensor, "cell d k"]:
    """(diag(`diagonal`) + `rows`ᵀ `rows`)⁻¹ `target`, by Woodbury's identity where there are fewer rows than features.

    A cell's `diagonal` is all positive or all 0. If 0, as where shrinkage is, a singular matrix is pseudo-inverted, but
    nearly so (ridge of 1e-6 of the mean variance) where there are fewer rows; and if the rows are 0 too, `target` comes
    back as it is: nothing is known of scale, and what tells two constants apart should not be lost.
    """
    spread = torch.linalg.vector_norm(rows, dim=(1, 2)).square() / rows.shape[2]
    ridge = 1e-6 * spread if rows.shape[2] > rows.shape[1] else torch.zeros_like(spread)
    diagonal = torch.where(diagonal > 0, diagonal, torch.where(spread > 0, ridge, 1)[:, None])
    if rows.shape[2] <= rows.shape[1]:
        matrix = rows.mT @ rows
        matrix.diagonal(dim1=1, dim2=2).add_(diagonal)
        return solve_positive(matrix, target)
    scaled = rows / diagonal[:, None]
    matrix = rows @ scaled.mT
    matrix.diagonal(dim1=1, dim2=2).add_(1)
    return target / diagonal[..., None] - scaled.mT @ solve_positive(matrix, scaled @ target)


def solve_positive(matrix: Float[Tensor, "cell d d"], target: Float[Tensor, "cell d k"]) -> Float[Tensor, "cell d k"]:
    """`matrix`⁻¹ `target` by Cholesky, and by the pseudo-inverse in the cells that are singular to rounding."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    largest = matrix.diagonal(dim1=1, dim2=2).amax(1)
    singular = (failed > 0) | (pivots.amin(1) <= matrix.shape[1] * torch.finfo(matrix.dtype).eps * largest)
    solved = torch.cholesky_solve(target, factor)
    if singular.any():
        solved[singular] = torch.linalg.pinv(matrix[singular], hermitian=True) @ target[singular]
    return solved
