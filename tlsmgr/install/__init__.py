"""switching - tlsmgr-postfix(8): put this tlsmgr in the place of Postfix's own, and back.

``instance`` is one Postfix system as seen through postconf(1) and postfix(1), ``launcher`` the file
under daemon_directory that master(8) starts, ``trial`` what is tried before anything is changed,
``__main__`` the three commands. Standard library only, like all that it imports: the way back must
not depend on packages that may be what broke.
"""
