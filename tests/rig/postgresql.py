"""A private PostgreSQL and a private PgBouncer, both on sockets in a directory of their own.

Neither runs as root: where the tests do, Debian's user `postgres` runs them.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

import psycopg

from rig.programs import START_SECONDS, STOP_SECONDS, discard, find, missing
from rig.waiting import POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

SUPERUSER = "postgres"
# A test that is not about durability waits for no disk.
_QUICK = {"fsync": "off", "full_page_writes": "off"}
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "autovacuum": "off",
    "log_line_prefix": "%m [%p] ",
}


def _account() -> dict[str, Any]:
    """Return as whom a server is started: not as root."""
    if os.getuid() != 0:
        return {}
    try:
        account = pwd.getpwnam(SUPERUSER)
    except KeyError:
        missing("no user postgres here: apt-get install postgresql")
        raise AssertionError("unreachable: missing() does not return") from None
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _make_directory(prefix: str, within: str = "/tmp") -> str:
    """Make a directory for a server and its socket; the path of a socket has 107 octets at most."""
    directory = tempfile.mkdtemp(prefix=prefix, dir=within)
    account = _account()
    if account:
        os.chown(directory, account["user"], account["group"])
    # Clients of any user may connect: who may do what is the server's to decide.
    os.chmod(directory, 0o711)
    return directory


class PrivatePostgreSQL:
    """A cluster of its own: started on entry, stopped and removed on exit.

    With `durable` it waits for the disk as a real one; else a crash of the machine would lose all,
    but a crash of the server nothing. `settings` are more of its settings.
    """

    def __init__(
        self, *, durable: bool = False, port: int = 0, within: str = "/tmp", **settings: str
    ) -> None:
        """`within` is the directory in which it makes its own, on the disk that is to be used."""
        self.directory = ""
        self._within = within
        self._settings = {**_SETTINGS, **({} if durable else _QUICK), **settings}
        self._port = port
        if port:
            self._settings["listen_addresses"] = "127.0.0.1"
            self._settings["port"] = str(port)
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self._idle: list[str] = []

    def __enter__(self) -> Self:
        self.directory = _make_directory("pg-", self._within)
        words = ["-A", "trust", "-U", SUPERUSER, "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run(
            [self._program("initdb"), "-D", self.data, *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.directory,
            **_account(),
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        discard(self.directory)

    @property
    def data(self) -> str:
        """The directory of the cluster."""
        return f"{self.directory}/data"

    @staticmethod
    def _program(name: str) -> str:
        """Return a program of the newest of Debian's servers, which are not in PATH.

        PICOQMAIL_POSTGRESQL names the directory of the programs of another one.
        """
        if asked := os.environ.get("PICOQMAIL_POSTGRESQL"):
            return f"{asked}/{name}"
        found = glob.glob(f"/usr/lib/postgresql/*/bin/{name}")
        if not found:
            return find(name, "postgresql")
        return max(found, key=lambda path: int(path.split("/")[4]))

    def start(self) -> None:
        """Start the server; return when it takes connections."""
        words = [self._program("postgres"), "-D", self.data, "-k", self.directory]
        for name, value in self._settings.items():
            words += ["-c", f"{name}={value}"]
        with open(f"{self.directory}/log", "ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **_account(),
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop the server: SIGINT is a fast shutdown, SIGQUIT an immediate one, a crash."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        """The pid of the server."""
        if self._process is None:
            raise RuntimeError("not started")
        return self._process.pid

    def restart(self, number: int = signal.SIGINT) -> None:
        """Stop and start it."""
        self.stop(number)
        self.start()

    def url(self, database: str, user: str = SUPERUSER, **parameters: object) -> str:
        """Return the URL of a database, through the socket."""
        query = "".join(f"&{name}={value}" for name, value in parameters.items())
        port = f"&port={self._port}" if self._port else ""
        return f"postgresql://{user}@/{database}?host={self.directory}{port}{query}"

    def execute(self, text: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, outside of a transaction; return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text.encode())
            return cursor.fetchall() if cursor.description else []

    def make_database(self, template: str = "template0", tablespace: str = "") -> str:
        """Make a database that no other test uses; return its name. A copy takes little time."""
        name = f"test{next(self._numbers)}"
        where = f" TABLESPACE {tablespace}" if tablespace else ""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}{where}")
        return name

    def lend_database(self, template: str) -> str:
        """Return a database that nobody uses now: one that was taken back, or a new one."""
        return self._idle.pop() if self._idle else self.make_database(template)

    def take_back(self, name: str) -> None:
        """Empty the tables of a database for another test; whoever is still connected is not."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            name,
        )
        tables = self.execute(
            "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ') FROM pg_tables"
            " WHERE schemaname = 'picoqmail' AND tablename <> 'migration'",
            name,
        )
        self.execute(f"TRUNCATE {tables[0][0]}", name)
        self._idle.append(name)

    def said(self) -> str:
        """Return the server's log so far."""
        with open(f"{self.directory}/log", encoding="utf-8", errors="replace") as log:
            return log.read()


