"""The conversation: what is said in which breath, and whom a reply is held against."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picoqmail.home.secret import RelayPassword
from picoqmail.smtp.conversation import SessionOptions
from picoqmail.smtp.lessons import LONE_DOT, Lessons
from picoqmail.smtp.sasl import Credentials
from smtp.scripted import WIRE, MemoryBody, MemorySource, Scripted, group

MAIL = "MAIL FROM:<s@example.org>"
RCPT = "RCPT TO:<r@example.net>"
OK3 = ("250 ok", "250 ok", "354 go")
ENVELOPE = group(MAIL, RCPT, "DATA")


def test_lockstep() -> None:
    """Without PIPELINING each command waits for the reply to the last."""
    talk = Scripted(MemorySource().add())
    assert talk.greets("SIZE 1000") == group(f"{MAIL} SIZE=21")
    assert talk.says("250 ok") == group(RCPT)
    assert talk.says("250 ok") == b"DATA\r\n"
    assert talk.says("354 go") == WIRE + b".\r\n"
    assert talk.source.events == [("take", 0), ("mark", 0)]
    assert talk.says("250 2.0.0 queued") == b"QUIT\r\n"
    assert talk.source.outcomes(0) == ["delivered"]
    assert talk.says("221 bye") == b""
    assert talk.conversation.closed
    assert talk.conversation.fault is None


def test_pipelining() -> None:
    """The envelope is one group, and the next one goes with the final dot."""
    talk = Scripted(MemorySource().add().add())
    assert talk.greets("PIPELINING") == ENVELOPE
    assert talk.says(*OK3) == WIRE + b".\r\n" + ENVELOPE
    assert talk.says("250 one", *OK3) == WIRE + b".\r\n"
    assert talk.source.outcomes(0) == ["delivered"]
    assert talk.says("250 two") == b"QUIT\r\n"
    assert talk.source.outcomes(1) == ["delivered"]
    expected = ["take 0", "mark 0", "take 1", "done 0", "mark 1", "done 1"]
    assert expected == [f"{event} {key}" for event, key in talk.source.events]


def test_chunking() -> None:
    """BDAT waits for nothing, and at most one message a connection is in doubt."""
    talk = Scripted(MemorySource().add().add())
    bdat = b"BDAT %d LAST\r\n" % len(WIRE) + WIRE
    first = group(MAIL, RCPT) + bdat + group("RSET", MAIL, RCPT)
    assert first == talk.greets("PIPELINING", "CHUNKING")
    assert talk.source.events == [("take", 0), ("mark", 0), ("take", 1)]
    assert talk.says("250 ok", "250 ok", "250 queued") == b""
    assert talk.source.outcomes(0) == ["delivered"]
    assert talk.says("250 reset", "250 ok", "250 ok") == bdat
    assert talk.says("250 queued") == b"QUIT\r\n"
    assert talk.source.outcomes(1) == ["delivered"]


def test_chunk_refused() -> None:
    """A refused chunk leaves a transaction behind, so the next envelope begins with RSET."""
    talk = Scripted(MemorySource().add().add().add())
    talk.greets("PIPELINING", "CHUNKING")
    talk.says("250 ok", "250 ok", "552 too much")
    said = talk.says("250 reset", "250 ok", "250 ok")
    assert said.endswith(WIRE + group("RSET", MAIL, RCPT))
    talk.says("452 full")
    talk.says("250 reset", "250 ok", "250 ok")
    talk.says("250 ok")
    assert [["failed"], ["deferred"], ["delivered"]] == [talk.source.outcomes(k) for k in range(3)]


def test_chunking_refused_envelope() -> None:
    """Data that went along with an envelope which nobody took are refused, and that is all."""
    talk = Scripted(MemorySource().add().add())
    talk.greets("PIPELINING", "CHUNKING")
    talk.says("250 ok", "550 no", "503 no recipients")
    assert talk.source.outcomes(0) == ["failed"]
    talk.says("250 reset", "250 ok", "250 ok")
    talk.says("250 queued")
    assert talk.source.outcomes(1) == ["delivered"]


def test_354_though_all_were_refused() -> None:
    """RFC 2920 3.1: a lone dot gets out of it, and delivers nothing."""
    talk = Scripted(MemorySource().add().add())
    talk.greets("PIPELINING")
    assert talk.says("250 ok", "550 no", "354 go") == b".\r\n"
    assert talk.says("554 no valid recipients") == ENVELOPE
    assert talk.source.outcomes(0) == ["failed"]
    talk.says(*OK3)
    talk.says("250 ok")
    assert talk.source.outcomes(1) == ["delivered"]
    assert ("mark", 0) not in talk.source.events


def test_data_refused_for_lack_of_recipients() -> None:
    """The reply to a DATA that nobody was left for is nobody's; RSET comes before the next."""
    talk = Scripted(MemorySource().add().add())
    talk.greets("PIPELINING")
    assert talk.says("250 ok", "450 later", "503 no recipients") == b"RSET\r\n" + ENVELOPE
    assert talk.source.verdicts[0].results[0].text == "450 later"
    talk.says("250 reset", *OK3)
    talk.says("250 ok")
    assert talk.source.outcomes(1) == ["delivered"]


