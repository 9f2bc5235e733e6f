"""Logging in: the SASL mechanisms, each a generator of responses.

The rule of this module: a secret is revealed only where a response is made of it. No attribute
keeps it, and no text shows it. A mechanism yields what the client says (None: nothing yet, the
server speaks first) and receives what the server said, both without base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets

from picoqmail.smtp.redaction import Redactor
from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable
    from typing import Final, Protocol

    Dialogue = Generator[bytes | None, bytes, None]
    Mechanism = Callable[["Credentials"], Dialogue]

    class Secret(Protocol):
        """A password or token that is read only when it is needed."""

        oauth2: bool

        @property
        def is_known(self) -> bool:
            """Whether `reveal` returns at once, without an error."""

        def reveal(self) -> str:
            """Return the secret in clear. Raises OSError, which says why there is none."""


LEAST_ITERATIONS = 4096
"""RFC 7677 4 demands so many rounds of SCRAM. With fewer a relay could guess the password from our
proof."""

ITERATIONS_LIMIT = 1_000_000
"""Rounds of SCRAM that a relay may ask for: more would stop the whole run."""

_NONCE_OCTETS = 18
_COMMAND_LIMIT = 500  # RFC 4954 4: the command with its first response, 512 with CRLF
_MUTUAL_ROUNDS = 3
_SEPARATORS = re.compile(rb"[\0\1, ]+")
# Parts of responses that are the same for everybody.
_NO_SECRETS = (b"", b"n", b"biws", b"Bearer")


class SaslError(Exception):
    """The dialogue cannot go on. The text holds nothing secret."""


class ImpostorError(SaslError):
    """The relay cannot prove that it knows the password, so no other mechanism may show it."""


class Credentials(Value):
    """The user that we are at the relay, with a password, or a token (``secret.oauth2``)."""

    __slots__ = ("user", "secret")

    def __init__(self, user: str, secret: Secret) -> None:
        self.user: Final = user
        self.secret: Final = secret

    def __repr__(self) -> str:
        """Show the user, and nothing secret."""
        return f"Credentials(user={self.user!r}, secret=<secret>)"


def plain(credentials: Credentials) -> Dialogue:
    """PLAIN, RFC 4616."""
    response = b"\0" + credentials.user.encode() + b"\0" + _reveal(credentials)
    yield response
    yield response  # asked for once more by relays that do not know a response in the command


def login(credentials: Credentials) -> Dialogue:
    """LOGIN, which was never standardised, but is the only one that some relays offer."""
    yield None
    yield credentials.user.encode()
    yield _reveal(credentials)


def cram_md5(credentials: Credentials) -> Dialogue:
    """CRAM-MD5, RFC 2195."""
    challenge = yield None
    digest = hmac.new(_reveal(credentials), challenge, "md5").hexdigest()
    yield credentials.user.encode() + b" " + digest.encode()


def scram_sha_256(credentials: Credentials, nonce: bytes = b"") -> Dialogue:
    """SCRAM-SHA-256, RFC 5802 and 7677, without channel binding.

    The relay must prove that it knows the password, too. ``nonce`` is for tests with known results.
    """
    nonce = nonce or base64.b64encode(secrets.token_bytes(_NONCE_OCTETS))
    user = _escaped_name(credentials.user.encode())
    first = b"n=" + user + b",r=" + nonce
    server_first = yield b"n,," + first
    server_nonce, salt, iterations = _server_first(server_first)
    if not server_nonce.startswith(nonce) or len(server_nonce) == len(nonce):
        raise SaslError("the relay's SCRAM challenge does not belong to what we sent")
    if not LEAST_ITERATIONS <= iterations <= ITERATIONS_LIMIT:
        raise SaslError(
            f"the relay asks for {iterations} rounds of SCRAM, and {LEAST_ITERATIONS} to "
            f"{ITERATIONS_LIMIT} are allowed"
        )
    without_proof = b"c=biws,r=" + server_nonce
    message = b",".join((first, server_first, without_proof))
    salted = hashlib.pbkdf2_hmac("sha256", _reveal(credentials), salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    server_final = yield without_proof + b",p=" + base64.b64encode(proof)
    expected = hmac.digest(hmac.digest(salted, b"Server Key", "sha256"), message, "sha256")
    # RFC 5802 7: the verifier comes first; what follows it are extensions, and optional.
    verifier = server_final.partition(b",")[0]
    given = verifier[2:] if verifier.startswith(b"v=") else b""
    if not hmac.compare_digest(base64.b64encode(expected), given):
        raise ImpostorError("the relay could not prove that it knows the password (SCRAM)")
    yield b""


def xoauth2(credentials: Credentials) -> Dialogue:
    """XOAUTH2, as Google and Microsoft document it."""
    token = _reveal(credentials)
    yield b"user=" + credentials.user.encode() + b"\1auth=Bearer " + token + b"\1\1"
    yield b""  # before a refusal the relay sends an explanation, and waits for this


def oauthbearer(credentials: Credentials) -> Dialogue:
    """OAUTHBEARER, RFC 7628."""
    user = _escaped_name(credentials.user.encode())
    yield b"n,a=" + user + b",\1auth=Bearer " + _reveal(credentials) + b"\1\1"
    yield b"\1"  # RFC 7628 3.2.3: the same


PASSWORD_MECHANISMS: dict[str, Mechanism] = {
    "SCRAM-SHA-256": scram_sha_256,
    "CRAM-MD5": cram_md5,
    "PLAIN": plain,
    "LOGIN": login,
}
"""Strongest first."""

TOKEN_MECHANISMS: dict[str, Mechanism] = {"OAUTHBEARER": oauthbearer, "XOAUTH2": xoauth2}

MUTUAL = frozenset({"SCRAM-SHA-256"})
"""Mechanisms in which a success counts only if the relay has proved itself."""


def known_mechanisms(*, oauth2: bool, allowed: Collection[str] = ()) -> list[str]:
    """Return the mechanisms that we may use, strongest first; none `allowed` means all."""
    known = TOKEN_MECHANISMS if oauth2 else PASSWORD_MECHANISMS
    return [name for name in known if not allowed or name in allowed]


def choose(offered: Iterable[str], *, oauth2: bool, allowed: Collection[str] = ()) -> list[str]:
    """Return the mechanisms to try, strongest first, out of what the relay offers."""
    names = {name.upper() for name in offered}
    return [name for name in known_mechanisms(oauth2=oauth2, allowed=allowed) if name in names]


class Login:
    """One AUTH command and what follows it (RFC 4954 4): lines out, challenges in."""

    def __init__(
        self, mechanism: str, credentials: Credentials, redactor: Redactor | None = None
    ) -> None:
        """Add to `redactor` whatever is said that must not be repeated."""
        self._redactor = redactor or Redactor()
        self._mechanism = mechanism
        self._credentials = credentials
        self._dialogue = (PASSWORD_MECHANISMS | TOKEN_MECHANISMS)[mechanism](credentials)
        self._waiting: bytes | None = None
        self._said: list[bytes] = []
        self._failure: SaslError | None = None

    def __repr__(self) -> str:
        """Show the mechanism, and nothing of what was said."""
        return f"<Login {self._mechanism}>"

    def command(self) -> bytes:
        """Return the AUTH command, with the first response if that is not too long."""
        line = b"AUTH " + self._mechanism.encode()
        first = next(self._dialogue)
        if first is None:
            return line
        self._keep(first)
        initial = base64.b64encode(first) or b"="
        if len(line) + len(initial) < _COMMAND_LIMIT:
            return line + b" " + initial
        self._waiting = initial
        return line

    def respond(self, challenge: str) -> bytes:
        """Return the line to send after the text of a 334; ``*`` gives the login up."""
        if self._waiting is not None:
            line, self._waiting = self._waiting, None
            return line
        try:
            # LOGIN is asked in whatever words a relay likes, in base64 or not.
            said = b"" if self._mechanism == "LOGIN" else decode(challenge)
            response = self._dialogue.send(said) or b""
        except StopIteration:
            return b"*"
        except SaslError as exc:
            self._failure = exc
            return b"*"
        self._keep(response)
        return base64.b64encode(response)

    def check(self, *, accepted: bool) -> None:
        """Check the end of the login. Raises SaslError if the relay did not prove what it must."""
        if self._failure is not None:
            raise self._failure
        if accepted and self._mechanism in MUTUAL and len(self._said) < _MUTUAL_ROUNDS:
            raise ImpostorError("the relay accepted us without proving that it knows the password")

    def redact(self, text: str) -> str:
        """Return a text of the relay's without our secrets, in case it repeats them.

        The user's name alone is no secret, and is often a part of the addresses in good replies.
        """
        return self._redactor.redact(text)

    def _keep(self, said: bytes) -> None:
        """Remember a response, and keep what is secret in it out of all texts."""
        self._said.append(said)
        add_secret(self._redactor, self._credentials)
        user = self._credentials.user.encode()
        if said == user or not said.strip(b"\1"):
            return
        self._redactor.add_line(said)
        for part in _SEPARATORS.split(said):
            name, _, value = part.partition(b"=")
            # Digests and proofs: with them a password can be guessed at leisure.
            if (value or name) not in {user, _escaped_name(user), *_NO_SECRETS}:
                self._redactor.add(value or name)


def add_secret(redactor: Redactor, credentials: Credentials) -> None:
    """Keep the password or token out, if it is known already."""
    if credentials.secret.is_known:
        redactor.add(_reveal(credentials))


def decode(text: str) -> bytes:
    """Return the octets of a base64 challenge, padded or not. Raises SaslError for others."""
    text = text.strip().rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise SaslError("the relay's challenge is not base64") from None


def _reveal(credentials: Credentials) -> bytes:
    return credentials.secret.reveal().encode()


def _escaped_name(user: bytes) -> bytes:
    """Return a user's name as SCRAM and OAUTHBEARER want it (RFC 5802 5.1)."""
    return user.replace(b"=", b"=3D").replace(b",", b"=2C")


_SERVER_FIRST = re.compile(rb"r=([!-+\--~]+),s=([A-Za-z0-9+/]+={0,2}),i=([1-9][0-9]{0,9})(?:,.*)?")


def _server_first(message: bytes) -> tuple[bytes, bytes, int]:
    """Return nonce, salt and rounds of the relay's first message (RFC 5802 7). Raises SaslError.

    `m=` in front of them is an extension that must be understood, and we know none.
    """
    found = _SERVER_FIRST.fullmatch(message)
    if found is None:
        raise SaslError("the relay's SCRAM challenge is malformed")
    try:
        salt = base64.b64decode(found[2], validate=True)
    except ValueError:
        raise SaslError("the salt of the relay's SCRAM challenge is not base64") from None
    return found[1], salt, int(found[3])
