"""Exim in its own root directory: AUTH, STARTTLS, CHUNKING; one Maildir for every address."""

from __future__ import annotations

import os
import shutil

from rig import certificates
from rig.private_root import PrivateRoot
from rig.server import DaemonRelay
from rig.waiting import free_port

CONFIGURATION = """\
primary_hostname = exim.rig
local_interfaces = 127.0.0.1
log_file_path = /var/log/exim4/%slog
keep_environment =
rfc1413_query_timeout = 0s
smtp_accept_max = 200
smtp_accept_queue_per_connection = 0
message_size_limit = 50M
tls_advertise_hosts = *
tls_certificate = /etc/exim4/chain.pem
tls_privatekey = /etc/exim4/key.pem
auth_advertise_hosts = *
chunking_advertise_hosts = *
dsn_advertise_hosts = *
acl_smtp_rcpt = rcpt
acl_smtp_data = data
never_users =
{settings}

begin acl
rcpt:
{rcpt}
  accept
data:
{data}
  accept

begin routers
everybody:
  driver = accept
  transport = inbox

begin transports
inbox:
  driver = appendfile
  directory = /mail/inbox
  maildir_format
  create_directory
  delivery_date_add
  envelope_to_add
  return_path_add
  user = vmail

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{ann}}}}{{eq{{$auth3}}{{secret}}}}}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${{if and{{{{eq{{$auth1}}{{ann}}}}{{eq{{$auth2}}{{secret}}}}}}}}
  server_set_id = $auth1
"""


class Exim(DaemonRelay):
    """Exim on a free port of 127.0.0.1; AUTH PLAIN and LOGIN know ann, whose password is secret.

    `rcpt` and `data` are statements of Exim's ACL language before the final accept, such as
    `deny condition = ${if eq{$local_part}{no}}`. `settings` are main options.
    """

    def __init__(self, *, rcpt: str = "", data: str = "", settings: str = "") -> None:
        self.port = free_port()
        self.certificate = certificates.default()
        root = PrivateRoot(
            "exim",
            ["exim4-base", "exim4-daemon-light"],
            ["Debian-exim", "vmail", "mail", "nobody"],
            ["/usr/sbin/exim4"],
        )
        root.write(
            "etc/exim4/exim4.conf",
            CONFIGURATION.format(rcpt=rcpt, data=data, settings=settings),
        )
        for name, path in (("chain", self.certificate.chain), ("key", self.certificate.key)):
            target = root.inside(f"etc/exim4/{name}.pem")
            shutil.copy(path, target)
            os.chown(target, root.uids["Debian-exim"], root.uids["Debian-exim"])
        for directory in ("var/spool/exim4", "var/log/exim4", "run/exim4"):
            root.own(directory, "Debian-exim", 0o750)
        root.own("mail", "vmail")
        super().__init__(
            root.command("/usr/sbin/exim4", "-bdf", "-oX", str(self.port)),
            root.path,
            output=root.inside("output"),
            log=root.inside("var/log/exim4/mainlog"),
            inbox=root.inside("mail/inbox"),
        )
