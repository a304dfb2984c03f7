"""Texts to vectors, and files of vectors.

`pipeline.Embedder` is an open model with its prompt and width, made by `Embedder.of`; `embed` takes
a stream of records through it, `text_vectors` a list. `vectors.VectorSpec` is all that decides the
numbers for a text. `run` is `gemb embed`: into a `output.Target`, with a `journal` that a killed
run goes on from. `formats` writes and reads the files, `store` keeps vectors by text, `nearest`
finds the nearest ones.
May import: `plugins`, `backend`, `recipe`, `models`, `texts`, `io`, `errors`, `arrays`.
"""