@pytest.mark.parametrize(
    ("reply", "outcome"), [("451 4.3.0 later", "deferred"), ("550 5.7.1 no", "failed")]
)
def test_mail_is_the_messages(reply: str, outcome: str) -> None:
    """A refused sender is everybody's; the 503 to each RCPT after it is held against nobody."""
    talk = Scripted(MemorySource().add("a@b", "c@d"))
    talk.greets("PIPELINING")
    assert talk.says(reply, "503 mail first", "503 mail first", "503 mail first") == b"QUIT\r\n"
    assert [outcome, outcome] == talk.source.outcomes(0)
    texts = [result.text for result in talk.source.verdicts[0].results]
    assert [reply, reply] == texts
    assert talk.source.verdicts[0].fault is None


def test_mail_refused_but_recipient_and_data_accepted() -> None:
    """A relay that contradicts itself gets no dot, which might send an empty message."""
    talk = Scripted(MemorySource().add())
    talk.greets("PIPELINING")
    assert talk.says("550 no", "250 ok", "354 go") == b""
    assert talk.conversation.closed
    assert talk.source.outcomes(0) == ["failed"]


def test_rcpt_is_the_recipients() -> None:
    """Each reply to RCPT is that recipient's alone, by index, and 552 counts as 452."""
    talk = Scripted(MemorySource().add("a@b", "c@d", "a@b", "e@f"))
    talk.greets("PIPELINING")
    talk.says("250 ok", "550 no", "250 ok", "450 later", "552 too many", "354 go")
    assert talk.says("250 ok") == b"QUIT\r\n"
    assert talk.source.outcomes(0) == ["failed", "delivered", "deferred", "deferred"]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [("452 full", "deferred"), ("554 spam", "failed"), ("250 ok", "delivered")],
)
def test_final_reply(reply: str, outcome: str) -> None:
    """The reply after the data is for all whom the relay had accepted, and for no others."""
    talk = Scripted(MemorySource().add("a@b", "c@d"))
    talk.greets("PIPELINING")
    talk.says("250 ok", "250 ok", "551 elsewhere", "354 go")
    talk.says(reply)
    assert [outcome, "failed"] == talk.source.outcomes(0)
    assert talk.source.verdicts[0].results[1].text == "551 elsewhere"


def test_data_is_the_messages() -> None:
    """A refusal of DATA defers or fails those who were accepted."""
    talk = Scripted(MemorySource().add("a@b", "c@d"))
    talk.greets("PIPELINING")
    assert talk.says("250 ok", "250 ok", "550 no", "451 later") == b"RSET\r\n"
    assert talk.says("250 reset") == b"QUIT\r\n"
    assert talk.source.outcomes(0) == ["deferred", "failed"]


def test_data_refused_and_hung_up() -> None:
    """A refusal of DATA counts though the relay leaves with it."""
    talk = Scripted(MemorySource().add("a@b", "c@d"))
    talk.greets("PIPELINING")
    talk.says("250 ok", "250 ok", "550 no", "554 go away")
    talk.conversation.receive_eof()
    assert talk.source.outcomes(0) == ["failed", "failed"]
    assert talk.conversation.fault is not None


STEPS = ["banner", "ehlo", "mail", "rcpt", "data", "final-dot"]


@pytest.mark.parametrize("code", [421, 530])
@pytest.mark.parametrize("step", STEPS)
def test_421_and_530_are_the_relays(code: int, step: str) -> None:
    """At whatever step they come, no message is charged and none is in doubt."""
    source = MemorySource().add().add()
    talk = Scripted(source)
    at_step(talk, step)
    assert talk.says(f"{code} 4.7.0 not now") == b""
    fault = talk.conversation.fault
    assert fault is not None
    assert step == fault.stage
    assert talk.conversation.closed
    assert all(source.outcomes(key) == ["untried"] for key in source.verdicts)
    assert all(verdict.fault == fault for verdict in source.verdicts.values())
    assert not any(verdict.in_doubt for verdict in source.verdicts.values())


