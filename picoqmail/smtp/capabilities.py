"""What a relay offers: its reply to EHLO or LHLO as a value.

The rule of this module: what is not offered here is never used.
"""

from __future__ import annotations

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from picoqmail.smtp.reply import Reply


_LIMIT_DIGITS = 6


class Capabilities(Value):
    """Which of the extensions that we use a relay offers.

    PIPELINING is RFC 2920, CHUNKING RFC 3030, 8BITMIME RFC 6152, SMTPUTF8 RFC 6531, DSN RFC 3461,
    STARTTLS RFC 3207, SIZE RFC 1870, AUTH RFC 4954, LIMITS RFC 9422. ``declares_size`` says
    whether SIZE is offered, ``size`` is the relay's limit in octets, 0 if it names none. ``auth``
    holds the names of SASL mechanisms in upper case. ``mail_max``, ``rcpt_max`` and ``domain_max``
    are MAILMAX, RCPTMAX and RCPTDOMAINMAX, 0 if it names none. A relay that knows HELO only has the
    defaults: nothing.
    """

    __slots__ = (
        "pipelining",
        "chunking",
        "eight_bit",
        "smtputf8",
        "dsn",
        "starttls",
        "declares_size",
        "size",
        "auth",
        "mail_max",
        "rcpt_max",
        "domain_max",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        *,
        pipelining: bool = False,
        chunking: bool = False,
        eight_bit: bool = False,
        smtputf8: bool = False,
        dsn: bool = False,
        starttls: bool = False,
        declares_size: bool = False,
        size: int = 0,
        auth: tuple[str, ...] = (),
        mail_max: int = 0,
        rcpt_max: int = 0,
        domain_max: int = 0,
    ) -> None:
        self.pipelining: Final = pipelining
        self.chunking: Final = chunking
        self.eight_bit: Final = eight_bit
        self.smtputf8: Final = smtputf8
        self.dsn: Final = dsn
        self.starttls: Final = starttls
        self.declares_size: Final = declares_size
        self.size: Final = size
        self.auth: Final = auth
        self.mail_max: Final = mail_max
        self.rcpt_max: Final = rcpt_max
        self.domain_max: Final = domain_max


def read_capabilities(reply: Reply) -> Capabilities:
    """Return what a reply to EHLO offers (RFC 5321 4.1.1.1). Its first line is the greeting."""
    names = set()
    auth: list[str] = []
    size = 0
    limits: dict[str, int] = {}
    for line in reply.lines[1:]:
        # Very old servers write "AUTH=LOGIN".
        words = line.upper().replace("AUTH=", "AUTH ", 1).split()
        if not words:
            continue
        names.add(words[0])
        if words[0] == "AUTH":
            auth += [word for word in words[1:] if word not in auth]
        elif words[0] == "SIZE" and len(words) > 1 and words[1].isascii() and words[1].isdigit():
            size = int(words[1][:19])
        elif words[0] == "LIMITS":
            limits |= _read_limits(words[1:])
    return Capabilities(
        pipelining="PIPELINING" in names,
        chunking="CHUNKING" in names,
        eight_bit="8BITMIME" in names,
        smtputf8="SMTPUTF8" in names,
        dsn="DSN" in names,
        starttls="STARTTLS" in names,
        declares_size="SIZE" in names,
        size=size,
        auth=tuple(auth),
        mail_max=limits.get("MAILMAX", 0),
        rcpt_max=limits.get("RCPTMAX", 0),
        domain_max=limits.get("RCPTDOMAINMAX", 0),
    )


def _read_limits(words: list[str]) -> dict[str, int]:
    """Return the limits among these words; RFC 9422 3: a number of one to six digits, not 0."""
    pairs = [word.partition("=") for word in words]
    return {
        name: int(number)
        for name, _, number in pairs
        if number.isascii() and number.isdigit() and len(number) <= _LIMIT_DIGITS
    }
