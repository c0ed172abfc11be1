"""The configuration: main.cf as Postfix reads it, tlsmgr.cf for what is ours, and what follows.

    syntax, expand, values     from bytes to assignments to text to values
    parameters                 the table of all parameters
    load                       the whole of it, frozen: `load` and `Configuration`
    maillog                    the log destination that it asks for
    accounts                   the user that the program runs as
    redirect                   files that go to data_directory instead
    randomness, caches         settings of the pool and of the session caches

A start reads: `maillog.connect_early`, `load.load`, `maillog.connect`, `accounts.check`, and, as
mail_owner, `randomness.random_settings` and `caches.cache_settings`. Warnings go to a callable,
`log.warning`; whatever is fatal is `log.Fatal`.
"""
