"""The verbs of the PostgreSQL store, on a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from picoqmail.errors import DamagedMessageError, LostClaimError, NoSuchMessageError
from picoqmail.home.limits import Limits
from picoqmail.layout import CUR, NEW, STATES, UNDELIVERED
from picoqmail.postgresql.claim import LeasedClaim
from picoqmail.postgresql.opening import open_postgresql
from picoqmail.spool.claim import RunDiedError
from picoqmail.spool.files import RESULT_LIMIT_OCTETS
from picoqmail.spool.message import DELIVERED, PENDING
from picoqmail.value import evolve
from rig.waiting import wait_until

if TYPE_CHECKING:
    from picoqmail.postgresql.store import PostgresStore
    from picoqmail.spool.claim import Damage
    from postgresql.conftest import Accept
    from rig.postgresql import PrivatePostgreSQL


def claimed(store: PostgresStore, message_id: str, states: tuple[str, ...] = STATES) -> LeasedClaim:
    """A claim that must be given."""
    claim = store.claim(message_id, states)
    assert claim is not None
    return claim


def expire_leases(server: PrivatePostgreSQL, database: str) -> None:
    """Let all leases run out, as time does."""
    server.execute(
        "UPDATE picoqmail.message SET leased_until = now() - interval '1s'"
        " WHERE leased_until > '-infinity'",
        database,
    )


# --- What is due ----------------------------------------------------------------------------------


def test_what_is_due_comes_by_age(store: PostgresStore, accept: Accept) -> None:
    """Not what waits for its time, is held, skipped, or was asked for in another state."""
    first, second, third = accept(), accept(), accept()
    later = accept(next_attempt=int(store.clock()) + 3600)
    held = claimed(store, third)
    store.change(held, "held", "held", held=True)
    held.release()
    assert [first, second] == store.due(10)
    assert [first] == store.due(1)
    assert [second] == store.due(10, skip=[first])
    assert [] == store.due(10, (CUR,))
    assert [CUR] == store.where(later)
    assert float(int(first.partition(".")[0])) == store.next_due()


def test_what_somebody_has_is_not_due(store: PostgresStore, accept: Accept) -> None:
    """Until it is given back; then it is at once."""
    message_id = accept()
    claim = claimed(store, message_id)
    assert [] == store.due(10)
    assert 50 < (store.next_due() or 0) - store.clock() < 61
    claim.release()
    assert [message_id] == store.due(10)


def test_nothing_is_due_next_where_there_is_nothing(store: PostgresStore) -> None:
    """There is no time to wait for."""
    assert store.next_due() is None


# --- Claims ---------------------------------------------------------------------------------------


def test_a_claim_has_what_delivery_must_know(store: PostgresStore, accept: Accept) -> None:
    """The message, its state, its octets, its lines, and whether they are 8-bit."""
    plain = claimed(store, accept(b"a\nb\n"))
    assert (NEW, 3, False, False) == (
        plain.state,
        plain.newlines,
        plain.eight_bit,
        plain.was_in_doubt,
    )
    body = b"".join(plain.blocks())
    assert body.endswith(b"\na\nb\n")
    assert len(body) == plain.size
    large = claimed(store, accept("ü\n".encode() * 1_500_000))
    assert large.eight_bit
    blocks = list(large.blocks())
    assert len(blocks) > 15
    assert b"".join(blocks).endswith("\nü\nü\n".encode())
    assert sum(map(len, blocks)) == large.size


@pytest.mark.parametrize("octets", [-1, 0, 1])
def test_a_body_about_as_large_as_a_chunk(
    store: PostgresStore, accept: Accept, octets: int
) -> None:
    """No octet is lost or read twice where one chunk ends."""
    first_line = len(b"".join(store.body(accept(b""))))
    data = os.urandom(2 * 262144 - first_line + octets)
    claim = claimed(store, accept(data))
    assert 2 * 262144 + octets - 10 < claim.size < 2 * 262144 + octets + 10
    assert data == b"".join(claim.blocks()).partition(b"\n")[2]


def test_one_at_a_time(store: PostgresStore, other: PostgresStore, accept: Accept) -> None:
    """A message that somebody has is nobody else's, not even its holder's a second time."""
    message_id = accept()
    claim = claimed(store, message_id)
    assert other.claim(message_id) is None
    assert store.claim(message_id) is None
    claim.release()
    claimed(other, message_id).release()


def test_a_race_for_many_messages(url: str, store: PostgresStore, accept: Accept) -> None:
    """Each of some threads claims what it can get; each message goes to exactly one."""
    ids = [accept() for _ in range(40)]
    won: list[str] = []
    stores = [open_postgresql(url) for _ in range(6)]
    start = threading.Barrier(len(stores))

    def run(mine: PostgresStore) -> None:
        start.wait()
        won.extend(one for one in ids if mine.claim(one) is not None)

    threads = [threading.Thread(target=run, args=(one,)) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in stores:
        one.close()
    assert ids == sorted(won)
    assert [] == store.due(100)


def test_some_are_claimed_together(
    store: PostgresStore, other: PostgresStore, accept: Accept
) -> None:
    """In the order asked for; what another has, and what is not there, is left out."""
    first, second, third = accept(), accept(), accept()
    claimed(other, second)
    claims = store.claim_many([third, second, "1.M1P1.nowhere", first])
    assert [third, first] == [one.message.id for one in claims if isinstance(one, LeasedClaim)]


def test_only_in_the_states_asked_for(store: PostgresStore, accept: Accept) -> None:
    """As with the directory."""
    message_id = accept()
    assert store.claim(message_id, (CUR,)) is None
    claim = claimed(store, message_id)
    store.record(claim, claim.message, UNDELIVERED).release()
    assert store.claim(message_id) is None
    claimed(store, message_id, STATES).release()


# --- Leases and the fence -------------------------------------------------------------------------


def test_a_lost_lease_ends_every_later_step(
    postgresql: PrivatePostgreSQL,
    database: str,
    store: PostgresStore,
    other: PostgresStore,
    accept: Accept,
) -> None:
    """Whoever was stopped for too long changes nothing: no mark, no record, no removal."""
    message_id = accept()
    claim = claimed(store, message_id)
    expire_leases(postgresql, database)
    theirs = claimed(other, message_id)
    for step in (
        claim.mark_in_doubt,
        lambda: store.record(claim, claim.message, UNDELIVERED, "said"),
        lambda: store.note_progress(claim, {0: (DELIVERED, "250")}),
        lambda: store.remove(claim),
    ):
        claim.lease.is_lost = False  # each of them must find out by itself
        with pytest.raises(LostClaimError):
            step()
    claim.lease.is_lost = False
    claim.release()
    assert [NEW] == store.where(message_id)
    assert "" == store.read_result(message_id)
    assert store.claim(message_id) is None
    theirs.mark_in_doubt()
    other.remove(theirs)
    assert [] == store.where(message_id)


def test_a_lease_that_ran_out_and_nobody_took_goes_on(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """Nobody else has seen the message, so there is no reason to leave it."""
    claim = claimed(store, accept())
    expire_leases(postgresql, database)
    claim.mark_in_doubt()
    assert store.claim(claim.message.id) is None


def test_leases_are_renewed_by_a_thread(url: str, other: PostgresStore, accept: Accept) -> None:
    """Also while the process waits for something else; and not after the release."""
    message_id = accept()
    store = open_postgresql(url + "&lease=2")
    claim = claimed(store, message_id)
    ((before,),) = other.connections.run("see", "SELECT leased_until FROM picoqmail.message")

    def is_renewed() -> bool:
        ((now,),) = other.connections.run("see", "SELECT leased_until FROM picoqmail.message")
        return bool((now - before).total_seconds() > 1.2)

    wait_until(is_renewed, "the lease was renewed several times")
    assert other.claim(message_id) is None
    claim.release()
    was_renewing = store._leases.is_renewing
    store.flush()
    assert (True, False) == (was_renewing, store._leases.is_renewing)
    claimed(other, message_id)


def test_renewing_finds_out_what_is_lost(
    postgresql: PrivatePostgreSQL,
    database: str,
    store: PostgresStore,
    other: PostgresStore,
    accept: Accept,
) -> None:
    """Only those that another process has taken; the others go on."""
    lost, kept = claimed(store, accept()), claimed(store, accept())
    expire_leases(postgresql, database)
    claimed(other, lost.message.id)
    store.renew()
    assert (True, False) == (lost.lease.is_lost, kept.lease.is_lost)
    with pytest.raises(LostClaimError, match="another process has taken it"):
        lost.mark_in_doubt()
    kept.mark_in_doubt()


def test_who_takes_over_reports_it(
    postgresql: PrivatePostgreSQL, database: str, url: str, store: PostgresStore, accept: Accept
) -> None:
    """A lease that ran out is news; one that was given back is none."""
    given_back, run_out = accept(), accept()
    claimed(store, run_out)
    expire_leases(postgresql, database)
    claimed(store, given_back).release()
    taken: list[str] = []
    third = open_postgresql(url, on_takeover=taken.append)
    third.claim_many([given_back, run_out])
    third.close()
    assert [run_out] == taken
    assert 1 == store.totals.lost_leases()


STOPPED = """
import os, signal, sys
from picoqmail.errors import LostClaimError
from picoqmail.postgresql.claim import LeasedClaim
from picoqmail.postgresql.opening import open_postgresql
store = open_postgresql(sys.argv[1])
claim = store.claim(sys.argv[2])
print("claimed", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
try:
    claim.mark_in_doubt()
except LostClaimError as exc:
    print("lost", flush=True)
"""


def test_a_process_that_was_stopped_sends_no_end_of_data(
    url: str, other: PostgresStore, accept: Accept
) -> None:
    """A real process, stopped for longer than a real lease, while another takes the message."""
    message_id = accept()
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, url + "&lease=2", message_id],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "claimed\n" == process.stdout.readline()
        theirs: list[LeasedClaim] = []

        def is_taken() -> bool:
            if claim := other.claim(message_id):
                theirs.append(claim)
            return claim is not None

        wait_until(is_taken, "the lease ran out")
        process.send_signal(signal.SIGCONT)
        assert "lost\n" == process.stdout.readline()
    theirs[0].mark_in_doubt()


# --- The mark of doubt ----------------------------------------------------------------------------


def test_the_mark_is_found_by_whoever_claims_next(
    postgresql: PrivatePostgreSQL,
    database: str,
    store: PostgresStore,
    other: PostgresStore,
    accept: Accept,
) -> None:
    """After a death between the end of the data and the reply."""
    message_id = accept()
    claimed(store, message_id).mark_in_doubt()
    expire_leases(postgresql, database)
    claim = claimed(other, message_id)
    assert claim.was_in_doubt
    assert claim.is_marked
    # As an administrator's command, which knows nothing of it.
    claim = other.record(claim, claim.message, CUR)
    assert (True, True) == (claim.was_in_doubt, claim.is_marked)
    claim.release()
    claim = claimed(store, message_id)
    claim = store.record(claim.doubt_counted(), claim.message, CUR)
    assert (False, False) == (claim.was_in_doubt, claim.is_marked)
    claim.release()
    assert not claimed(store, message_id).was_in_doubt


def test_the_mark_is_taken_back(store: PostgresStore, accept: Accept) -> None:
    """When the reply came; and without a round trip where there is none."""
    claim = claimed(store, accept())
    claim.clear_doubt()
    claim.mark_in_doubt()
    claim.clear_doubt()
    claim.release()
    assert not claimed(store, claim.message.id).was_in_doubt


# --- What runs die of -----------------------------------------------------------------------------


def test_a_run_that_died_is_known_by_what_it_had_in_hand(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """As in the directory: news, then a suspect that must be wanted, then again."""
    message_id = accept()
    assert store.claim(message_id, in_hand=True) is not None
    expire_leases(postgresql, database)
    with pytest.raises(RunDiedError) as found:
        store.claim(message_id, in_hand=True)
    assert (True, False) == (found.value.is_news, found.value.is_again)
    with pytest.raises(RunDiedError) as found:
        store.claim(message_id, in_hand=True)
    assert (False, False) == (found.value.is_news, found.value.is_again)
    assert store.claim(message_id, in_hand=True, suspects=True) is not None
    expire_leases(postgresql, database)
    with pytest.raises(RunDiedError) as found:
        store.claim(message_id, in_hand=True, suspects=True)
    assert (True, True) == (found.value.is_news, found.value.is_again)
    # An administrator's claim neither asks nor changes that.
    claimed(store, message_id).release()
    claim = store.claim(message_id, in_hand=True, suspects=True)
    assert claim is not None
    store.record(claim, claim.message, CUR).release()
    claim = store.claim(message_id, in_hand=True)
    assert claim is not None
    claim.release()
    assert store.claim(message_id, in_hand=True) is not None


def test_a_suspect_stays_one_until_an_attempt_was_recorded(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """A release alone proves nothing: its relay may have been away."""
    message_id = accept()
    store.claim(message_id, in_hand=True)
    expire_leases(postgresql, database)
    with pytest.raises(RunDiedError):
        store.claim(message_id, in_hand=True)
    claim = store.claim(message_id, in_hand=True, suspects=True)
    assert claim is not None
    claim.release()
    with pytest.raises(RunDiedError):
        store.claim(message_id, in_hand=True)
    claim = store.claim(message_id, in_hand=True, suspects=True)
    assert claim is not None
    claim.has_survived()
    claim.release()
    assert store.claim(message_id, in_hand=True) is not None


# --- Record, remove -------------------------------------------------------------------------------


def test_a_record_replaces_what_is_known(store: PostgresStore, accept: Accept) -> None:
    """State, sidecar, due time and the relays' words."""
    message_id = accept(unheard_of={"key": ["kept"]})
    claim = claimed(store, message_id)
    deferred = evolve(claim.message, next_attempt=int(store.clock()) + 600, attempts=1)
    claim = store.record(claim, deferred, CUR, "450 later\n")
    claim = store.record(claim, deferred, CUR, "451 later\n")
    claim.release()
    state, found = store.read(message_id)
    assert (CUR, deferred) == (state, found)
    assert {"key": ["kept"]} == found.unknown["unheard_of"]
    assert "450 later\n451 later\n" == store.read_result(message_id)
    assert [] == store.due(10)
    assert deferred.next_attempt == store.next_due()


def test_what_relays_said_is_bounded(store: PostgresStore, accept: Accept) -> None:
    """The oldest goes, by whole lines, and it shows."""
    claim = claimed(store, accept())
    for number in range(30):
        claim = store.record(claim, claim.message, CUR, f"{number} {'x' * 4000}\n")
    said = store.read_result(claim.message.id)
    assert RESULT_LIMIT_OCTETS - 8192 < len(said) <= RESULT_LIMIT_OCTETS + len("[...]\n")
    mark, first, *_ = said.split("\n")
    assert "[...]" == mark
    assert first.endswith("x" * 4000)
    assert said.endswith("29 " + "x" * 4000 + "\n")


def test_bytes_that_no_text_holds_are_kept(store: PostgresStore, accept: Accept) -> None:
    """A relay may say NUL, and what is no UTF-8."""
    claim = claimed(store, accept())
    store.record(claim, claim.message, CUR, "a\0b \udcff\n").release()
    assert "a\0b ?\n" == store.read_result(claim.message.id)


def test_a_removed_message_leaves_nothing(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """No row of any table."""
    claim = claimed(store, accept(recipients=["b@example.net", "c@example.net"]))
    claim = store.record(claim, claim.message, CUR, "said\n")
    claim = store.note_progress(claim, {0: (DELIVERED, "250 ok")})
    store.remove(claim)
    claim.release()
    store.flush()
    for table in ("message", "chunk", "result", "progress"):
        assert [] == postgresql.execute(f"SELECT FROM picoqmail.{table}", database)
    with pytest.raises(NoSuchMessageError):
        store.read(claim.message.id)


def test_progress_is_merged_by_whoever_claims_next(
    postgresql: PrivatePostgreSQL,
    database: str,
    store: PostgresStore,
    other: PostgresStore,
    accept: Accept,
) -> None:
    """No recipient gets the message twice because a process died."""
    message_id = accept(recipients=["b@example.net", "c@example.net", "d@example.net"])
    claim = claimed(store, message_id)
    claim = store.note_progress(claim, {0: (DELIVERED, "250 ok"), 2: (DELIVERED, "250 \0 ü")})
    assert claim.has_progress
    expire_leases(postgresql, database)
    found = claimed(other, message_id)
    assert found.has_progress
    assert [DELIVERED, PENDING, DELIVERED] == [one.state for one in found.message.recipients]
    assert "250 \0 ü" == found.message.recipients[2].reply
    found = other.record(found, evolve(found.message, revision=1), CUR)
    assert not found.has_progress
    found.release()
    assert not claimed(store, message_id).has_progress


def test_an_idle_claim_touches_no_index(postgresql: PrivatePostgreSQL, own_database: str) -> None:
    """Claim, renewal, mark and release are HOT updates: no index grows by them."""
    store = open_postgresql(postgresql.url(own_database))
    incoming = store.incoming(Limits("me.test"), program="t", uid=0, pid=1)
    incoming.write(b"Subject: x\n\n")
    message_id = incoming.commit("a@example.org", ["b@example.net"])
    for _ in range(20):
        claim = claimed(store, message_id)
        store.renew()
        claim.mark_in_doubt()
        claim.clear_doubt()
        claim.release()
    store.close()

    def counted() -> tuple[int, int]:
        ((updates, hot),) = postgresql.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'message'",
            own_database,
        )
        return updates, hot

    wait_until(lambda: counted()[0] >= 100, "the statistics arrived")
    updates, hot = counted()
    assert updates == hot


# --- Damage ---------------------------------------------------------------------------------------

DAMAGE = {
    "its body is missing": "DELETE FROM picoqmail.chunk",
    "octets, and": "UPDATE picoqmail.chunk SET octets = octets || 'x'",
    "CRC-32": "UPDATE picoqmail.chunk SET octets = overlay(octets PLACING 'x' FROM 100)",
    "its sidecar is not JSON": "UPDATE picoqmail.message SET sidecar = '{'",
    "has version 2": (
        "UPDATE picoqmail.message SET sidecar ="
        " replace(convert_from(sidecar, 'UTF8'), '\"version\": 1', '\"version\": 2')::bytea"
    ),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_message_is_put_aside(
    postgresql: PrivatePostgreSQL,
    database: str,
    store: PostgresStore,
    damages: list[Damage],
    accept: Accept,
    reason: str,
) -> None:
    """It is never sent, all of it is kept, and the others go on."""
    message_id = accept(b"Subject: damaged\n\n" + b"x" * 100)
    postgresql.execute(DAMAGE[reason], database)
    whole = accept()
    before = store.read_raw(message_id)[1]
    (claim,) = store.claim_many([message_id, whole])
    assert isinstance(claim, LeasedClaim)
    assert whole == claim.message.id
    ((damage),) = damages
    assert message_id == damage.id
    assert reason in damage.reason
    assert [UNDELIVERED] == store.where(message_id)
    assert reason in store.read_result(message_id)
    assert " not sent: " in store.read_result(message_id)
    assert (UNDELIVERED, before) == store.read_raw(message_id)
    assert store.destroy(message_id)


def test_a_whole_body_is_what_was_accepted(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore, accept: Accept
) -> None:
    """For `check`, which asks without a claim."""
    message_id = accept()
    message = store.read(message_id)[1]
    store.check_body(message)
    assert store.is_whole(message_id)
    postgresql.execute("DELETE FROM picoqmail.chunk", database)
    with pytest.raises(DamagedMessageError):
        store.check_body(message)
    assert not store.is_whole(message_id)


# --- Administration -------------------------------------------------------------------------------


def test_a_change_leaves_a_line_in_the_history(store: PostgresStore, accept: Accept) -> None:
    """And puts the message where cron finds it; a held one is never due."""
    claim = claimed(store, accept())
    store.change(claim, "held", "held by an administrator", held=True)
    claim.release()
    state, message = store.read(claim.message.id)
    assert CUR == state
    assert message.held
    assert "held" == message.history[-1]["outcome"]
    assert store.next_due() is None
    claim = claimed(store, claim.message.id)
    store.change(claim, "released", "released", held=False)
    claim.release()
    assert [claim.message.id] == store.due(10)


def test_destroying(store: PostgresStore, other: PostgresStore, accept: Accept) -> None:
    """Not what another process has; and what is not there is named."""
    message_id = accept()
    claim = claimed(other, message_id)
    assert not store.destroy(message_id)
    claim.release()
    assert store.destroy(message_id)
    store.flush()
    with pytest.raises(NoSuchMessageError, match="no such message in postgresql://"):
        store.destroy(message_id)


def test_a_name_is_found(store: PostgresStore, accept: Accept) -> None:
    """By the ID, or by what a file of that message would be called."""
    message_id = accept()
    assert message_id == store.find(message_id)
    assert message_id == store.find(f"/somewhere/new/{message_id}.eml")
    for wrong in ("", "x", "1.M1P1.nowhere", "../1"):
        with pytest.raises(NoSuchMessageError):
            store.find(wrong)


def test_messages_are_listed_in_pages(store: PostgresStore, accept: Accept) -> None:
    """By age, from either end."""
    ids = [accept() for _ in range(5)]
    page = store.select(most=3)
    assert ids[:3] == [one for one, _, _ in page]
    assert json.loads(page[0][2])["id"] == ids[0]
    assert ids[3:] == [one for one, _, _ in store.select(after=page[-1][0], most=3)]
    assert ids[:2:-1] == [one for one, _, _ in store.select(most=2, newest_first=True)]
    assert [] == store.select((UNDELIVERED,))


def test_messages_are_counted(store: PostgresStore, accept: Accept) -> None:
    """By state, with those that are held, and those that are due."""
    first = accept()
    accept()
    held = claimed(store, accept())
    store.change(held, "held", "held", held=True)
    figures = store.figures(store.clock())
    assert (1, 0, None) == (figures.held, figures.due, figures.next_attempt)
    new = figures.heaps[NEW]
    assert (2, int(first.partition(".")[0]), 2) == (new.messages, new.oldest, new.fresh)
    assert sum(len(b"".join(store.body(one))) for one in store.due(9)) == new.octets
    assert (1, None) == (figures.heaps[CUR].messages, figures.heaps[CUR].oldest)
    assert 0 == figures.heaps[UNDELIVERED].messages
    assert [(first, NEW), (held.message.id, CUR)] == list(store.names().items())[::2]


def test_what_lay_long_in_undelivered_is_purged(
    postgresql: PrivatePostgreSQL, database: str, store: PostgresStore
) -> None:
    """By the time since it came there, not since it was accepted; and not what is elsewhere."""
    ids = []
    for _ in range(3):
        limits = Limits("me.test")
        incoming = store.incoming(limits, program="t", uid=0, pid=1, now_ns=1_700_000_000 * 10**9)
        ids.append(incoming.commit("a@example.org", ["b@example.net"]))
    for message_id in ids[:2]:
        claim = claimed(store, message_id)
        store.record(claim, claim.message, UNDELIVERED).release()
    assert 0 == store.purge(3600)
    postgresql.execute("UPDATE picoqmail.message SET entered = entered - 7200", database)
    busy = claimed(store, ids[0])
    assert 1 == store.purge(3600)
    busy.release()
    assert 1 == store.purge(3600)
    assert [NEW] == store.where(ids[2])


def test_a_message_is_put_off(store: PostgresStore, accept: Accept) -> None:
    """One that cannot be handled waits, in its row alone; the claim corrects it."""
    message_id = accept()
    busy = claimed(store, accept())
    store.put_off(busy.message.id, int(store.clock()) + 3600)
    assert [NEW] == store.where(busy.message.id)
    store.remove(busy)
    store.put_off(message_id, int(store.clock()) + 3600)
    assert [] == store.due(10)
    claim = claimed(store, message_id)
    store.repeat_due_time(claim)
    claim.release()
    assert [message_id] == store.due(10)
