"""install - tlsmgr-postfix(8): use this tlsmgr in a Postfix instance, or Postfix's own again.

``instance`` is a Postfix instance: its parameters, its tlsmgr service, its processes. ``launcher``
is the shell script under daemon_directory that master(8) starts. ``installation`` is where this
program is. ``trial`` is the test start. ``__main__`` has the three commands. Standard library
only: ``disable`` must work when a package is what broke.
"""
