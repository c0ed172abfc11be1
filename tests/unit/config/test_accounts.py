"""mail_owner, default_privs and setgid_group: who may share what with whom."""

import dataclasses
import os
import pwd
from pathlib import Path

import pytest

from tlsmgr.config.accounts import Accounts, Group, User, check, look_up
from tlsmgr.config.load import Configuration, load
from tlsmgr.log import Fatal

NOBODY = User("nobody", 65534, 65534)
POSTFIX = User("postfix", 102, 105)
POSTDROP = Group("postdrop", 106)
GOOD = Accounts(NOBODY, POSTFIX, POSTFIX, POSTDROP, POSTDROP)


@pytest.fixture
def conf(tmp_path: Path) -> Configuration:
    return load(str(tmp_path), pytest.fail, optional=True)


def test_accounts_of_a_usual_system_are_good(conf: Configuration) -> None:
    assert check(conf, GOOD) == POSTFIX


@pytest.mark.parametrize(
    ("accounts", "text"),
    [
        (
            GOOD._replace(default_privs=None),
            "parameter default_privs: unknown user name value: nobody",
        ),
        (
            GOOD._replace(default_privs=User("nobody", 0, 1)),
            "parameter default_privs: user nobody has privileged user ID",
        ),
        (
            GOOD._replace(default_privs=User("nobody", 1, 0)),
            "parameter default_privs: user nobody has privileged group ID",
        ),
        (
            GOOD._replace(mail_owner=None, owner_of_uid=None),
            "parameter mail_owner: unknown user name value: postfix",
        ),
        (
            GOOD._replace(mail_owner=User("postfix", 0, 105)),
            "parameter mail_owner: user postfix has privileged user ID",
        ),
        (
            GOOD._replace(mail_owner=User("postfix", 102, 0)),
            "parameter mail_owner: user postfix has privileged group ID",
        ),
        (
            GOOD._replace(owner_of_uid=User("first", 102, 1)),
            "parameter mail_owner: user postfix has the same user ID 102 as user first",
        ),
        (
            GOOD._replace(setgid_group=None, owner_of_gid=None),
            "parameter setgid_group: unknown group name: postdrop",
        ),
        (
            GOOD._replace(setgid_group=Group("postdrop", 0)),
            "parameter setgid_group: group postdrop has privileged group ID",
        ),
        (
            GOOD._replace(owner_of_gid=Group("first", 106)),
            "parameter setgid_group: group postdrop has the same group ID 106 as group first",
        ),
        (
            GOOD._replace(default_privs=User("nobody", 102, 1)),
            "parameters default_privs and mail_owner: users nobody and postfix "
            "have the same user ID: 102",
        ),
        (
            GOOD._replace(default_privs=User("nobody", 1, 105)),
            "parameters default_privs and mail_owner: users nobody and postfix "
            "have the same group ID: 105",
        ),
        (
            GOOD._replace(default_privs=User("nobody", 1, 106)),
            "parameters default_privs and setgid_group: user nobody and group postdrop "
            "have the same group ID: 106",
        ),
        (
            GOOD._replace(mail_owner=User("postfix", 102, 106)),
            "parameters mail_owner and setgid_group: user postfix and group postdrop "
            "have the same group ID: 106",
        ),
    ],
)
def test_each_rule_in_postfix_words(conf: Configuration, accounts: Accounts, text: str) -> None:
    with pytest.raises(Fatal) as caught:
        check(conf, accounts)
    assert caught.value.text == f"file {conf.directory}/main.cf: {text}"


def test_one_user_for_both_is_fatal(conf: Configuration) -> None:
    values = {**conf.values, "default_privs": "postfix"}
    with pytest.raises(Fatal) as caught:
        check(dataclasses.replace(conf, values=values), GOOD._replace(default_privs=POSTFIX))
    text = "parameters default_privs and mail_owner specify the same user postfix"
    assert caught.value.text == f"file {conf.directory}/main.cf: {text}"


def test_look_up_asks_the_system(conf: Configuration) -> None:
    me = pwd.getpwuid(os.getuid())
    values = {
        **conf.values,
        "mail_owner": me.pw_name,
        "default_privs": "no such user",
        "setgid_group": "no such group",
    }
    accounts = look_up(dataclasses.replace(conf, values=values))
    myself = User(me.pw_name, me.pw_uid, me.pw_gid)
    assert accounts == Accounts(None, myself, myself, None, None)