class SmallDisk:
    """A file system of its own for tables of a server, in memory, that can be full for a while.

    It needs root. What the server writes ahead is elsewhere, so a full one is an error of some
    statements and no end of the server.
    """

    def __init__(self, server: PrivatePostgreSQL, octets: int = 32 << 20) -> None:
        """It has room for so many `octets`."""
        self._server = server
        self._octets = octets
        self._directory = ""

    @staticmethod
    def why_not() -> str | None:
        """Return why there can be none here; None if there can."""
        return None if os.getuid() == 0 else "only root can mount a file system"

    def __enter__(self) -> Self:
        self._directory = _make_directory("small-")
        words = ["-o", f"size={self._octets},mode=0711", "none", self._directory]
        subprocess.run(["mount", "-t", "tmpfs", *words], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        # Lazily: the server may still have files open.
        subprocess.run(["umount", "-l", self._directory], check=True)
        discard(self._directory)

    def tablespace(self) -> str:
        """Make a tablespace there; return its name."""
        path = f"{self._directory}/tables"
        os.mkdir(path, 0o700)
        account = _account()
        os.chown(path, account["user"], account["group"])
        self._server.execute(f"CREATE TABLESPACE small LOCATION '{path}'")
        return "small"

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room at all for the block."""
        ballast = f"{self._directory}/ballast"
        with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            os.unlink(ballast)


class PrivatePgBouncer:
    """PgBouncer in transaction mode in front of a PrivatePostgreSQL."""

    def __init__(self, server: PrivatePostgreSQL, sessions: int = 4) -> None:
        """At most so many `sessions` of the server are used for all clients together."""
        self._server = server
        self._sessions = sessions
        self._directory = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = find("pgbouncer", "pgbouncer")
        self._directory = _make_directory("bouncer-")
        configuration = f"{self._directory}/pgbouncer.ini"
        with open(configuration, "w", encoding="utf-8") as file:
            file.write(
                f"[databases]\n* = host={self._server.directory} user={SUPERUSER}\n"
                "[pgbouncer]\n"
                f"listen_addr =\nlisten_port = 6432\nunix_socket_dir = {self._directory}\n"
                "unix_socket_mode = 0777\nauth_type = any\n"
                f"pool_mode = transaction\ndefault_pool_size = {self._sessions}\n"
                f"max_client_conn = 400\nlogfile = {self._directory}/log\n"
            )
        os.chmod(configuration, 0o644)
        self._process = subprocess.Popen(
            [program, "-q", configuration],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._directory,
            **_account(),
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def url(self, database: str, **parameters: object) -> str:
        """Return the URL of a database of the server, by way of PgBouncer."""
        query = "".join(f"&{name}={value}" for name, value in parameters.items())
        return f"postgresql://{SUPERUSER}@/{database}?host={self._directory}&port=6432{query}"
