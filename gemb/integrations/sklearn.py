"""scikit-learn: `make_pipeline(GembVectorizer(dim=256), LogisticRegression())`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from gemb.arrays import Vectors
from gemb.errors import UsageError
from gemb.integrations.shared import shared

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError:  # the class does the same without it, but for get_params

    class BaseEstimator:  # type: ignore[no-redef]
        """Stands in."""

    class TransformerMixin:  # type: ignore[no-redef]
        """Stands in."""


class GembVectorizer(TransformerMixin, BaseEstimator):
    """Texts to vectors, float32 [n, dim]; it learns nothing, and is pickled by its settings."""

    def __init__(
        self, model: str = "mini", task: str = "classification", dim: int | None = None
    ) -> None:
        """Take a reference, the task whose prompt texts get, and the width of the vectors."""
        self.model, self.task, self.dim = model, task, dim

    def fit(self, X: Iterable[str], y: object = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Return this: there is nothing to learn."""
        return self

    def transform(self, X: Iterable[str]) -> Vectors:  # noqa: N803
        """Return the vectors of texts.

        Raises:
            UsageError: they are a table, not one column of it.
        """
        if len(getattr(X, "shape", ())) > 1:
            raise UsageError("X is a table; give one column of texts: X['text']")
        return shared(self.model).encode(list(X), self.task, dim=self.dim)

    def __sklearn_is_fitted__(self) -> bool:
        return True
