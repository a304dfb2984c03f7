"""Questions, passages, hits, and how hits are shown.

`files` and `index` answer questions, `corpus` holds passages, `forms` prints hits.
May import: `index`, `evaluation`, and what they may import.
"""