def at_step(talk: Scripted, step: str) -> None:
    """Bring a pipelined conversation to where the reply for a step comes next."""
    if step == "banner":
        return
    talk.says("220 ready")
    if step == "ehlo":
        return
    talk.says("250-relay", "250 PIPELINING")
    replies = {"mail": 0, "rcpt": 1, "data": 2, "final-dot": 3}[step]
    for reply in OK3[:replies]:
        talk.says(reply)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("ending", [b"", b"25", b"250-half\r\n"])
def test_end_of_the_connection(step: str, ending: bytes) -> None:
    """A lost connection is the relay's; only after the dot is one message in doubt, not two."""
    source = MemorySource().add().add()
    talk = Scripted(source)
    at_step(talk, step)
    if ending:
        talk.sends(ending)
    talk.conversation.receive_eof()
    fault = talk.conversation.fault
    assert fault is not None
    assert step == fault.stage
    in_doubt = [key for key, verdict in source.verdicts.items() if verdict.in_doubt]
    assert ([0] if step == "final-dot" else []) == in_doubt
    assert all(source.outcomes(key) == ["untried"] for key in source.verdicts)


def test_dot_that_never_left() -> None:
    """While the dot is still in our own buffer nothing is in doubt."""
    source = MemorySource().add()
    talk = Scripted(source)
    talk.greets("PIPELINING")
    talk.conversation.receive(group(*OK3))
    talk.conversation.receive_eof()
    assert not source.verdicts[0].in_doubt


def test_what_was_accepted_stays_accepted() -> None:
    """A connection that breaks in the second message does not touch the first."""
    source = MemorySource().add().add()
    talk = Scripted(source)
    talk.greets("PIPELINING")
    talk.says(*OK3)
    talk.says("250 one")
    talk.conversation.receive_eof()
    assert source.outcomes(0) == ["delivered"]
    assert source.outcomes(1) == ["untried"]
    assert source.verdicts[0].fault is None
    assert source.verdicts[1].fault is not None


@pytest.mark.parametrize("step", ["ehlo", "data", "final-dot"])
def test_unasked(step: str) -> None:
    """A reply that nobody asked for ends the session before anything more is said."""
    source = MemorySource().add().add()
    talk = Scripted(source)
    at_step(talk, step)
    reply = {"ehlo": "250 ok", "data": "354 go", "final-dot": "250 ok"}[step]
    if step == "final-dot":
        # Four replies are awaited: the fifth is too many.
        assert talk.says(reply, *OK3, "250 extra") == b""
        assert source.outcomes(0) == ["delivered"]
        assert source.outcomes(1) == ["untried"]
    else:
        assert talk.says(reply, "250 extra") == b""
        assert all(source.outcomes(key) == ["untried"] for key in source.verdicts)
    assert talk.conversation.closed
    assert talk.conversation.fault is not None
    assert not any(verdict.in_doubt for verdict in source.verdicts.values())


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "replies",
    [
        ("250 ok", "550 bad", "250 good", "354 go"),
        ("250 ok", "250 good", "550 bad", "354 go"),
    ],
)
def test_one_reply_too_many(replies: tuple[str, ...], at_once: bool) -> None:  # noqa: FBT001
    """What follows it is shifted: no recipient is charged with the reply to another."""
    source = MemorySource().add().add("a@b", "c@d")
    talk = Scripted(source)
    talk.greets("PIPELINING")
    talk.says(*OK3)
    told = ("250 queued", "250 extra", *replies)
    for lines in [told] if at_once else [(line,) for line in told]:
        talk.says(*lines)
    talk.conversation.receive_eof()
    assert source.outcomes(0) == ["delivered"]
    assert source.outcomes(1) == ["untried", "untried"]
    assert talk.conversation.fault is not None


@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("banner", "354 go"),
        ("banner", "554 no"),
        ("ehlo", "451 later"),
        ("mail", "354 go"),
        ("rcpt", "334 eh"),
        ("data", "250 ok"),
        ("final-dot", "354 go"),
        ("mail", "nonsense"),
        ("final-dot", "nonsense"),
    ],
)
def test_replies_out_of_place(step: str, reply: str) -> None:
    """A reply that cannot be one here is the relay's fault."""
    source = MemorySource().add()
    talk = Scripted(source)
    at_step(talk, step)
    talk.says(reply)
    assert talk.conversation.closed
    assert talk.conversation.fault is not None
    assert all(source.outcomes(key) == ["untried"] for key in source.verdicts)
    # After the dot, what is no reply leaves us as wise as silence does.
    assert all((step == "final-dot") == v.in_doubt for v in source.verdicts.values())


