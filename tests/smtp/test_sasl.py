"""Logging in: known results, the proof that the relay owes us, and nothing that shows a secret."""

from __future__ import annotations

import base64
import traceback
from typing import TYPE_CHECKING

import pytest

from picoqmail.home.secret import RelayPassword
from picoqmail.smtp import sasl

if TYPE_CHECKING:
    from collections.abc import Callable

ALICE = sasl.Credentials("alice", RelayPassword("hunter2"))
TOKEN = sasl.Credentials("alice", RelayPassword("oauth2!echo ya29.token"))


def b64(text: bytes) -> str:
    """Return base64 as a relay would write it."""
    return base64.b64encode(text).decode()


def test_plain() -> None:
    """RFC 4616: authorization identity, user, password, in the command."""
    login = sasl.Login("PLAIN", ALICE)
    assert b"AUTH PLAIN " + base64.b64encode(b"\0alice\0hunter2") == login.command()


def test_login() -> None:
    """The relay asks for both, whatever it calls them."""
    login = sasl.Login("LOGIN", ALICE)
    assert login.command() == b"AUTH LOGIN"
    assert login.respond(b64(b"Who?")) == base64.b64encode(b"alice")
    assert login.respond("") == base64.b64encode(b"hunter2")
    assert login.respond("") == b"*"


def test_cram_md5() -> None:
    """The example of RFC 2195."""
    tim = sasl.Credentials("tim", RelayPassword("tanstaaftanstaaf"))
    login = sasl.Login("CRAM-MD5", tim)
    assert login.command() == b"AUTH CRAM-MD5"
    response = login.respond(b64(b"<1896.697170952@postoffice.reston.mci.net>"))
    assert base64.b64decode(response) == b"tim b913a602c7eda7a495b4e6e7334d3890"


SCRAM_NONCE = b"rOprNGfwEbeRWgbNEkqO"
SCRAM_FIRST = (
    b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
)
SCRAM_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_scram() -> None:
    """The example of RFC 7677 3."""
    user = sasl.Credentials("user", RelayPassword("pencil"))
    dialogue = sasl.scram_sha_256(user, SCRAM_NONCE)
    assert next(dialogue) == b"n,,n=user,r=" + SCRAM_NONCE
    assert dialogue.send(SCRAM_FIRST) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert dialogue.send(SCRAM_FINAL) == b""


def test_scram_relay_without_the_password() -> None:
    """A relay whose signature is wrong does not know us."""
    user = sasl.Credentials("user", RelayPassword("pencil"))
    dialogue = sasl.scram_sha_256(user, SCRAM_NONCE)
    next(dialogue)
    dialogue.send(SCRAM_FIRST)
    with pytest.raises(sasl.SaslError, match="prove"):
        dialogue.send(b"v=" + b64(b"x" * 32).encode())


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"r=other,s=W22Z,i=4096",
        b"r=" + SCRAM_NONCE + b",s=W22Z,i=4096",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=99999999",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=0",
        b"r=" + SCRAM_NONCE + b"x,s=*,i=4096",
        b"r=" + SCRAM_NONCE + b"x,s=,i=4096",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=x",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=1",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=4095",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=+4096",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=04096",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z",
        b"m=must,r=" + SCRAM_NONCE + b"x,s=W22Z,i=4096",
        b"s=W22Z,r=" + SCRAM_NONCE + b"x,i=4096",
        b"x=,r=" + SCRAM_NONCE + b"x,s=W22Z,i=4096",
        b"r=" + SCRAM_NONCE + b"\n,s=W22Z,i=4096",
        b"r=" + SCRAM_NONCE + b"\xe9,s=W22Z,i=4096",
        b"r=" + SCRAM_NONCE + b"x,s=W22Z,i=4096x",
    ],
)
def test_scram_hostile_challenge(challenge: bytes) -> None:
    """Another nonce, no salt, an unknown extension, too few rounds or too many are refused."""
    dialogue = sasl.scram_sha_256(ALICE, SCRAM_NONCE)
    next(dialogue)
    with pytest.raises(sasl.SaslError):
        dialogue.send(challenge)


