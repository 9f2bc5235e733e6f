"""What the words of a reply mean, where its code does not say whom or what it concerns.

The rule of this module: it reads one reply, and knows nothing of the session around it. Where the
words leave a doubt, the code alone counts. A pattern is compiled when it is first needed,
because a run in which nothing is refused needs none.
"""

from __future__ import annotations

import re
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from picoqmail.smtp.reply import Reply

# What stands in angle brackets is an address or a name that somebody else chose.
_QUOTED_WORDS = r"<[^>]*>"

SESSION_CODES = frozenset({503, 530, 535, 538})
"""Codes that are never about one sender or recipient, if their words are about a login."""

_LOGIN_ALWAYS = SESSION_CODES - {503}
_LOGIN_WITH_WORDS = frozenset({503, 550, 553, 554})
_LOGIN_WORDS = (
    r"authenti(?:cation|fication) (?:is )?(?:required|needed)"
    r"|(?:requires?|needs?|must|please|should|have to|without|not|no|before|first)"
    r"(?: (?:an?|be|to|first|use|the|you|users?|smtp|valid|enable|perform|prior|client|turn|on))*"
    r" (?:smtp[ -]?auth|auth\b|authenticat(?:e|ed|ion)|log(?:ged)?[ -]?[io]n|sign(?:ed)?[ -]?in)\b"
    r"|\bauth(?:enticate)?(?: command)? (?:is )?(?:required|needed|first)"
    r"|log[ -]?[io]n (?:is )?(?:required|needed|first|before)"
    r"|unauthenticated (?:senders?|clients?|users?|connections?|relay)"
)
# Proofs about the author of a mail, and authors who may not be named, with the same words.
_ABOUT_AUTHORS_WORDS = (
    r"\b(?:spf|dkim|dmarc|arc)\b|unauthenticated (?:e?-?mail|message)|sender address rejected"
)
_AUTHOR_CODE_PATTERN = r"5\.7\.2\d$"

_TLS_CODES = frozenset({503, 523, 530, 538, 550, 554})
_TLS_WORDS = (
    r"starttls|\b(?:tls|ssl|encrypt(?:ion|ed)) (?:session |connection )?(?:is )?(?:required|needed)"
    r"|(?:requires?|must|needs?) (?:use |be |a |an |issue )*(?:tls|ssl|encrypt)"
)

_HOST_WORDS = (
    r"\b(?:helo|ehlo)\b"
    r"|client host (?:rejected|blocked|name|\[)"
    r"|(?:your|client|sending) (?:reverse |ip |server'?s? |client )*"
    r"(?:host ?name|reverse dns|rdns|ptr)\b"
    r"|\b(?:ptr record|reverse (?:dns|lookup|host))"
    r"|fully[- ]qualified (?:host|domain) ?name"
)
_OF_AN_ADDRESS_WORDS = r"(?:sender|recipient) address rejected"

_PERIOD_WORDS = r"\b(?:daily|hourly|per (?:day|hour|minute)|sending|submission|rate|outbound)\b"
_LIMIT_WORDS = r"\b(?:limit(?:s|ed)?|quota|exceed(?:s|ed|ing)?|maximum|too many)\b"
_TOO_MANY_WORDS = (
    r"too many (?:messages|e?-?mails|connections|sessions|recipients)|too (?:fast|quickly)"
)
_NO_PACE_WORDS = r"mailbox|storage|message size|size limit|too (?:big|large)|disk|\bhops?\b"
_CONGESTION_WORDS = r"(?:^|[ #])[45]\.4\.5(?: |$)"

_RATE_WORDS = (
    r"\btoo (?:fast|quick(?:ly)?|many|much|often)|throttl|slow(?:er)? (?:down|please)|rate\b"
    r"|\b(?:limit|quota)|exceed"
)

_PIPELINING_WORDS = (
    r"\b(?:pipeline|pipelining|pipelined)|synchroni[sz]|bad sequence|early talker"
    r"|out of (?:sync|order|sequence)"
)


@lru_cache(maxsize=256)
def _words(reply: Reply) -> str:
    """Return what the relay says, in lower case and without what it quotes."""
    return re.sub(_QUOTED_WORDS, "", " ".join(reply.lines)).lower()


def wants_login(reply: Reply) -> bool:
    """Return whether the relay will not serve this session because it was not logged in.

    530, 535 and 538 say so (RFC 4954 6); 503 and 5xx with 5.7.x or without an enhanced code only by
    their words. What concerns SPF, DKIM or DMARC is about the author of a mail.
    """
    if reply.code in _LOGIN_ALWAYS:
        return True
    if reply.code not in _LOGIN_WITH_WORDS or re.match(_AUTHOR_CODE_PATTERN, reply.enhanced):
        return False
    if reply.code != 503 and reply.enhanced and not reply.enhanced.startswith("5.7."):
        return False
    words = _words(reply)
    return bool(re.search(_LOGIN_WORDS, words)) and not re.search(_ABOUT_AUTHORS_WORDS, words)


def wants_tls(reply: Reply) -> bool:
    """Return whether the relay will not serve this session because it is not under TLS."""
    return reply.code in _TLS_CODES and bool(re.search(_TLS_WORDS, _words(reply)))


def is_about_our_host(reply: Reply) -> bool:
    """Return whether a refusal is about our HELO, or about the name of this host in the DNS."""
    words = _words(reply)
    if reply.code < 400 or not re.search(_HOST_WORDS, words):
        return False
    return "helo" in words or not re.search(_OF_AN_ADDRESS_WORDS, words)


def is_limit(reply: Reply) -> bool:
    """Return whether a refusal says that too much was sent for now, whatever its code.

    RFC 3463 3.5: x.4.5 is congestion. Many relays say the same in words only. A mailbox that is
    full or a message that is too large is no such limit.
    """
    if reply.code < 400:
        return False
    words = _words(reply)
    if any(re.search(_CONGESTION_WORDS, line[:12]) for line in reply.lines):
        return True
    if re.search(_NO_PACE_WORDS, words):
        return False
    return bool(
        re.search(_TOO_MANY_WORDS, words)
        or (re.search(_PERIOD_WORDS, words) and re.search(_LIMIT_WORDS, words))
    )


def says_too_fast(reply: Reply) -> bool:
    """Return whether the relay asks us to slow down: 421, 452, 454, x.4.5, or 45x with 4.7.x.

    But a greylist concerns one message, and 451 4.7.1 is what policy servers say for one.
    """
    if reply.code in (421, 454) or (reply.code == 452 and not reply.enhanced.startswith("4.2.")):
        return True
    if is_limit(reply):
        return True
    words = _words(reply)
    if not (reply.is_temporary and reply.enhanced.startswith("4.7.")):
        return False
    if "grey" in words or "gray" in words:
        return False
    return reply.enhanced != "4.7.1" or reply.code != 451 or bool(re.search(_RATE_WORDS, words))


def says_all_too_fast(reply: Reply) -> bool:
    """Return whether a reply to RCPT speaks of our pace, and not of one recipient."""
    return reply.code in (421, 454) or (
        reply.is_temporary and says_too_fast(reply) and bool(re.search(_RATE_WORDS, _words(reply)))
    )


def blames_pipelining(reply: Reply) -> bool:
    """Return whether a refusal is about the order of commands: 503, or words to that effect."""
    return reply.code == 503 or (
        (reply.is_permanent or reply.is_temporary)
        and bool(re.search(_PIPELINING_WORDS, _words(reply)))
    )