def test_helo() -> None:
    """A relay that does not know EHLO is greeted with HELO, and offers nothing."""
    talk = Scripted(MemorySource().add())
    talk.says("220 old")
    assert talk.says("500 what?") == b"HELO me.example\r\n"
    assert talk.says("250 old") == group(MAIL)


def test_size() -> None:
    """What the relay would not take is never sent, and fails with 5.3.4; the rest goes on."""
    source = MemorySource().add(body=MemoryBody(b"x" * 200)).add()
    talk = Scripted(source)
    assert talk.greets("PIPELINING", "SIZE 100") == group(f"{MAIL} SIZE=21", RCPT, "DATA")
    assert source.outcomes(0) == ["failed"]
    assert source.verdicts[0].results[0].text.startswith("5.3.4 ")


def test_size_at_the_limit() -> None:
    """The limit is for what goes over the wire without the stuffed dots (RFC 1870 5)."""
    source = MemorySource().add(body=MemoryBody(b".\n.\n")).add(body=MemoryBody(b".\n.\n.\n"))
    talk = Scripted(source)
    talk.greets("PIPELINING", "SIZE 6")
    assert 0 not in source.verdicts
    talk.says(*OK3)
    assert source.outcomes(1) == ["failed"]


def test_size_without_a_limit() -> None:
    """SIZE 0 and SIZE alone offer the parameter and set no limit."""
    for offer in ("SIZE", "SIZE 0"):
        talk = Scripted(MemorySource().add())
        assert b" SIZE=" in talk.greets("PIPELINING", offer)


def test_eight_bit() -> None:
    """8-bit mail is declared where it may be, and fails with 5.6.3 where not."""
    body = MemoryBody("é\n".encode())
    talk = Scripted(MemorySource().add(body=body))
    assert talk.greets("8BITMIME") == group(f"{MAIL} BODY=8BITMIME")
    talk = Scripted(MemorySource().add(body=body))
    assert talk.greets("SIZE") == b"QUIT\r\n"
    assert talk.source.verdicts[0].results[0].text.startswith("5.6.3 ")


def test_smtputf8() -> None:
    """SMTPUTF8 is asked for when the envelope needs it, and only then."""
    offers = ("PIPELINING", "8BITMIME", "SMTPUTF8")
    talk = Scripted(MemorySource().add(body=MemoryBody("Subject: é\n\n".encode())))
    assert b"SMTPUTF8" not in talk.greets(*offers)
    talk = Scripted(MemorySource().add("é@example.net"))
    assert "RCPT TO:<é@example.net>".encode() in (said := talk.greets(*offers))
    assert group(f"{MAIL} SMTPUTF8") in said


def test_smtputf8_not_offered() -> None:
    """Without it those recipients fail, the others do not; a sender in need fails all."""
    source = MemorySource().add("é@b", "r@example.net").add("r@example.net", sender="é@b")
    talk = Scripted(source)
    talk.greets("PIPELINING")
    talk.says(*OK3)
    talk.says("250 ok")
    assert source.outcomes(0) == ["failed", "delivered"]
    assert source.outcomes(1) == ["failed"]
    assert source.verdicts[1].results[0].text.startswith("5.6.7 ")


def test_unsendable_address() -> None:
    """An address that is no path fails alone."""
    source = MemorySource().add("a@b> SIZE=1", "r@example.net")
    talk = Scripted(source)
    assert talk.greets("PIPELINING") == ENVELOPE
    talk.says(*OK3)
    talk.says("250 ok")
    assert source.outcomes(0) == ["failed", "delivered"]


def test_dsn() -> None:
    """Parameters of RFC 3461 where they are offered; nothing of them where not."""
    dsn: dict[str, object] = {"notify": "success,failure", "ret": "hdrs", "envid": "id 1"}
    talk = Scripted(MemorySource().add(dsn=dsn))
    assert talk.greets("PIPELINING", "DSN") == group(
        f"{MAIL} RET=HDRS ENVID=id+201", f"{RCPT} NOTIFY=SUCCESS,FAILURE", "DATA"
    )
    talk = Scripted(MemorySource().add(dsn=dsn))
    assert talk.greets("PIPELINING") == ENVELOPE


