"""Codecs compared at the same number of bytes, and the page that shows it."""
