"""OpenSMTPD in its own root directory: no PIPELINING; one Maildir for every address."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from rig import certificates, maildir
from rig.private_root import PrivateRoot
from rig.programs import Daemon, discard
from rig.waiting import answers, free_port, wait_until

if TYPE_CHECKING:
    from typing import Self

    from rig.received import Received

CONFIGURATION = """\
pki rig cert "/etc/chain.pem"
pki rig key "/etc/key.pem"
table everybody {{ "@" = "vmail" }}
smtp max-message-size "50M"
listen on 127.0.0.1 port {port} {tls} hostname opensmtpd.rig
action inbox maildir "/mail/inbox" virtual <everybody>
{rules}
match from any for any action inbox
"""
PROGRAMS = ("mail.maildir", "mail.mda", "lockspool")


class OpenSMTPD:
    """OpenSMTPD on a free port of 127.0.0.1.

    It adds `Date` and `Message-ID` to a mail that lacks them. With `broken_tls` it offers STARTTLS,
    and every handshake fails, as on a real host: Debian 12's build cannot use a private key with
    OpenSSL 3 (its issue 1239). Without `broken_tls` it offers no TLS. `rules` are lines of
    smtpd.conf(5) before the one that accepts everything, such as
    `match from any for rcpt-to "no@example.net" reject`.
    """

    def __init__(self, rules: str = "", *, broken_tls: bool = False) -> None:
        self.host = "127.0.0.1"
        self.port = free_port()
        self.certificate = certificates.default()
        root = self._root = PrivateRoot(
            "opensmtpd",
            ["opensmtpd"],
            ["opensmtpd", "opensmtpq", "vmail", "nobody"],
            [
                "/usr/sbin/smtpd",
                "/usr/sbin/smtpctl",
                *(f"/usr/libexec/opensmtpd/{name}" for name in PROGRAMS),
                "/bin/sh",
            ],
        )
        tls = "tls pki rig" if broken_tls else ""
        root.write("etc/smtpd.conf", CONFIGURATION.format(port=self.port, rules=rules, tls=tls))
        root.write("etc/mailname", "opensmtpd.rig\n")
        for name, path in (("chain", self.certificate.chain), ("key", self.certificate.key)):
            shutil.copy(path, root.inside(f"etc/{name}.pem"))
        root.own("mail", "vmail")
        os.makedirs(root.inside("var/spool"), exist_ok=True)
        os.makedirs(root.inside("var/lib/opensmtpd/empty"), exist_ok=True)
        self.log = root.inside("output")
        self._inbox = root.inside("mail/inbox")
        self._daemon = Daemon(
            root.command("/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"),
            lambda: answers(self.port),
            self.log,
        )

    @property
    def address(self) -> str:
        """The value for `relayip`: host:port."""
        return f"{self.host}:{self.port}"

    @property
    def messages(self) -> list[Received]:
        """The delivered messages, one for each recipient, without the fields it added."""
        return maildir.messages(self._inbox)

    def wait_for(self, count: int, seconds: float = 60) -> list[Received]:
        """Return all messages as soon as there are `count`; TimeoutError after `seconds`."""
        wait_until(lambda: len(self.messages) >= count, f"{count} deliveries: {self.log}", seconds)
        return self.messages

    def __enter__(self) -> Self:
        self._daemon.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.__exit__()
        discard(self._root.path)
