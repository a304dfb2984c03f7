"""Texts to vectors, and files of vectors.

`pipeline` turns records into rows with vectors, `run` is `gemb embed`, `store` keeps them by text.
May import: `plugins`, `backend`, `recipe`, `models`, `texts`, `io`, `errors`, `arrays`.
"""
