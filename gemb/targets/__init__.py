"""Databases that hold the rows and vectors of an index: PostgreSQL, LanceDB, Qdrant.

`addresses` tells a target from a file, `connect` opens it, `base` has what all targets implement,
and one file each implements it. `sources` gives the rows, `push` brings a target up to date,
`readback` compares what is there, `search` asks it; `filters` reads `--where`. A target keeps what
its vectors are (`base.Content`) beside them, so that no other model's are added or asked for.
May import: search, index, embedding and what is below them.
"""
