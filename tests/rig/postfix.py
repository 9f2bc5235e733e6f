"""A private instance of Postfix with its own configuration, queue and port."""

from __future__ import annotations

import os
import pwd
import subprocess
import tempfile
from typing import TYPE_CHECKING

from rig import certificates
from rig.programs import find, missing
from rig.server import DaemonRelay
from rig.waiting import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping


# The lines of master.cf that every Postfix needs to send mail.
DAEMONS = """\
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""
MASTER = f"""\
127.0.0.1:{{port}} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
{DAEMONS}verify unix - - n - 1 verify
virtual unix - n n - - virtual
discard unix - - n - - discard
"""


def stop(configuration: str) -> None:
    """End the daemons of a configuration directory: they may outlive their starter."""
    command = [find("postfix", "postfix"), "-c", configuration, "stop"]
    # An error means that they have ended already.
    subprocess.run(command, capture_output=True, timeout=60, check=False)


class Postfix(DaemonRelay):
    """Postfix on a free port of 127.0.0.1; it delivers every address into one Maildir.

    `settings` are added to main.cf, as `{"smtpd_recipient_restrictions": "check_recipient_access
    inline:{{no@example.net=550 5.1.1 no}}, permit"}`. Offers PIPELINING, SIZE, STARTTLS, 8BITMIME,
    DSN, SMTPUTF8 and CHUNKING. Needs root, as Postfix does.
    """

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        find("postfix", "postfix")
        if os.getuid() != 0:
            missing("a Postfix of our own can only be started by root")
        self.port = free_port()
        self.certificate = certificates.default()
        directory = tempfile.mkdtemp(prefix="rig-postfix-")
        os.chmod(directory, 0o755)
        log = os.path.join(directory, "maillog")
        self._configuration = self._configure(directory, log, settings or {})
        super().__init__(
            [find("postfix", "postfix"), "-c", self._configuration, "start-fg"],
            directory,
            output=os.path.join(directory, "output"),
            log=log,
            inbox=os.path.join(directory, "mail", "inbox"),
        )

    def _configure(self, directory: str, log: str, settings: Mapping[str, str]) -> str:
        nobody, postfix = pwd.getpwnam("nobody"), pwd.getpwnam("postfix")
        paths = {name: os.path.join(directory, name) for name in ("etc", "queue", "data", "mail")}
        for path in paths.values():
            os.mkdir(path, 0o755)
        os.chown(paths["data"], postfix.pw_uid, postfix.pw_gid)
        os.chown(paths["mail"], nobody.pw_uid, nobody.pw_gid)
        main = {
            "compatibility_level": "3.6",
            "queue_directory": paths["queue"],
            "data_directory": paths["data"],
            "maillog_file": log,
            "maillog_file_prefixes": directory,
            "myhostname": "postfix.rig",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            # Else it adds the header fields that a mail lacks, as to mail of its own users.
            "local_header_rewrite_clients": "",
            "smtpd_peername_lookup": "no",
            "smtpd_relay_restrictions": "reject_unauth_destination",
            "smtpd_recipient_restrictions": "permit",
            "smtpd_client_connection_count_limit": "0",
            "smtpd_tls_security_level": "may",
            "smtpd_tls_chain_files": f"{self.certificate.key}, {self.certificate.chain}",
            "smtputf8_enable": "yes",
            "message_size_limit": "52428800",
            "virtual_mailbox_limit": "0",
            "virtual_mailbox_domains": "static:all",
            "virtual_mailbox_base": paths["mail"],
            "virtual_mailbox_maps": "static:inbox/",
            "virtual_uid_maps": f"static:{nobody.pw_uid}",
            "virtual_gid_maps": f"static:{nobody.pw_gid}",
            "alias_maps": "",
            "alias_database": "",
            **settings,
        }
        with open(os.path.join(paths["etc"], "main.cf"), "w", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in main.items())
        with open(os.path.join(paths["etc"], "master.cf"), "w", encoding="utf-8") as file:
            file.write(MASTER.format(port=self.port))
        return paths["etc"]

    def stop(self) -> None:
        """End Postfix and its daemons, and remove its files."""
        stop(self._configuration)
        super().stop()
