"""tlsmgr - the TLS session cache and PRNG manager of a Postfix mail system, pre-forked."""

__version__ = "1.0"
