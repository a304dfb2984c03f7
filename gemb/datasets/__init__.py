"""Training rows and evaluation sets.

`files` and `columns` read what users have, `rows` serves it at random, `sets` are evaluation sets.
May import: `plugins`, `backend`, `recipe`, `models`, `texts`, `io`, `errors`, `arrays`.
"""
