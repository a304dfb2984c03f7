"""The index: a folder of rows, their vectors and sign codes, that stays whole whatever happens."""
