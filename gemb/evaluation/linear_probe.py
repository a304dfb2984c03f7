"""A linear probe: multinomial logistic regression on frozen vectors.

The minimum of 1/2 |W|^2 + sum of the cross entropies, with an intercept that is not penalised:
scikit-learn's LogisticRegression with C = 1, as MTEB has it. The function is convex and the minimum
unique, so two right solvers agree; this one is L-BFGS (Nocedal and Wright 2006, algorithm 7.4).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gemb.arrays import Doubles

FOLDS = 5
MEMORY = 10  # pairs of steps and changes of the gradient
STEPS = 500
TOLERANCE = 1e-6  # largest entry of the gradient at the end, a row of the training part


def predictions(
    train: NDArray[np.float32], labels: Sequence[str], test: NDArray[np.float32]
) -> list[str]:
    """Return the label of each row of `test` [M, D] after training on `train` [N, D]."""
    names, classes = np.unique(np.array(labels), return_inverse=True)
    weights = fitted(train, classes, len(names))
    logits = test @ weights[:-1].astype(np.float32) + weights[-1]
    return [str(name) for name in names[logits.argmax(axis=1)]]


def folded(vectors: NDArray[np.float32], labels: Sequence[str]) -> list[str]:
    """Return the label of each row [N, D], each fifth after training on the others.

    The rows of each label are dealt to the folds in a fixed random order.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    names = np.array(labels)
    order = shuffled[np.argsort(names[shuffled], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % FOLDS
    predicted = np.empty(len(labels), object)
    for number in range(FOLDS):
        out = fold == number
        predicted[out] = predictions(vectors[~out], names[~out].tolist(), vectors[out])
    return [str(label) for label in predicted]


def fitted(x: NDArray[np.float32], classes: NDArray[np.int64], count: int) -> Doubles:
    """Return the weights, float64 [D + 1, count], the intercept last; x [N, D], classes [N]."""
    rows, width = x.shape
    targets = np.zeros((rows, count), np.float32)
    targets[np.arange(rows), classes] = 1

    def loss(flat: Doubles) -> tuple[float, Doubles]:
        weights = flat.reshape(width + 1, count)
        logits = x @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(rows), classes].sum(dtype=np.float64)
        shares = np.exp(logits)
        sums = shares.sum(axis=1, keepdims=True)
        shares /= sums
        shares -= targets
        value = float(np.log(sums).sum(dtype=np.float64) - chosen + (weights[:-1] ** 2).sum() / 2)
        gradient = np.vstack([x.T @ shares + weights[:-1], shares.sum(axis=0, dtype=np.float64)])
        return value, gradient.ravel()

    start = np.zeros((width + 1) * count)
    return minimum(loss, start, TOLERANCE * rows).reshape(width + 1, count)


def minimum(
    loss: Callable[[Doubles], tuple[float, Doubles]], point: Doubles, tolerance: float
) -> Doubles:
    """Return where a smooth convex function is least.

    Args:
        loss: returns its value and gradient.
        point: where to begin.
        tolerance: the largest entry of the gradient at the end.
    """
    value, gradient = loss(point)
    known: deque[tuple[Doubles, Doubles, float]] = deque(maxlen=MEMORY)
    for _ in range(STEPS):
        if np.abs(gradient).max() < tolerance:
            break
        way = _downhill(gradient, known)
        slope = float(way @ gradient)
        length = 1.0 if known else 1 / float(np.linalg.norm(gradient))
        while True:  # Armijo's rule
            new = point + length * way
            new_value, new_gradient = loss(new)
            if new_value <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-9:  # as near as the arithmetic comes
                return point
        step, change = new - point, new_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-12:
            known.append((step, change, curvature))
        point, value, gradient = new, new_value, new_gradient
    return point


def _downhill(gradient: Doubles, known: deque[tuple[Doubles, Doubles, float]]) -> Doubles:
    """Return minus the inverse Hessian, as far as the last steps tell it, times the gradient."""
    way = -gradient
    shares = []
    for step, change, curvature in reversed(known):
        share = float(step @ way) / curvature
        way = way - share * change
        shares.append(share)
    if known:
        _, change, curvature = known[-1]
        way = way * (curvature / float(change @ change))
    for (step, change, curvature), share in zip(known, reversed(shares), strict=True):
        way = way + (share - float(change @ way) / curvature) * step
    return way
