"""A linear probe: multinomial logistic regression on frozen vectors.

It minimizes 1/2 |W|^2 + the sum of the cross entropies, with an intercept that is not penalised, as
MTEB does with scikit-learn's LogisticRegression, C = 1. The function is convex and its minimum
unique, so correct solvers agree; this one is L-BFGS (Nocedal and Wright 2006, algorithm 7.4).
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
TOLERANCE = 1e-6  # largest gradient entry at the end, per row of the training part


def predictions(
    train: NDArray[np.float32], labels: Sequence[str], test: NDArray[np.float32]
) -> list[str]:
    """Return the label of each row of `test` [M, D] after training on `train` [N, D]."""
    names, classes = np.unique(np.array(labels), return_inverse=True)
    weights = fitted(train, classes, len(names))
    logits = test @ weights[:-1].astype(np.float32) + weights[-1]
    return [str(name) for name in names[logits.argmax(axis=1)]]


def folded(vectors: NDArray[np.float32], labels: Sequence[str]) -> list[str]:
    """Return the label of each row [N, D], predicted by cross-validation in five folds.

    The rows of each label are dealt to the folds in a fixed random order.
    """
    shuffled = np.random.default_rng(0).permutation(len(labels))
    names = np.array(labels)
    order = shuffled[np.argsort(names[shuffled], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[order] = np.arange(len(labels)) % FOLDS
    predicted = np.empty(len(labels), object)
    for number in range(FOLDS):
        held_out = fold == number
        train, labels_of_train = vectors[~held_out], names[~held_out].tolist()
        predicted[held_out] = predictions(train, labels_of_train, vectors[held_out])
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
    """Return the point where a smooth convex function has its minimum.

    Args:
        loss: returns its value and gradient.
        point: where to begin.
        tolerance: the largest entry of the gradient at the end.
    """
    value, gradient = loss(point)
    history: deque[tuple[Doubles, Doubles, float]] = deque(maxlen=MEMORY)
    for _ in range(STEPS):
        if np.abs(gradient).max() < tolerance:
            break
        direction = _downhill(gradient, history)
        slope = float(direction @ gradient)
        length = 1.0 if history else 1 / float(np.linalg.norm(gradient))
        while True:  # Armijo's rule
            new = point + length * direction
            new_value, new_gradient = loss(new)
            if new_value <= value + 1e-4 * length * slope:
                break
            length /= 2
            if length < 1e-9:  # the limit of the arithmetic
                return point
        step, change = new - point, new_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-12:
            history.append((step, change, curvature))
        point, value, gradient = new, new_value, new_gradient
    return point


def _downhill(gradient: Doubles, history: deque[tuple[Doubles, Doubles, float]]) -> Doubles:
    """Return minus the inverse Hessian, estimated from the last steps, times the gradient."""
    direction = -gradient
    shares = []
    for step, change, curvature in reversed(history):
        share = float(step @ direction) / curvature
        direction = direction - share * change
        shares.append(share)
    if history:
        _, change, curvature = history[-1]
        direction = direction * (curvature / float(change @ change))
    for (step, change, curvature), share in zip(history, reversed(shares), strict=True):
        direction = direction + (share - float(change @ direction) / curvature) * step
    return direction
