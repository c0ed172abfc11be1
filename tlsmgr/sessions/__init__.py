"""sessions - TLS session caches in files that all workers share.

Workers use ``cache``, the janitor ``sweep``. Below them: ``store`` (the tables of a file),
``lmdb_file`` (the only file that imports lmdb), ``file`` (names, disk space, locks), ``seal``
(encryption), ``shared`` (what of a cache is in shared memory).
"""
