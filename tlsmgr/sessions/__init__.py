"""sessions - TLS session caches on a file that all workers share.

``cache`` is what workers call, ``sweep`` what the parent runs; ``store`` alone knows LMDB, ``seal``
what a record looks like, ``shared`` what of a cache lies in shared memory.
"""
