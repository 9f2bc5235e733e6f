"""Django's mail in the transaction of its own PostgreSQL database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from picoqmail.postgresql.opening import open_postgresql
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path

    from rig.postgresql import PrivatePostgreSQL

_PROJECT = """
import json, os, sys
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": sys.argv[1],
        "USER": "postgres", "HOST": sys.argv[2]}},
    INSTALLED_APPS=["picoqmail.django"],
    EMAIL_BACKEND="picoqmail.django.EmailBackend",
    PICOQMAIL_HOME=sys.argv[3],
    PICOQMAIL_USING="default",
    USE_TZ=True,
)
django.setup()
from django.core.mail import send_mail
from django.db import connection, transaction
import picoqmail

def send(subject):
    assert 1 == send_mail(subject, "body", "a@example.org", ["b@example.net"])

with connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE trial_order (subject text)")
send("alone")
try:
    with transaction.atomic():
        send("rolled back")
        raise KeyError
except KeyError:
    pass
with transaction.atomic():
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO trial_order VALUES ('kept')")
    send("kept")
    receipt = picoqmail.Spool(sys.argv[3]).enqueue(
        b"Subject: by the library\\n\\n", "a@example.org", ["b@example.net"], connection="default")
print(json.dumps(receipt.durable))
"""


def test_mail_is_part_of_the_transaction(
    postgresql: PrivatePostgreSQL, database: str, tmp_path: Path
) -> None:
    """Rolled back it never was; committed it is due, and one statement alone is, too."""
    home = TemporaryHome(str(tmp_path / "home")).make()
    ran = subprocess.run(
        [sys.executable, "-c", _PROJECT, database, postgresql.directory, home.root],
        env={**os.environ, "PICOQMAIL_SEND": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "") == (ran.returncode, ran.stderr)
    assert not json.loads(ran.stdout)
    store = open_postgresql(postgresql.url(database))
    subjects = [b"".join(store.body(one)) for one in store.names()]
    store.close()
    found = [line for body in subjects for line in body.splitlines() if line.startswith(b"Subject")]
    assert [b"Subject: alone", b"Subject: by the library", b"Subject: kept"] == sorted(found)
    assert [] == home.files()
