"""config - main.cf as Postfix reads it, tlsmgr.cf with our own parameters, and their settings.

    syntax, expand, values     from bytes to assignments to text to values
    parameters, mail_params    the table of all parameters that are read
    postfix_names              the names of all other parameters of Postfix
    tlsmgr_cf                  the parameters of our own
    load                       all of it, frozen: `load` and `Configuration`
    maillog_client             the log destination
    accounts                   the user that the program runs as
    redirect                   files that go to data_directory instead
    caches                     settings of the session caches
    memcache_cf                the file of a `memcache:` table
    policy_digest              what tells that the TLS policy of smtpd(8) was changed

A start calls `maillog_client.connect_early`, `load.load`, `maillog_client.connect`,
`accounts.check`, and, as mail_owner, `caches.cache_settings`. Warnings go to a callable,
`log.warning`; a mistake that ends the start is `log.Fatal`.
"""
