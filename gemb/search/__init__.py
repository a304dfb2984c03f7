"""Questions, passages, hits, and how hits are shown.

`run` answers questions over files or an index, `corpus` holds passages, `forms` prints hits.
May import: `index`, `evaluation`, and what they may import.
"""
