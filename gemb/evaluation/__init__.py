"""Scores, and whether one model is better than another.

`evaluate` scores a model on sets by the `metrics` and the `linear_probe`, `scores` stores the
results, `verdict` compares two of them; `agreement` compares two models or two files of vectors,
`similarities` says how a model places pairs, `mteb` lets MTEB evaluate.
May import: `embedding`, `datasets`, and what they may import.
"""
