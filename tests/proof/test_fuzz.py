"""The targets of the fuzzer, held to their promises by hypothesis; fuzz.py looks for longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from proof.fuzz_targets import PIECES, TARGETS


@pytest.mark.parametrize("name", list(TARGETS))
@hypothesis_settings(max_examples=300, deadline=None, database=None)
@given(data=st.data())
def test_a_target_finds_nothing(name: str, data: st.DataObject) -> None:
    """Any octets, and above all the pieces that the format is made of, in any order."""
    pieces = st.one_of(st.sampled_from(PIECES[name]), st.binary(max_size=4))
    octets = data.draw(st.lists(pieces, max_size=20).map(b"".join))
    TARGETS[name](octets)
