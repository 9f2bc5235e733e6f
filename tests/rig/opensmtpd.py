"""OpenSMTPD in its own root directory: no PIPELINING; one Maildir for every address."""

from __future__ import annotations

import os
import shutil

from rig import certificates
from rig.private_root import PrivateRoot
from rig.server import DaemonRelay
from rig.waiting import free_port

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


class OpenSMTPD(DaemonRelay):
    """OpenSMTPD on a free port of 127.0.0.1.

    It adds `Date` and `Message-ID` to a mail that lacks them. With `broken_tls` it offers STARTTLS,
    and every handshake fails, as on a real host: Debian 12's build cannot use a private key with
    OpenSSL 3 (its issue 1239). Without `broken_tls` it offers no TLS. `rules` are lines of
    smtpd.conf(5) before the one that accepts everything, such as
    `match from any for rcpt-to "no@example.net" reject`.
    """

    def __init__(self, rules: str = "", *, broken_tls: bool = False) -> None:
        self.port = free_port()
        self.certificate = certificates.default()
        root = PrivateRoot(
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
        super().__init__(
            root.command("/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"),
            root.path,
            output=root.inside("output"),
            inbox=root.inside("mail/inbox"),
        )
