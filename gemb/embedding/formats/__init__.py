"""The formats of vector files.

`table.FORMATS` has an entry for each format, with the names of its writer and its reader, which are
in `lines`, `arrays` and `parquet`. `read.open_vectors` and `read.read_vectors` read a file by its
suffix. A new format is one entry and one file; it implements `base.VectorWriter` and
`base.VectorReader`.
"""