def test_dsn_nonsense() -> None:
    """What is no value of RFC 3461 never reaches a command."""
    talk = Scripted(MemorySource().add(dsn={"notify": "x\r\nDATA", "ret": "all", "envid": "\r\n"}))
    assert talk.greets("PIPELINING", "DSN") == group(f"{MAIL} ENVID=+0D+0A", RCPT, "DATA")


def test_null_sender() -> None:
    """The null sender and the double bounce go out as <>."""
    source = MemorySource().add(sender="").add(sender="#@[]")
    talk = Scripted(source)
    assert b"MAIL FROM:<>\r\n" in talk.greets("PIPELINING")
    assert b"MAIL FROM:<>\r\n" in talk.says(*OK3)


LMTP = SessionOptions("me.example", is_lmtp=True)


def test_lmtp() -> None:
    """One reply a recipient after the data, only for those who were accepted (RFC 2033 4.2)."""
    source = MemorySource().add("a@b", "c@d", "e@f", "a@b")
    talk = Scripted(source, LMTP)
    talk.greets("PIPELINING")
    talk.says("250 ok", "250 ok", "550 no", "250 ok", "250 ok", "354 go")
    assert talk.says("250 one") == b""
    assert talk.says("452 full", "550 gone") == b"QUIT\r\n"
    assert source.outcomes(0) == ["delivered", "failed", "deferred", "failed"]


def test_lmtp_breaks_off() -> None:
    """Who was delivered before the connection broke stays delivered; the others are in doubt."""
    source = MemorySource().add("a@b", "c@d")
    talk = Scripted(source, LMTP)
    talk.greets("PIPELINING")
    talk.says("250 ok", "250 ok", "250 ok", "354 go")
    talk.says("250 one")
    talk.conversation.receive_eof()
    assert source.outcomes(0) == ["delivered", "untried"]
    assert source.verdicts[0].in_doubt


def test_lmtp_421_is_a_reply_for_one() -> None:
    """A 421 says that one recipient was not served; it leaves those after it in doubt."""
    source = MemorySource().add("a@b", "c@d").add("a@b", "c@d")
    talk = Scripted(source, LMTP)
    talk.greets("PIPELINING")
    talk.says("250 ok", "250 ok", "250 ok", "354 go")
    talk.says("250 one", "421 bye")
    assert source.outcomes(0) == ["delivered", "untried"]
    assert not source.verdicts[0].in_doubt
    source = MemorySource().add("a@b", "c@d")
    talk = Scripted(source, LMTP)
    talk.greets("PIPELINING")
    talk.says("250 ok", "250 ok", "250 ok", "354 go")
    talk.says("421 bye")
    assert source.verdicts[0].in_doubt


def test_lmtp_354_for_nobody() -> None:
    """How many replies a dot would get is anybody's guess, so there is none."""
    talk = Scripted(MemorySource().add(), LMTP)
    talk.greets("PIPELINING")
    assert talk.says("250 ok", "550 no", "354 go") == b""
    assert talk.conversation.closed
    assert talk.source.outcomes(0) == ["failed"]


def test_body_that_cannot_be_read() -> None:
    """A body that fails before its envelope is put back untried, and the next one goes on."""
    source = MemorySource().add(body=MemoryBody(error=OSError(5, "I/O error"))).add()
    talk = Scripted(source)
    assert talk.greets("PIPELINING") == ENVELOPE
    assert source.outcomes(0) == ["untried"]
    assert "I/O error" in source.verdicts[0].results[0].text
    assert source.verdicts[0].fault is None


def test_big_body_that_cannot_be_read_on() -> None:
    """Where the data have begun, only hanging up keeps half a message from being one."""
    body = MemoryBody(b"x\n" * 200000, error=OSError(5, "I/O error"))
    source = MemorySource().add(body=body).add()
    talk = Scripted(source)
    talk.greets("PIPELINING")
    said = talk.says(*OK3)
    assert len(said) > 500000
    assert b"\r\n.\r\n" not in said
    assert talk.conversation.closed
    assert source.outcomes(0) == ["untried"]
    assert not source.verdicts[0].in_doubt


def test_big_body() -> None:
    """A big body goes out block by block; the dot and the next envelope come behind it."""
    source = MemorySource().add(body=MemoryBody(b".\n" * 200000)).add()
    talk = Scripted(source)
    talk.greets("PIPELINING")
    assert talk.says(*OK3) == b"..\r\n" * 200000 + b".\r\n" + ENVELOPE


