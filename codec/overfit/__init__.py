"""Encoding with ``overfit``, which learns each picture anew: descents, targets, files, and where their bits are."""
