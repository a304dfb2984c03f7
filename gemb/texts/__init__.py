"""Texts in: records of streams and tables, files of a tree, passages of a file.

`inputs` reads what a user names, `contents` decides what its bytes are, `walk` finds the files of a
folder, `passages` splits a text. May import: `io`, `errors`, `arrays`.
"""

INPUT_FORMATS = ("auto", "lines", "jsonl", "csv", "tsv", "parquet")  # auto: by name and bytes
PASSAGE_KINDS = ("auto", "lines", "code", "markdown", "prose")  # how a text becomes passages
BUDGET_S = 5.0  # of a search of files, if the user says nothing; at most 3 s of new vectors
