"""A filter as one of Qdrant, which knows the types of values: a text that is a number is a text.

Only for =, != and in a number is also compared with its digits. There are no patterns, no order of
texts and no functions.
"""

from __future__ import annotations

from typing import Any

from qdrant_client import models

from gemb.index.where import wrong
from gemb.targets.filters import All, AnyOf, Comparison, Condition, Constant, Not, is_long


def filter_of(condition: Condition) -> models.Filter:
    """Return the filter.

    Raises:
        UsageError: Qdrant has no such comparison.
    """
    match condition:
        case All(conditions):
            return models.Filter(must=[filter_of(part) for part in conditions])
        case AnyOf(conditions):
            return models.Filter(should=[filter_of(part) for part in conditions])
        case Not(All(conditions)):
            return filter_of(AnyOf(tuple(map(Not, conditions))))
        case Not(AnyOf(conditions)):
            return filter_of(All(tuple(map(Not, conditions))))
        case Not(Not(part)):
            return filter_of(part)
        case Not(part):
            return _opposite(part)
    if condition.operator == "!=":
        equal = Comparison(field=condition.field, operator="=", values=condition.values)
        return _opposite(equal)
    return models.Filter(should=_alternatives(condition))


def _opposite(condition: Condition) -> models.Filter:
    """Return the filter of rows that have the field, and do not satisfy the condition."""
    assert isinstance(condition, Comparison), "of others the parts are negated"
    if condition.operator == "!=":
        equal = Comparison(field=condition.field, operator="=", values=condition.values)
        return filter_of(equal)
    left_out: list[Any] = [filter_of(condition)]
    if condition.operator != "null":
        left_out.append(_is_empty(condition))
    return models.Filter(must_not=left_out)


def _alternatives(comparison: Comparison) -> list[Any]:
    key, values = _key(comparison), comparison.values
    if comparison.field.function:
        raise wrong(f"Qdrant has no {comparison.field.function}(FIELD)")
    match comparison.operator:
        case "null":
            return [_is_empty(comparison)]
        case "=" | "in" | "has":
            return [equal for value in values for equal in _equals(key, value)]
    if comparison.operator == "like" or comparison.type != "number":
        raise wrong(f"Qdrant has no {comparison.operator} of texts; =, in and has(FIELD, VALUE)")
    if comparison.operator == "between":
        bounds = models.Range(gte=float(values[0]), lte=float(values[1]))
    else:
        names = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}
        bounds = models.Range(**{names[comparison.operator]: float(values[0])})
    return [models.FieldCondition(key=key, range=bounds)]


def _equals(key: str, value: Constant) -> list[Any]:
    """Return the conditions of which one holds where a field is a constant, or its digits."""
    if isinstance(value, bool):
        words = [str(value).lower(), str(value), str(int(value))]
        matches: list[Any] = [models.MatchValue(value=value), models.MatchAny(any=words)]
        return [models.FieldCondition(key=key, match=match) for match in matches]
    if isinstance(value, str):
        same = [models.FieldCondition(key=key, match=models.MatchValue(value=value))]
        if value.isascii() and value.isdigit():
            number = models.Range(gte=int(value), lte=int(value))
            same.append(models.FieldCondition(key=key, range=number))
        return same
    if is_long(value):
        return [
            models.FieldCondition(key=key, match=models.MatchValue(value=int(value))),
            models.FieldCondition(key=key, match=models.MatchValue(value=f"{value}")),
        ]
    return [
        models.FieldCondition(key=key, range=models.Range(gte=value, lte=value)),
        models.FieldCondition(key=key, match=models.MatchValue(value=f"{value}")),
    ]


def _is_empty(comparison: Comparison) -> models.IsEmptyCondition:
    return models.IsEmptyCondition(is_empty=models.PayloadField(key=_key(comparison)))


def _key(comparison: Comparison) -> str:
    field = comparison.field
    return field.name if field.is_column else f"kept.{field.name}"
