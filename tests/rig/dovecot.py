"""Dovecot's LMTP server in its own root directory: a reply and a Maildir for each recipient."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from attrs import evolve

from rig import maildir
from rig.private_root import PrivateRoot
from rig.server import DaemonRelay
from rig.waiting import accepts_on, answers, free_port

if TYPE_CHECKING:
    from rig.received import Received

CONFIGURATION = """\
protocols = lmtp
listen = 127.0.0.1
base_dir = /run/dovecot
log_path = /dev/stderr
ssl = no
hostname = dovecot.rig
postmaster_address = postmaster@dovecot.rig
mail_location = maildir:~/Maildir
first_valid_uid = 1
default_internal_user = dovecot
default_internal_group = dovecot
default_login_user = dovenull
lmtp_save_to_detail_mailbox = no
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = static
  args = uid=vmail gid=vmail home=/mail/%u
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener lmtp {{
    mode = 0666
  }}
}}
{settings}
"""
HELPERS = (
    "anvil",
    "auth",
    "config",
    "lmtp",
    "log",
    "stats",
    "modules/libssl_iostream_openssl.so",
)


class DovecotLmtp(DaemonRelay):
    """Dovecot on a free port of 127.0.0.1 and on `socket`, an LMTP server for every address.

    `settings` are more lines of dovecot.conf(5).
    """

    def __init__(self, settings: str = "") -> None:
        self.port = free_port()
        root = PrivateRoot(
            "dovecot",
            ["dovecot-core", "dovecot-lmtpd"],
            ["dovecot", "dovenull", "vmail", "nobody"],
            [
                "/usr/sbin/dovecot",
                "/usr/bin/doveconf",
                *(f"/usr/lib/dovecot/{name}" for name in HELPERS),
            ],
        )
        self.socket = root.inside("run/dovecot/lmtp")
        root.write(
            "etc/dovecot/dovecot.conf",
            CONFIGURATION.format(port=self.port, settings=settings),
        )
        root.own("mail", "vmail")
        super().__init__(
            root.command("/usr/sbin/dovecot", "-F", "-c", "/etc/dovecot/dovecot.conf"),
            root.path,
            output=root.inside("output"),
            ready=lambda: answers(self.port) and accepts_on(self.socket),
        )

    @property
    def messages(self) -> list[Received]:
        """The delivered messages, one for each recipient, without the fields that Dovecot added."""
        mail = os.path.join(self.directory, "mail")
        return [
            evolve(message, recipients=(user,))
            for user in sorted(os.listdir(mail))
            for message in maildir.messages(os.path.join(mail, user, "Maildir"))
        ]
