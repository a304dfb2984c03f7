"""Search: from files and rows to ranked hits, and how they are shown."""
