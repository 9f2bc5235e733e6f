"""hypothesis runs the targets of the fuzzer; fuzz.py searches for longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from proof.fuzz_targets import PIECES, SEEDS, TARGETS


@pytest.mark.parametrize("name", list(TARGETS))
@hypothesis_settings(max_examples=150, deadline=None, database=None)
@given(data=st.data())
def test_a_target_finds_nothing(name: str, data: st.DataObject) -> None:
    """Any octets are handled, above all the format's own pieces in any order."""
    pieces = st.one_of(st.sampled_from(PIECES[name]), st.binary(max_size=4))
    octets = data.draw(st.lists(pieces, max_size=20).map(b"".join))
    TARGETS[name](octets)


@pytest.mark.parametrize(
    ("name", "octets"),
    [
        # An unknown key with a number too large for a float. It was written back as "inf", which is
        # no JSON, so the message could never be read again.
        ("sidecar", SEEDS["sidecar"].replace(b'"revision": 0', b'"revision": 0, "x": 1e9990')),
        ("sidecar", SEEDS["sidecar"].replace(b'"uid": 0', b'"uid": -1E+999')),
    ],
)
def test_what_the_fuzzer_found(name: str, octets: bytes) -> None:
    """Earlier findings stay fixed."""
    assert octets != SEEDS[name]
    TARGETS[name](octets)
