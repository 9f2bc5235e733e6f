"""Dialogues as they stand in a file: each word, each wait, each verdict (dialogues.py)."""

from __future__ import annotations

import pytest

from picoqmail.smtp import conversation
from smtp.dialogues import dialogues, replayed

DIALOGUES = dialogues()


@pytest.mark.parametrize("name", DIALOGUES)
def test_a_dialogue_goes_as_it_is_written(name: str) -> None:
    """What the relay says is replayed; everything else follows from it."""
    assert DIALOGUES[name] == replayed(DIALOGUES[name])


def test_the_limits_are_those_of_the_rfc() -> None:
    """RFC 5321 4.5.3.2: seconds to wait for the banner, MAIL, RCPT; DATA; a block; the end."""
    assert (300, 300, 120, 180, 600) == (
        conversation.BANNER_LIMIT,
        conversation.COMMAND_LIMIT,
        conversation.DATA_LIMIT,
        conversation.BLOCK_LIMIT,
        conversation.FINAL_LIMIT,
    )


def test_what_is_asked_of_a_relay_by_default() -> None:
    """500 messages a session, and 20 minutes for each step."""
    options = conversation.SessionOptions("me.example")
    assert (500, 1200.0, "never") == (options.messages, options.timeout, options.starttls)
    assert [False] * 2 == [options.is_lmtp, options.cleartext_auth]
    assert [True] * 2 == [options.use_pipelining, options.use_chunking]
