"""A temporary home for the tests of programs that send mail through picoqmail.

    def test_welcome(picoqmail_spool):
        sign_up("b@example.net")
        mail = picoqmail_spool.assert_one(to="b@example.net", subject="Welcome")
        assert "Dear B" in mail.text

The fixture exists wherever picoqmail is installed. Nothing is imported for it before a test uses
it. The sender is off, so nothing is ever sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.testing import TemporarySpool


@pytest.fixture
def picoqmail_spool(monkeypatch: pytest.MonkeyPatch) -> Iterator[TemporarySpool]:
    """A temporary home that the environment names, for this process and its children."""
    from picoqmail.testing import TemporarySpool

    with TemporarySpool() as spool:
        for name, value in spool.environ.items():
            monkeypatch.setenv(name, value)
        for name in ("PICOQMAIL_CONTROL", "PICOQMAIL_SPOOL", "QMAILQUEUE"):
            monkeypatch.delenv(name, raising=False)
        yield spool
