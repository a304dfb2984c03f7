"""The formats of vector files: one table of names, suffixes, writers and readers.

`table` has an entry for each format; `lines`, `arrays` and `parquet` hold the families.
"""
