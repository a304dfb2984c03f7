"""An index: stored rows, and the scan over them.

`build` and `sync` write one, `reader` opens one, `ranking` finds the nearest rows.
May import: `embedding`, `datasets`, and what they may import.
"""
