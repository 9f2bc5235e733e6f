"""What a sender asked for about reports, whatever a sidecar holds."""

from __future__ import annotations

import pytest

from picoqmail.smtp import dsn


@pytest.mark.parametrize("kept", [None, "FULL", [], {}, {"ret": None, "notify": "", "orcpt": []}])
def test_nothing_was_asked_for(kept: object) -> None:
    """What makes no sense counts as not asked for."""
    assert ([], "", "", None) == (
        dsn.notify(kept),
        dsn.ret(kept),
        dsn.envelope_id(kept),
        dsn.original_recipient(kept, 0),
    )


def test_what_was_asked_for() -> None:
    """Words in upper case; the original recipient by its index, or one for all."""
    kept = {"notify": "failure, Delay", "ret": "hdrs", "envid": 7, "orcpt": ["utf-8;a@b", "c@d"]}
    assert ["FAILURE", "DELAY"] == dsn.notify(kept)
    assert ("HDRS", "7") == (dsn.ret(kept), dsn.envelope_id(kept))
    assert ("utf-8", "a@b") == dsn.original_recipient(kept, 0)
    assert ("rfc822", "c@d") == dsn.original_recipient(kept, 1)
    assert None is dsn.original_recipient(kept, 2)
    assert ("rfc822", "e@f") == dsn.original_recipient({"orcpt": "e@f"}, 5)
