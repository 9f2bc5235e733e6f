"""Every row of the table of attacks in docs/security.md, tried by another user; and that page."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from privileges.attacks import ATTACKS, Attack, table

if TYPE_CHECKING:
    from privileges.host import Host

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.mark.parametrize("attack", [pytest.param(one, id=one.run.__name__) for one in ATTACKS])
def test_the_outcome_is_the_one_in_the_table(host: Host, attack: Attack) -> None:
    """What the row says comes of it is what comes of it."""
    attack.run(host)


def test_the_page_has_this_table() -> None:
    """docs/security.md lists what is tested, no more and no less."""
    with open(f"{CHECKOUT}/docs/security.md", encoding="utf-8") as file:
        assert table() in file.read()
