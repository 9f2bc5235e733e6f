"""Django's mail in the transaction of its own PostgreSQL database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from typing import TYPE_CHECKING

from picoqmail.postgresql.address import read_url
from picoqmail.postgresql.migration import applied, migrate, migrations
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.postgresql.versions import PROGRAM_VERSION
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


_SETTINGS = """
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    "shop": {"ENGINE": "django.db.backends.postgresql", "NAME": "%s",
        "USER": "postgres", "HOST": "%s"},
}
INSTALLED_APPS = ["picoqmail.django"]
EMAIL_BACKEND = "picoqmail.django.EmailBackend"
PICOQMAIL_HOME = "%s"
PICOQMAIL_SEND = False
PICOQMAIL_USING = "shop"
USE_TZ = True
"""

_SEND = """
from django.core.mail import send_mail
send_mail("s", "b", "a@example.org", ["b@example.net"])
"""


def test_migrate_makes_the_tables(postgresql: PrivatePostgreSQL, tmp_path: Path) -> None:
    """Those of Django and of picoqmail find done what the other one did; elsewhere is nothing."""
    database = postgresql.make_database()
    address = read_url(postgresql.url(database))
    home = TemporaryHome(str(tmp_path / "home")).make(relay="127.0.0.1:1")
    (tmp_path / "shop_settings.py").write_text(
        _SETTINGS % (database, postgresql.directory, home.root), encoding="utf-8"
    )

    def manage(*words: str, code: int = 0) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "django", *words],
            cwd=tmp_path,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "shop_settings"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (code, "") == (ran.returncode, ran.stderr)
        return ran.stdout

    assert "CREATE TABLE picoqmail.message" in manage(
        "sqlmigrate", "picoqmail", "0001", "--database=shop"
    )
    assert "CREATE TABLE" not in manage("sqlmigrate", "picoqmail", "0001")
    assert "No changes" in manage("makemigrations", "--check", "--dry-run")
    assert "no issues" in manage("check")
    assert 0 == applied(address)
    assert "0001_messages... OK" in manage("migrate", "--database=shop")
    assert PROGRAM_VERSION == applied(address)
    assert [] == migrate(address)
    manage("shell", "-c", _SEND)
    store = open_postgresql(postgresql.url(database))
    assert 1 == len(store.names())
    store.close()
    assert "OK" in manage("migrate", "picoqmail", "zero", "--database=shop")
    assert "OK" in manage("migrate", "--database=shop")
    assert "OK" in manage("migrate")


def test_a_migration_of_django_for_each_file() -> None:
    """They have the same names."""
    found = resources.files("picoqmail.django.migrations").iterdir()
    names = sorted(file.name for file in found if file.name[0] in "0123456789")
    assert [name.replace(".sql", ".py") for _, name, _ in migrations()] == names
