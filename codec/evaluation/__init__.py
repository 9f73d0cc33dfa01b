"""``codec evaluate``: rate-distortion of models and of other codecs, by real files, in rows, curves, tables and plots."""
