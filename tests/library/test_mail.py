"""Values of the library: outcomes of many messages, and the names that are public."""

from __future__ import annotations

import io
import subprocess
import sys
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

import picoqmail
from picoqmail import Mail
from temporary_home import FROM_A_TO_B, TemporaryHome

if TYPE_CHECKING:
    from pathlib import Path


def test_outcomes_are_a_list_and_more(home: TemporaryHome) -> None:
    """A list in order, as ever; receipts and errors apart; the first error can be raised."""
    good, bad = Mail(b"", **FROM_A_TO_B), Mail(b"", "a@example.org", ["nobody"])
    results = picoqmail.enqueue_many([good, bad, good, bad])
    assert isinstance(results, list)
    assert 4 == len(results)
    assert [results[0], results[2]] == results.receipts
    assert [results[1], results[3]] == results.errors
    assert home.ids() == [one.id for one in results.receipts]
    for _ in range(2):
        with pytest.raises(picoqmail.AddressError) as caught:
            results.raise_for_errors()
        assert results[1] is caught.value
        assert ["message 2 of 4; 2 were refused"] == caught.value.__notes__
    fine = picoqmail.enqueue_many([good])
    fine.raise_for_errors()
    assert [] == fine.errors
    assert [] == picoqmail.enqueue_many([])
    spool = picoqmail.Spool()
    committed = spool.commit_many([spool.prepare(b"", **FROM_A_TO_B)])
    assert 1 == len(committed.receipts)


@pytest.mark.parametrize(
    "one",
    ["text", b"octets", bytearray(b""), memoryview(b""), EmailMessage(), io.BytesIO(b""),
     io.StringIO(""), Mail(b"", **FROM_A_TO_B), __import__("pathlib").Path("x"), 3, None],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_one_message_is_not_several(home: TemporaryHome, one: Any) -> None:
    """Its letters, octets, lines or fields would each become a mail."""
    with pytest.raises(picoqmail.MessageTypeError, match="enqueue_many takes") as caught:
        picoqmail.enqueue_many(one)
    assert isinstance(caught.value, TypeError)
    assert [] == home.everything()


def test_a_spool_of_the_environment_is_found_at_each_call(
    home: TemporaryHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a module made while it was imported does not escape a test's own home."""
    spool = picoqmail.Spool()
    elsewhere = TemporaryHome(str(tmp_path / "elsewhere")).make()
    monkeypatch.setenv("PICOQMAIL_HOME", elsewhere.root)
    spool.enqueue(b"", **FROM_A_TO_B)
    assert ([], 1) == (home.ids(), len(elsewhere.ids()))
    assert elsewhere.root == spool.home.root
    picoqmail.Spool(home.root).enqueue(b"", **FROM_A_TO_B)
    assert 1 == len(home.ids())


def test_public_names() -> None:
    """`dir()` shows names and no modules; each can be imported, and has a text of its own."""
    code = (
        "import picoqmail, types\n"
        "import picoqmail.aio\n"
        "names = dir(picoqmail)\n"
        "assert set(picoqmail.__all__) <= set(names)\n"
        "seen = [one for one in names if not one.startswith('__')]\n"
        "assert set(seen) == set(picoqmail.__all__) - {'__version__'}, seen\n"
        "values = {one: getattr(picoqmail, one) for one in picoqmail.__all__}\n"
        "assert not [one for one in values.values() if isinstance(one, types.ModuleType)]\n"
        "from picoqmail import Entry, MessageLike, Moment, Outcome, Summary\n"
        "assert 'idempotency_key:' in picoqmail.enqueue.__doc__\n"
        "assert 'Raises:' in picoqmail.enqueue.__doc__\n"
        "assert 'home:' in picoqmail.enqueue.__doc__\n"
        "assert 'Raises:' in picoqmail.enqueue_many.__doc__\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
