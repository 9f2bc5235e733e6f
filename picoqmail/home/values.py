"""Pure readers of setting values: text in, a checked value out, ValueError if it is wrong.

What may live here: functions from one line of text to one value, and the small frozen classes they
return. No files, no clock, no environment: where a text came from is the business of `settings`.
Every ValueError raised here says what is wrong with the text; what would be right stands once, in
the table of settings.
"""

from __future__ import annotations

import math

from picoqmail.home.control import check_host
from picoqmail.home.limits import MOST_SECONDS, OFF_WORDS
from picoqmail.log.choice import LEVELS, SINKS, LogChoice
from picoqmail.log.privacy import CHOICES as LOG_PRIVACY
from picoqmail.smtp.relay_address import Relay, parse_relay
from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SECONDS_PER_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

LOGIN_MECHANISMS = ("SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2")

TLS_MODES = ("off", "may", "require", "implicit", "fingerprint")

_SHA256_HEX_DIGITS = 64


class Route(Value):
    """Relays for the addresses that a pattern matches; one line of `smtproutes` or `senderroutes`.

    `pattern` is in lower case: a host, `.domain` for everything below it, an address (senders
    only), `<>` for the null sender (senders only), or `""` for everything. Without relays the
    line is an exception: such mail goes to the relays of `relayip`.
    """

    __slots__ = ("pattern", "relays")

    def __init__(self, pattern: str, relays: tuple[Relay, ...]) -> None:
        self.pattern: Final = pattern
        self.relays: Final = relays


class RateLimit(Value):
    """At most so many messages in so many seconds."""

    __slots__ = ("messages", "seconds")

    def __init__(self, messages: int, seconds: int) -> None:
        self.messages: Final = messages
        self.seconds: Final = seconds


def whole_number(text: str, least: int, most: int) -> int:
    """Return the number of a text of ASCII digits, between `least` and `most`.

    Raises ValueError: signs, blanks, underscores and digits of other scripts are not accepted.
    """
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{text!r} is not a whole number")
    if len(text) > len(str(most)) + 20:
        raise ValueError(f"a number of {len(text)} digits is too large")
    number = int(text)
    if not least <= number <= most:
        raise ValueError(f"{number} is not between {least} and {most}")
    return number


def duration(text: str) -> int:
    """Return the seconds of `90`, `90s`, `5m`, `2h`, `7d` or `1w`.

    Raises ValueError if there is no such unit, or the time is longer than ten years.
    """
    unit = SECONDS_PER_UNIT.get(text[-1:])
    count = text if unit is None else text[:-1]
    seconds = whole_number(count, 0, MOST_SECONDS) * (unit or 1)
    if seconds > MOST_SECONDS:
        raise ValueError(f"{text} is longer than ten years")
    return seconds


def retry_schedule(text: str) -> tuple[int, ...] | None:
    """Return delays in seconds from `5m 10m 1h` (blanks or commas between), None for qmail's own.

    Raises ValueError for a delay of zero: a message would be tried without a pause for ever.
    """
    words = text.replace(",", " ").split()
    if words in ([], ["qmail"]):
        return None
    delays = tuple(duration(word) for word in words)
    if min(delays) < 1:
        raise ValueError("a delay of 0 would try a message without a pause")
    return delays


def domain_of_host(name: str) -> str:
    """Return what qmail's own set-up writes into `defaultdomain`: the name without its first label.

    "" for a name of one or two labels, and for an address literal: it is then the name itself.
    """
    _, _, domain = name.partition(".")
    return domain if "." in domain and not name.startswith("[") else ""


def doubt_about_host(name: str) -> str:
    """Return why relays may refuse this name of ours in HELO, "" if they have no reason to."""
    if name.startswith("["):
        return ""
    if name.replace(".", "").isdigit():
        return "is a number; as an address it is written in brackets, such as [192.0.2.1]"
    if name.partition(".")[0] == "localhost" or name.endswith((".localdomain", ".localhost")):
        return "is every host's name for itself"
    if "." not in name:
        return "has no domain"
    if "_" in name or any(one[0] == "-" or one[-1] == "-" for one in name.split(".")):
        return "is not a name of the DNS (RFC 1123 section 2.1)"
    return ""


def host_name(text: str) -> str:
    """Check like `control.check_host`, and the address of a literal too. Raises ValueError."""
    name = check_host(text)
    if name[0] == "[":
        import ipaddress

        literal = name[1:-1]
        ipaddress.ip_address(literal[5:] if literal[:5].lower() == "ipv6:" else literal)
    return name


def mail_address(text: str) -> str:
    """Return `local@host`, or a local part alone, which belongs to this host.

    Raises ValueError for blanks, control characters, angle brackets or a host that is not one.
    """
    local, at, host = text.rpartition("@")
    if at:
        host_name(host)
    else:
        local = text
    if not local:
        raise ValueError(f"{text!r} has no local part")
    return _printable(text, forbidden=" <>\t")


def local_part(text: str) -> str:
    """Return a local part: no `@`, no blank, no control character; else ValueError."""
    if "@" in text:
        raise ValueError(f"{text!r} holds an @: the host is a setting of its own")
    return mail_address(text)


def switch(text: str) -> bool:
    """Return True for on, yes, true, 1 and False for off, no, false, 0; else ValueError."""
    word = text.lower()
    if word in {"on", "yes", "true", "1"}:
        return True
    if word in OFF_WORDS:
        return False
    raise ValueError(f"{text!r} is neither on nor off")


