"""Texts to vectors, and files of vectors.

`pipeline.Embedder` is an open model with its prompt and width, made by `Embedder.of`; `embed` takes
a stream of records through it, `text_vectors.text_vectors` a list. `vectors.VectorSpec` is
everything that determines the vector of a text. `run` is `gemb embed`: it writes into an
`output.Target`, with a `journal` from which a killed run resumes. `formats` writes and reads the
files, `store` keeps vectors by text, `nearest` finds the nearest ones.
May import: `plugins`, `backend`, `recipe`, `models`, `texts`, `io`, `errors`, `arrays`.
"""

DTYPES = ("f32", "f16", "int8", "ubinary")  # of stored numbers: `vectors.NUMBERS` has their sizes
