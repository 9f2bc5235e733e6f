"""URLs of databases: what is ours in them, and that no password gets out."""

from __future__ import annotations

import pytest

from picoqmail.errors import ConfigurationError, PicoqmailError
from picoqmail.postgresql.address import is_database_url, read_url
from picoqmail.postgresql.opening import open_postgresql

SECRET = "s3cr3t-p%40ss"


def test_our_parameters_are_taken_out() -> None:
    """The driver would refuse them."""
    address = read_url("postgresql://joe@db:5433/mail?schema=outbox&lease=7.5&sslmode=require")
    assert "postgresql://joe@db:5433/mail?sslmode=require" == address.conninfo
    assert ("outbox", 7.5) == (address.schema, address.lease_seconds)
    assert "postgresql://joe@db:5433/mail" == address.location


def test_the_defaults() -> None:
    """A schema of our name, a lease of a minute."""
    address = read_url("postgres:///mail?host=/run/postgresql")
    assert ("picoqmail", 60.0) == (address.schema, address.lease_seconds)
    assert "postgresql:///mail?host=/run/postgresql" == address.location
    assert "postgresql:///mail?host=%2Frun%2Fpostgresql" == address.conninfo


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://joe:{SECRET}@db/mail",
        f"postgresql://joe@db/mail?password={SECRET}",
        f"postgresql://joe:{SECRET}@db:1,db2:2/mail?sslpassword={SECRET}",
    ],
)
def test_nobody_is_shown_a_password(url: str) -> None:
    """Neither whole nor decoded."""
    store = open_postgresql(url)
    shown = f"{store!r} {store.location} {store.address!r} {read_url(url)!s}"
    assert "s3cr3t" not in shown
    assert "joe@db" in shown


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://joe:{SECRET}@db/mail",
        f"postgresql://joe:{SECRET}@[db/mail",
        f"postgresql://joe:{SECRET}@db/mail?schema=Out-Box",
        f"postgresql://joe:{SECRET}@db/mail?schema=a;b",
        f"postgresql://joe:{SECRET}@db/mail?lease=soon",
        f"postgresql://joe:{SECRET}@db/mail?lease=0.1",
        f"postgresql://joe:{SECRET}@db/mail?lease=nan",
        f"postgresql://joe:{SECRET}@db:port/mail",
        f"postgresql://joe:{SECRET}@db/mail?unheard_of={SECRET}",
        f"postgresql://joe:{SECRET}@db/mail?connect_timeout=soon&password={SECRET}",
    ],
)
def test_a_url_that_cannot_be_used(url: str) -> None:
    """One line that says what to do, without the password, at the latest when it is used."""
    with pytest.raises(ConfigurationError) as found:
        open_postgresql(url).due(1)
    error: BaseException | None = found.value
    assert isinstance(error, PicoqmailError)
    assert 78 == error.sysexit
    assert "; " in str(error)
    assert "\n" not in str(error)
    while error is not None:
        assert "s3cr3t" not in f"{error!s} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_what_names_a_database() -> None:
    """And what a directory."""
    assert is_database_url("postgresql:///mail")
    assert is_database_url("postgres://db/mail")
    for path in ("/var/spool/mail", "postgresql", "./postgresql:", "postgresqlx://db"):
        assert not is_database_url(path)
