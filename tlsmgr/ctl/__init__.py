"""ctl - tlsmgrctl(1): a file for each command, and what the commands share.

    main, requests          the command line, and the commands that are one request
    instance                which tlsmgr is asked
    status, status_fetch    the status object, and the command that shows it
    top                     the same again and again, on the whole terminal
    sessions, rotate        list and drop; a new session ticket key
    metrics                 the status object for Prometheus
    check                   mistakes in the configuration: facts, then findings, then commands
    farm                    the secret file of a farm
    report                  the mail log: log_files, mail_log, then counts
    quantities              numbers as people read them

Files named `_view` turn an object into lines, and do nothing else.
"""
