"""bench - the measuring tool behind scripts/tlsmgr-bench: loads on servers, side by side.

    main      from the command line (options) to the exit status
    servers   starts servers, or finds running ones
    loads     requests, the replies due to them, and plan files for generator.c
    drive     compiles and runs generator.c, the clients
    figures   one run's figures; medians and ratios over rounds
    runs      which load runs on which server, in which order; growth
    scenes    the seed load while something else goes on
    mail      messages that smtp(8) delivers over TLS with each server
    results   everything measured, for JSON; report shows it as tables, plot as a picture

    pool      a program of its own: the speed of the PRNG pool alone

It uses tests/support for private Postfix systems. Nothing in tlsmgr imports it.
"""