def test_reply_in_the_middle_of_a_big_body() -> None:
    """Nothing is asked while data go out; whoever speaks then is not trusted with the dot."""
    source = MemorySource().add(body=MemoryBody(b"x\n" * 200000))
    talk = Scripted(source)
    talk.greets("PIPELINING")
    talk.conversation.receive(group(*OK3))
    talk.conversation.output = []
    assert source.verdicts == {}
    assert talk.says("452 disk full") == b""
    assert talk.conversation.closed
    fault = talk.conversation.fault
    assert fault is not None
    assert fault.reply is not None
    assert fault.reply.code == 452
    assert not source.verdicts[0].in_doubt


def test_mark_that_cannot_be_made() -> None:
    """Without the mark of doubt the end of the data is not sent."""
    source = MemorySource().add(mark_error=OSError(28, "No space left"))
    talk = Scripted(source)
    talk.greets("PIPELINING")
    assert talk.says(*OK3) == b""
    assert talk.conversation.closed
    assert source.outcomes(0) == ["untried"]


def test_message_limit() -> None:
    """A connection carries so many messages and no more; the rest are not even taken."""
    source = MemorySource().add().add().add()
    talk = Scripted(source, SessionOptions("me.example", messages=2))
    talk.greets("PIPELINING")
    talk.says(*OK3)
    talk.says("250 ok", *OK3)
    assert talk.says("250 ok") == b"QUIT\r\n"
    assert len(source.waiting) == 1


@pytest.mark.parametrize("reply", ["421 bye", "500 no", "garbage"])
def test_the_reply_to_quit_does_not_matter(reply: str) -> None:
    """All was recorded before QUIT."""
    talk = Scripted(MemorySource())
    assert talk.greets("PIPELINING") == b"QUIT\r\n"
    talk.says(reply)
    assert talk.conversation.closed
    assert talk.conversation.fault is None


def test_starttls() -> None:
    """After STARTTLS everything begins anew with EHLO."""
    talk = Scripted(MemorySource().add(), SessionOptions("me.example", starttls="must"))
    assert talk.greets("STARTTLS") == b"STARTTLS\r\n"
    assert talk.says("220 go") == b"<TLS>EHLO me.example\r\n"
    assert talk.says("250-relay", "250 PIPELINING") == ENVELOPE


def test_starttls_injection() -> None:
    """What somebody put behind the 220 in clear is never taken for something said under TLS."""
    talk = Scripted(MemorySource().add(), SessionOptions("me.example", starttls="must"))
    talk.greets("STARTTLS")
    assert talk.says("220 go", "250 injected") == b""
    assert talk.conversation.fault is not None
    assert talk.conversation.fault.stage == "tls"


@pytest.mark.parametrize(
    ("offers", "reply"), [(("SIZE",), None), (("STARTTLS",), "454 not now"), ((), "500 what")]
)
def test_tls_that_must_be(offers: tuple[str, ...], reply: str | None) -> None:
    """Where TLS is demanded nothing is sent without it."""
    talk = Scripted(MemorySource().add(), SessionOptions("me.example", starttls="must"))
    said = talk.greets(*offers)
    if offers == ("STARTTLS",):
        said = talk.says(reply or "")
    assert b"MAIL" not in said
    assert talk.conversation.fault is not None
    assert talk.conversation.fault.stage == "tls"


def test_tls_that_may_be() -> None:
    """Where it is only wished for, a relay that cannot is served in clear."""
    options = SessionOptions("me.example", starttls="may")
    assert Scripted(MemorySource().add(), options).greets("PIPELINING") == ENVELOPE
    talk = Scripted(MemorySource().add(), options)
    talk.greets("PIPELINING", "STARTTLS")
    assert talk.says("454 not now") == ENVELOPE


SECRET = Credentials("alice", RelayPassword("hunter2"))
LOGIN = SessionOptions("me.example", credentials=SECRET, cleartext_auth=True)


def test_login() -> None:
    """The login comes before the first message."""
    talk = Scripted(MemorySource().add(), LOGIN)
    assert talk.greets("PIPELINING", "AUTH PLAIN").startswith(b"AUTH PLAIN ")
    assert talk.says("235 welcome") == ENVELOPE


@pytest.mark.parametrize("reply", ["535 5.7.8 wrong", "454 4.7.0 later", "421 bye", "250x"])
def test_refused_login(reply: str) -> None:
    """A refused login is the relay's: no message was touched."""
    source = MemorySource().add()
    talk = Scripted(source, LOGIN)
    talk.greets("AUTH PLAIN")
    assert talk.says(reply) == b""
    assert talk.conversation.fault is not None
    assert talk.conversation.fault.stage == "auth"
    assert source.events == []


