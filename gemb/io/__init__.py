"""Disk, locks, streams and the terminal: what every other package stands on.

`atomic` writes a whole file or none, `locks` keeps two processes apart, `notes` speaks on stderr.
May import: `errors`, `arrays`.
"""
