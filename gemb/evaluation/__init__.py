"""Scores, and whether one model is better than another.

`evaluate` scores a model on sets, `verdict` compares two score files, `agreement` two models.
May import: `embedding`, `datasets`, and what they may import.
"""