def test_next_mechanism() -> None:
    """A mechanism that is too weak or unknown after all is followed by the next."""
    talk = Scripted(MemorySource().add(), LOGIN)
    talk.greets("PIPELINING", "AUTH PLAIN LOGIN")
    assert talk.says("504 not that one") == b"AUTH LOGIN\r\n"
    talk.says("334 VXNlcm5hbWU6")
    talk.says("334 UGFzc3dvcmQ6")
    assert talk.says("235 welcome") == ENVELOPE


def test_each_user_has_a_round_of_logins() -> None:
    """A relay that refuses one user is not asked for that one again, but for another one."""
    lessons = Lessons()
    other = Credentials("bob", RelayPassword("swordfish"))
    for credentials, expected in ((SECRET, b"AUTH PLAIN "), (SECRET, b""), (other, b"AUTH PLAIN ")):
        options = SessionOptions("me.example", credentials=credentials, cleartext_auth=True)
        talk = Scripted(MemorySource().add(), options, lessons)
        said = talk.greets("AUTH PLAIN")
        assert (bool(expected), expected) == (bool(said), said[: len(expected)])
        talk.says("535 5.7.8 no")
        assert talk.conversation.fault is not None
        assert talk.conversation.fault.stage == "auth"
        # Also the connection that did not ask tells what the relay said.
        assert "535 5.7.8 no" in talk.conversation.fault.text


def test_one_connection_logs_in_first() -> None:
    """The others wait for it: they see that it is at it, for the first login of a run only."""
    lessons = Lessons()
    for logging_in in ({"alice"}, set()):
        talk = Scripted(MemorySource().add(), LOGIN, lessons)
        talk.greets("PIPELINING", "AUTH PLAIN")
        assert logging_in == lessons.logging_in
        assert talk.says("235 welcome") == ENVELOPE
        assert ({"alice"}, set()) == (lessons.logged_in, lessons.logging_in)


def test_an_impostor_gets_no_other_login() -> None:
    """A relay that says yes before it has proved that it knows the password gets no password."""
    talk = Scripted(MemorySource().add(), LOGIN)
    assert talk.greets("AUTH SCRAM-SHA-256 PLAIN").startswith(b"AUTH SCRAM-SHA-256 ")
    assert talk.says("235 welcome") == b""
    assert talk.conversation.fault is not None
    assert "without proving" in talk.conversation.fault.text


@pytest.mark.parametrize(
    ("reply", "in_doubt"),
    [
        ("400 HELO: no PTR record of your host", False),
        ("550 HELO: no PTR record of your host", False),
        ("421 closing", False),
        ("399 what", True),
    ],
)
def test_a_chunk_behind_a_refused_envelope(reply: str, *, in_doubt: bool) -> None:
    """It is for nobody, unless the reply says nothing that can be understood."""
    talk = Scripted(MemorySource().add())
    assert talk.greets("PIPELINING", "CHUNKING").endswith(WIRE)
    talk.says(reply)
    assert talk.conversation.fault is not None
    assert ["untried"] == talk.source.outcomes(0)
    assert in_doubt == talk.source.verdicts[0].in_doubt


def test_no_word_behind_the_final_dot() -> None:
    """A relay that drops what follows the dot gets the same envelope again, without that."""
    lessons = Lessons()
    source = MemorySource().add().add()
    talk = Scripted(source, lessons=lessons)
    talk.greets("PIPELINING")
    talk.says(*OK3)
    talk.says("250 one")
    assert talk.conversation.limit < 60
    talk.conversation.timed_out()
    assert source.outcomes(0) == ["delivered"]
    fault = source.verdicts[1].fault
    assert fault is not None
    assert fault.again
    assert not source.verdicts[1].in_doubt
    assert lessons.knows(LONE_DOT)
    talk = Scripted(MemorySource().add().add(), lessons=lessons)
    assert talk.greets("PIPELINING") == ENVELOPE
    assert talk.says(*OK3) == WIRE + b".\r\n"
    assert talk.says("250 one") == ENVELOPE


def test_no_password_without_tls() -> None:
    """Unless told so."""
    talk = Scripted(MemorySource().add(), SessionOptions("me.example", credentials=SECRET))
    assert talk.greets("AUTH PLAIN") == b""
    assert talk.conversation.fault is not None
    assert talk.conversation.fault.stage == "auth"


def test_login_not_offered() -> None:
    """A relay that offers no login that we know is not used without one."""
    talk = Scripted(MemorySource().add(), LOGIN)
    assert talk.greets("AUTH GSSAPI") == b""
    assert talk.conversation.fault is not None
    assert "GSSAPI" in talk.conversation.fault.text


