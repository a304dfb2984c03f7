"""Texts in: records of streams and tables, files of a tree, passages of a file.

`inputs` opens what a user names, `walk` finds the files of a folder, `passages` splits a text.
May import: `io`, `errors`, `arrays`.
"""
