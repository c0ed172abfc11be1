"""accounts - the rules for mail_owner, default_privs and setgid_group.

`look_up` asks the user data base, once, before the program enters the jail; `check` is pure. A
broken rule is fatal, as it is for all of Postfix, because a shared user or group id would let
another program write to the queue. The program that a person starts runs as that person and calls
nothing here.

Rules and texts: Postfix mail_params.c.
"""

import grp
import pwd
from collections.abc import Iterator
from typing import NamedTuple

from tlsmgr.config.load import Configuration
from tlsmgr.log import Fatal


class User(NamedTuple):
    """The fields of a passwd(5) record that the rules use."""

    name: str
    uid: int
    gid: int


class Group(NamedTuple):
    """The fields of a group(5) record that the rules use."""

    name: str
    gid: int


class Accounts(NamedTuple):
    """The records of the users and the group that main.cf names; None for an unknown name.

    `owner_of_uid` is the first user with the user id of mail_owner, `owner_of_gid` the first group
    with the group id of setgid_group.
    """

    default_privs: User | None
    mail_owner: User | None
    owner_of_uid: User | None
    setgid_group: Group | None
    owner_of_gid: Group | None


def look_up(conf: Configuration) -> Accounts:
    """Return the records of the users and the group that main.cf names."""
    mail_owner = _find_user(conf.text("mail_owner"))
    setgid_group = _find_group(conf.text("setgid_group"))
    return Accounts(
        default_privs=_find_user(conf.text("default_privs")),
        mail_owner=mail_owner,
        owner_of_uid=_find_user(mail_owner.uid) if mail_owner else None,
        setgid_group=setgid_group,
        owner_of_gid=_find_group(setgid_group.gid) if setgid_group else None,
    )


def _find_user(key: str | int) -> User | None:
    """Return the record for a user's name or id."""
    try:
        record = pwd.getpwnam(key) if isinstance(key, str) else pwd.getpwuid(key)
    except KeyError:
        return None
    return User(record.pw_name, record.pw_uid, record.pw_gid)


def _find_group(key: str | int) -> Group | None:
    """Return the record for a group's name or id."""
    try:
        record = grp.getgrnam(key) if isinstance(key, str) else grp.getgrgid(key)
    except KeyError:
        return None
    return Group(record.gr_name, record.gr_gid)


def check(conf: Configuration, accounts: Accounts) -> User:
    """Return the record of mail_owner; raise Fatal with the first rule that is broken."""
    fault = next(_faults(conf, accounts), None)
    if fault:
        raise Fatal(f"file {conf.directory}/main.cf: {fault}")
    assert accounts.mail_owner is not None
    return accounts.mail_owner


def _faults(conf: Configuration, accounts: Accounts) -> Iterator[str]:
    """Yield the broken rules in Postfix's order; the caller must stop at the first one."""
    yield from _user_faults("default_privs", conf.text("default_privs"), accounts.default_privs)
    yield from _user_faults("mail_owner", conf.text("mail_owner"), accounts.mail_owner)
    assert accounts.default_privs
    assert accounts.mail_owner
    owner, other = accounts.mail_owner, accounts.owner_of_uid
    name = conf.text("mail_owner")
    if other and other.name != name:
        yield (
            f"parameter mail_owner: user {name} has the same user ID {owner.uid} "
            f"as user {other.name}"
        )
    group = conf.text("setgid_group")
    yield from _group_faults(group, accounts.setgid_group, accounts.owner_of_gid)
    assert accounts.setgid_group
    yield from _overlaps(conf, accounts.default_privs, owner, accounts.setgid_group)


def _user_faults(parameter: str, name: str, user: User | None) -> Iterator[str]:
    """A user must exist, and neither id may be that of root."""
    if user is None:
        yield f"parameter {parameter}: unknown user name value: {name}"
    elif user.uid == 0:
        yield f"parameter {parameter}: user {name} has privileged user ID"
    elif user.gid == 0:
        yield f"parameter {parameter}: user {name} has privileged group ID"


def _group_faults(name: str, group: Group | None, other: Group | None) -> Iterator[str]:
    """The set-gid group must exist, must not be root's, and must not share its id."""
    if group is None:
        yield f"parameter setgid_group: unknown group name: {name}"
    elif group.gid == 0:
        yield f"parameter setgid_group: group {name} has privileged group ID"
    elif other and other.name != name:
        yield (
            f"parameter setgid_group: group {name} has the same group ID {group.gid} "
            f"as group {other.name}"
        )


def _overlaps(conf: Configuration, privs: User, owner: User, group: Group) -> Iterator[str]:
    """mail_owner, default_privs and setgid_group must differ in each id."""
    privs_name, owner_name = conf.text("default_privs"), conf.text("mail_owner")
    group_name = conf.text("setgid_group")
    both = "parameters default_privs and mail_owner"
    users = f"users {privs_name} and {owner_name}"
    if privs_name == owner_name:
        yield f"{both} specify the same user {privs_name}"
    if privs.uid == owner.uid:
        yield f"{both}: {users} have the same user ID: {owner.uid}"
    if privs.gid == owner.gid:
        yield f"{both}: {users} have the same group ID: {owner.gid}"
    for parameter, user, name in (
        ("default_privs", privs, privs_name),
        ("mail_owner", owner, owner_name),
    ):
        if user.gid == group.gid:
            yield (
                f"parameters {parameter} and setgid_group: user {name} and group {group_name} "
                f"have the same group ID: {group.gid}"
            )