def test_secrets_stay_out_of_faults() -> None:
    """A relay that repeats what we said cannot make us write it down."""
    talk = Scripted(MemorySource().add(), LOGIN)
    said = talk.greets("AUTH PLAIN").decode().strip()
    talk.says(f"535 you said {said}, so hunter2")
    text = repr(talk.conversation.fault)
    assert "hunter2" not in text
    assert said.split()[-1] not in text
    assert "<secret>" in text


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_secrets_stay_out_of_replies(mechanism: str) -> None:
    """Nor does a relay that says them later on, when it refuses a message or breaks off."""
    source = MemorySource().add().add()
    talk = Scripted(source, LOGIN)
    said = talk.greets(f"AUTH {mechanism}").split()[-1].decode()
    if mechanism == "LOGIN":
        talk.says("334 VXNlcm5hbWU6")
        said = talk.says("334 UGFzc3dvcmQ6").decode().strip()
    talk.says("235 welcome")
    talk.says(f"550 you said {said}, so hunter2, alice")
    assert source.verdicts[0].results[0].text == "550 you said <secret>, so <secret>, alice"
    assert source.verdicts[0].transcript[-1].endswith("<secret>, alice")
    talk.says(f"hunter2 is no reply, nor is {said}")
    assert talk.conversation.fault is not None
    texts = repr(talk.conversation.fault) + repr(source.verdicts[1])
    assert "hunter2" not in texts
    assert said not in texts


def test_what_a_relay_says_is_kept_short() -> None:
    """A fault is a line of the log, of relay-down and of status: a long reply is cut there."""
    talk = Scripted(MemorySource().add())
    talk.says(*[f"554-{'x' * 1900}"] * 30, "554 no")
    assert talk.conversation.fault is not None
    assert 1000 == len(talk.conversation.fault.text)


def test_transcript() -> None:
    """The dialogue of a transaction, each command with its reply."""
    source = MemorySource().add()
    talk = Scripted(source)
    talk.greets("PIPELINING")
    talk.says(*OK3)
    talk.says("250 2.0.0 queued")
    assert source.verdicts[0].transcript == (
        f"C: {MAIL}", "S: 250 ok", f"C: {RCPT}", "S: 250 ok", "C: DATA", "S: 354 go",
        "C: .", "S: 250 2.0.0 queued",
    )  # fmt: skip


REPLIES = st.sampled_from(
    ["250 ok", "354 go", "450 later", "550 no", "421 bye", "503 order", "250-half", "x", "334 ?"]
)


@given(
    offers=st.sets(st.sampled_from(["PIPELINING", "CHUNKING", "SIZE", "8BITMIME", "DSN"])),
    replies=st.lists(REPLIES, max_size=30),
    lmtp=st.booleans(),
)
def test_every_message_has_one_end(
    offers: set[str],
    replies: list[str],
    lmtp: bool,  # noqa: FBT001
) -> None:
    """Whatever a relay says, each message that was taken comes back exactly once, with reason."""
    source = MemorySource()
    for _ in range(4):
        source.add("a@b", "c@d")
    talk = Scripted(source, SessionOptions("me.example", is_lmtp=lmtp))
    said = talk.greets("X", *sorted(offers))
    for reply in replies:
        said += talk.says(reply)
    if not talk.conversation.closed:
        talk.conversation.receive_eof()
    taken = [key for event, key in source.events if event == "take"]
    done = [key for event, key in source.events if event == "done"]
    assert taken == done
    assert len(set(done)) == len(done)
    for verdict in source.verdicts.values():
        untried = [result for result in verdict.results if result.outcome == "untried"]
        assert bool(untried) <= (verdict.fault is not None)
        assert all(result.reply for result in verdict.results if result.outcome != "untried")
    assert sum(verdict.in_doubt for verdict in source.verdicts.values()) <= 1
    delivered = [k for k in source.verdicts if "delivered" in source.outcomes(k)]
    assert len(delivered) <= said.count(b"hello\r\n")


def test_a_session_carries_five_hundred_messages() -> None:
    """Unless it is told another number."""
    source = MemorySource()
    for _ in range(501):
        source.add()
    talk = Scripted(source)
    said = talk.greets("SIZE 1000")
    while said and not said.endswith(b"QUIT\r\n"):
        said = talk.says("354 go" if said == b"DATA\r\n" else "250 ok")
    assert (500, 1) == (talk.conversation.served, source.backlog())