def login_mechanisms(text: str) -> tuple[str, ...]:
    """Return a list of names of login mechanisms, at least one, in upper case."""
    names = text.upper().split()
    if not names:
        raise ValueError("an empty list allows no login at all")
    return tuple([_one_of(name, LOGIN_MECHANISMS) for name in names])


def tls_mode(text: str) -> str:
    """Return one of `TLS_MODES`, whatever its case; else ValueError."""
    return _one_of(text.lower(), TLS_MODES)


def fingerprint(text: str) -> str:
    """Return a certificate's SHA-256 as 64 lower-case hex digits.

    Colons may stand between the digits, and `sha256` in front of them.

    Raises ValueError for anything else, a SHA-1 or MD5 fingerprint included.
    """
    digits = text.lower().removeprefix("sha256").lstrip(":= ").replace(":", "").replace(" ", "")
    if len(digits) != _SHA256_HEX_DIGITS or not set(digits) <= set("0123456789abcdef"):
        raise ValueError(
            f"{len(digits)} hex digits are no SHA-256 fingerprint, which has {_SHA256_HEX_DIGITS}"
        )
    return digits


def ip_address(text: str) -> str:
    """Return an IPv4 or IPv6 address in its usual spelling; ValueError for names and the rest."""
    import ipaddress

    return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))


def rate_limit(text: str) -> RateLimit | None:
    """Return the limit that `14/s`, `300/5m` or `10000/d` states; None for `0`, no limit.

    Raises ValueError.
    """
    if text == "0":
        return None
    count, slash, period = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} has no period after a slash")
    period = period.strip()
    seconds = duration(f"1{period}" if period in SECONDS_PER_UNIT else period)
    if seconds < 1:
        raise ValueError("a period of 0 seconds")
    return RateLimit(whole_number(count.strip(), 1, 10**9), seconds)


def log_choice(text: str) -> LogChoice:
    """Return the sink and level of `SINK [LEVEL]`; SINK is a word of `log.choice.SINKS` or a path.

    Raises ValueError for a path that is not absolute: programs run in every directory.
    """
    words = text.split()
    if not words:
        raise ValueError("nothing is given")
    level = "info"
    if len(words) > 1 and words[-1] in LEVELS:
        level = words.pop()
        text = text[: text.rindex(level)].rstrip()
    sink = words[0]
    if len(words) == 1 and sink in SINKS and sink != "file":
        return LogChoice(sink, "", level)
    path = text
    if sink == "json":
        path = text[len(sink) :].strip()
    else:
        sink = "file"
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is neither the name of a log nor an absolute path")
    return LogChoice(sink, _printable(path), level)


def log_privacy(text: str) -> str:
    """Return `off`, `local` or `all`, whatever its case; else ValueError."""
    return _one_of(text.lower(), LOG_PRIVACY)


def absolute_path(text: str) -> str:
    """Return an absolute path without control characters; else ValueError."""
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return _printable(text)


def recipient_route(text: str) -> Route:
    """Return the route of one `smtproutes` line, `domain:relay`; else ValueError.

    qmail-remote(8): `domain` may be a host, `.domain` for all hosts below it, or nothing for all;
    `relay` may be `host`, `host:port`, and here also every form of `relayip`, several with blanks
    between.
    """
    pattern, relays = _route(text)
    if pattern.strip("."):
        host_name(pattern.removeprefix("."))
    return Route(pattern, relays)


def sender_route(text: str) -> Route:
    """Return the route of one `senderroutes` line, `sender:relay`; else ValueError.

    `sender` is an address, a host, `.domain`, `<>` for the null sender, or nothing for all.
    """
    pattern, relays = _route(text)
    pattern = pattern.removeprefix("@")
    if "@" in pattern:
        mail_address(pattern)
    elif pattern not in {"", "<>"}:
        host_name(pattern.removeprefix("."))
    return Route(pattern, relays)


def relay(text: str) -> Relay:
    """Return the relay that one `relayip` line names; else ValueError."""
    return parse_relay(text)


def plain_text(text: str) -> str:
    """Return the text itself if it has no control characters; else ValueError."""
    return _printable(text)


def rough_duration(seconds: float) -> str:
    """Return a duration in its two largest units, `2h 5m`; below zero it is `0s`."""
    return " ".join(spelled_duration(max(seconds, 0)).split()[:2])


def spelled_duration(seconds: float) -> str:
    """Return `90` seconds as `1m 30s`, for people; parts of a second are rounded up."""
    left = math.ceil(seconds)
    words = []
    for unit in ("w", "d", "h", "m", "s"):
        count, left = divmod(left, SECONDS_PER_UNIT[unit])
        if count:
            words.append(f"{count}{unit}")
    return " ".join(words) or "0s"


def _route(text: str) -> tuple[str, tuple[Relay, ...]]:
    pattern, colon, relays = text.partition(":")
    if not colon:
        raise ValueError(f"{text!r} has no colon between pattern and relay")
    return pattern.strip().lower(), tuple(parse_relay(word) for word in relays.split())


def _one_of(word: str, words: tuple[str, ...]) -> str:
    if word not in words:
        raise ValueError(f"{word!r} is none of {', '.join(words)}")
    return word


def _printable(text: str, forbidden: str = "") -> str:
    for character in text:
        if not character.isprintable() or character in forbidden:
            raise ValueError(f"the character {character!r} cannot stand in {text!r}")
    return text
