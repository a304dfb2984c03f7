"""Training of drafts: a table of token vectors and a head, in the space of a teacher's vectors.

May import: `train`, `cut`, `model`.
"""