@pytest.mark.parametrize("final", [b"", b"e=other-error", b"m=x,v=%s", b"x=,v=%s", b"V=%s"])
def test_scram_hostile_proof(final: bytes) -> None:
    """The relay's proof stands first in its last message (RFC 5802 7), or it is none."""
    user = sasl.Credentials("user", RelayPassword("pencil"))
    dialogue = sasl.scram_sha_256(user, SCRAM_NONCE)
    next(dialogue)
    dialogue.send(SCRAM_FIRST)
    with pytest.raises(sasl.SaslError, match="prove"):
        dialogue.send(final.replace(b"%s", SCRAM_FINAL[2:]))


def test_scram_yes_too_soon() -> None:
    """A 235 before the relay has proved itself is no login."""
    login = sasl.Login("SCRAM-SHA-256", ALICE)
    login.command()
    with pytest.raises(sasl.SaslError, match="proving"):
        login.check(accepted=True)


def test_oauth() -> None:
    """Both token mechanisms as documented; the explanation of a refusal is acknowledged."""
    login = sasl.Login("XOAUTH2", TOKEN)
    initial = base64.b64decode(login.command().removeprefix(b"AUTH XOAUTH2 "))
    assert initial == b"user=alice\1auth=Bearer ya29.token\1\1"
    assert login.respond(b64(b'{"status":"401"}')) == b""
    login = sasl.Login("OAUTHBEARER", TOKEN)
    initial = base64.b64decode(login.command().removeprefix(b"AUTH OAUTHBEARER "))
    assert initial == b"n,a=alice,\1auth=Bearer ya29.token\1\1"
    assert login.respond(b64(b'{"status":"invalid_token"}')) == base64.b64encode(b"\1")


def test_a_long_first_response_waits() -> None:
    """RFC 4954 4: the command stays within 512 octets, the token follows when asked for."""
    token = sasl.Credentials("alice", RelayPassword("oauth2!echo " + "t" * 900))
    login = sasl.Login("XOAUTH2", token)
    assert login.command() == b"AUTH XOAUTH2"
    assert b"t" * 900 in base64.b64decode(login.respond(""))


def test_choice() -> None:
    """The strongest of what both sides know; a token is never offered as a password."""
    offered = ("LOGIN", "plain", "XOAUTH2", "CRAM-MD5", "GSSAPI", "SCRAM-SHA-256", "OAUTHBEARER")
    expected = ["SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN"]
    assert expected == sasl.choose(offered, oauth2=False)
    assert ["OAUTHBEARER", "XOAUTH2"] == sasl.choose(offered, oauth2=True)
    assert [] == sasl.choose(("GSSAPI",), oauth2=False)


def test_broken_challenge_calls_it_off() -> None:
    """A challenge that is not base64 ends the login with a star, and says why."""
    login = sasl.Login("CRAM-MD5", ALICE)
    login.command()
    assert login.respond("not base64!") == b"*"
    with pytest.raises(sasl.SaslError, match="base64"):
        login.check(accepted=False)


@pytest.mark.parametrize("show", [repr, str])
def test_nothing_secret_in_texts(show: Callable[[object], str]) -> None:
    """Neither credentials nor a login show what they hold; nor does a traceback."""
    login = sasl.Login("LOGIN", ALICE)
    login.command()
    texts = show(ALICE) + show(login)
    try:
        login.respond("?")
        login.check(accepted=False)
    except sasl.SaslError:
        texts += traceback.format_exc()
    assert "<secret>" in texts
    assert "hunter2" not in texts


def test_redaction() -> None:
    """A relay that says our password back does not get it into a log, in whatever form."""
    login = sasl.Login("PLAIN", ALICE)
    line = login.command().decode()
    said = f"535 you said {line}, that is hunter2 or {b64(b'hunter2')}"
    assert login.redact(said) == "535 you said AUTH PLAIN <secret>, that is <secret> or <secret>"
