"""Many pictures at once: ``run`` encodes or decodes those of a folder, a list or a bucket; a run that was cut short goes on.

>>> from codec import batch
>>> summary = batch.run("photos", "coded", quality=40)
>>> summary.done, summary.failed, summary.target_bytes

Imports no torch: the workers do.
"""

from codec.batch.session import Summary, run

__all__ = ["Summary", "run"]
