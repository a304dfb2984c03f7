"""Disk, locks, streams and the terminal, for every other package.

`atomic` writes a whole file or none, `locks` keeps two processes from writing at once, `notes`
prints on stderr.
May import: `errors`, `arrays`.
"""
