"""bench - the measuring tool behind scripts/tlsmgr-bench: loads on servers, side by side.

``main`` reads the command line; ``rounds``, ``scenes``, ``sweep`` and ``growth`` say what is done
to which server in which order; ``servers`` starts these, ``drive`` the load generators; ``measure``
turns one run into figures; ``report`` and ``plot`` show them. The load itself comes from
``generator.c``, or without a C compiler from ``generator``, which do what a file made by ``plan``
says. Nothing of the daemon imports anything from here.
"""
