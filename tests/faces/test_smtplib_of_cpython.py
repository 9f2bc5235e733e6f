"""CPython's own tests of smtplib, run against the spool as far as that makes sense.

`test.test_smtplib` comes with a Python that was built from its sources; Debian has it in
libpython3-testsuite.
"""

from __future__ import annotations

import io
import re
import smtplib
import types
import unittest
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from picoqmail import smtplib_compat
from temporary_home import TemporaryHome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

with warnings.catch_warnings():
    # It tells of modules of its own that go.
    warnings.simplefilter("ignore")
    cpython = pytest.importorskip(
        "test.test_smtplib",
        reason="needs CPython's own tests: apt-get install libpython3-testsuite",
    )

SERVER_TEXT = "compares the words of its own server's replies"
ITS_SERVER = "looks into its own server, to which nothing comes"
FAILS = "needs a relay that fails; the spool does not fail like that"
NO_LOGIN = "a login is accepted and ignored, also a wrong one: file permissions decide"
INSIDE = "looks into smtplib: which of its methods or modules another one uses"
EXCLUDED = {
    r"GeneralTests\.testTimeoutDefault|testUnixDomainSocketTimeoutDefault": INSIDE,
    r"DebuggingServerTests\.test(ELHO|EXPN.*|HELP|NOOP|RSET|SecondHELO|VRFY)": SERVER_TEXT,
    r"DebuggingServerTests\.test_issue43124_escape_(localhostname|options)": (
        "the caller's name and options are sent to nobody, so nothing in them can do harm"
    ),
    r"DebuggingServerTests\.testSourceAddress": "nothing is connected to, from no address",
    r"DefaultArgumentsTests\..*": INSIDE,
    r"BadHELOServerTests\..*|TooLongLineTests\..*": FAILS,
    r"SMTPSimTests\.(testEHLO|testEXPN|testVRFY|testBasic)": SERVER_TEXT,
    r"SMTPSimTests\.(testAUTH_.*|test_auth_.*)|SMTPAUTHInitialResponseSimTests\..*": NO_LOGIN,
    r"SMTPSimTests\.(test_421_.*|test__rest_from_mail_cmd|test_with_statement_QUIT_failure)": FAILS,
    r"SMTPSimTests\.(test_smtputf8_NotSupported.*|test_send_unicode_without_SMTPUTF8"
    r"|test_send_message_error_on_non_ascii_addrs_if_no_smtputf8)": (
        "the spool takes international addresses and headers"
    ),
    r"SMTPSimTests\.test_(name_field_not_included.*|lowercase_.*)": ITS_SERVER,
    r"SMTPUTF8SimTests\.test_send_(message_uses.*|unicode_with_SMTPUTF8_via_.*)": ITS_SERVER,
}


class Server:
    """What stands for the server whose output the tests of CPython read: the spool."""

    def __init__(self, home: TemporaryHome) -> None:
        self._home = home

    def messages(self) -> str:
        """As `smtpd.DebuggingServer` prints them."""
        shown = []
        for message_id in self._home.ids():
            text = self._home.message(message_id).decode()
            lines = text.removesuffix("\n")
            shown.append(f"{cpython.MSG_BEGIN}{lines}\n{cpython.MSG_END}")
        return "".join(shown)

    def envelopes(self) -> str:
        """As its debugging output has them; an address without a host got that of the home."""
        lines = []
        for message_id in self._home.ids():
            sender = self._home.sidecar(message_id)["sender"].removesuffix("@me.test")
            recipients = [one.removesuffix("@me.test") for one in self._home.addresses(message_id)]
            lines += [f"sender: {sender or '<>'}", f"recips: {recipients}"]
        return "\n".join(lines) + "\n"


class Output(io.StringIO):
    """A stream that shows what is in the spool now."""

    def __init__(self, read: Any) -> None:
        super().__init__()
        self._read = read

    def getvalue(self) -> str:
        """All of it."""
        return str(self._read())


@pytest.fixture
def patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TemporaryHome:
    """CPython's module with our SMTP under the name of its own, and a home for the environment."""
    home = TemporaryHome(str(tmp_path / "home")).make()
    monkeypatch.setenv("PICOQMAIL_HOME", home.root)
    monkeypatch.setenv("PICOQMAIL_SEND", "off")
    ours = types.ModuleType("smtplib")
    vars(ours).update(vars(smtplib))
    vars(ours).update((name, getattr(smtplib_compat, name)) for name in smtplib_compat.__all__)
    monkeypatch.setattr(cpython, "smtplib", ours)
    monkeypatch.setattr(cpython.SMTPGeneralTests, "client", ours.SMTP)
    monkeypatch.setattr(cpython.LMTPGeneralTests, "client", ours.LMTP)

    def set_up(self: Any) -> None:
        self.port = 25
        self.output = Output(Server(home).messages)
        self.client_evt = self.serv_evt = cpython.threading.Event()

    debugging = cpython.DebuggingServerTests
    monkeypatch.setattr(debugging, "setUp", set_up)
    monkeypatch.setattr(debugging, "tearDown", lambda _self: None)
    monkeypatch.setattr(debugging, "get_output_without_xpeer", lambda self: self.output.getvalue())
    monkeypatch.setattr(cpython.smtpd, "DEBUGSTREAM", Output(Server(home).envelopes))
    monkeypatch.setattr(cpython.time, "sleep", lambda _seconds: None)
    return home


def cases_of(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Every test of a suite of suites."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from cases_of(one)
        else:
            yield one


ALL = {one.id(): one for one in cases_of(unittest.defaultTestLoader.loadTestsFromModule(cpython))}


def why_not(test_id: str) -> str:
    """The reason for which a test is left out, "" if it is not."""
    found = [why for what, why in EXCLUDED.items() if re.search(rf"({what})$", test_id)]
    return found[0] if found else ""


@pytest.mark.parametrize("test_id", [one for one in ALL if not why_not(one)])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.usefixtures("patched")
def test_as_smtplib(test_id: str) -> None:
    """What smtplib's tests say of smtplib holds for the spool."""
    case = ALL[test_id]
    result = unittest.TestResult()
    case.run(result)
    assert 1 == result.testsRun
    assert [] == [trace for _, trace in (*result.failures, *result.errors)]


def test_what_is_left_out() -> None:
    """Each reason is for some test of this Python, and most of the others run."""
    reasons = [why_not(one) for one in ALL]
    assert set(EXCLUDED.values()) <= set(reasons)
    assert reasons.count("") >= 35
