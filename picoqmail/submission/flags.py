"""Command-line flags as qmail's programs take them. Hot, pure: argparse costs a whole start-up.

Options come first, one letter each, clustered or not, with an argument that is attached or is the
next word; `--` and anything else that begins with two hyphens ends them, as with qmail.
"""

from __future__ import annotations

from picoqmail.errors import QUEUE_REFUSED, PicoqmailError

PLAIN, WITH_ARGUMENT, MAYBE_ATTACHED = range(3)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class UsageError(PicoqmailError):
    """The command line cannot be understood; nothing was read and nothing accepted."""

    qmail_status = QUEUE_REFUSED


def cut(
    words: list[bytes], known: Mapping[bytes, int]
) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Return the flags of `words` as pairs (letter, argument), and the words after them.

    `known` says for each letter whether it is PLAIN, takes an argument, or takes one only if it is
    attached. Raises UsageError for a letter that is not known or lacks its argument.
    """
    found = []
    at = 0
    while at < len(words) and words[at][:1] == b"-" and words[at] != b"-":
        word = words[at]
        at += 1
        if word[:2] == b"--":
            break
        position = 1
        while position < len(word):
            letter = word[position : position + 1]
            position += 1
            kind = known.get(letter)
            argument = b""
            if kind is None:
                text = f"illegal option -- {letter.decode('latin-1')}"
                raise UsageError(text)
            if kind != PLAIN:
                argument = word[position:]
                position = len(word)
                if kind == WITH_ARGUMENT and not argument:
                    if at >= len(words):
                        text = f"option requires an argument -- {letter.decode('latin-1')}"
                        raise UsageError(text)
                    argument = words[at]
                    at += 1
            found.append((letter, argument))
    return found, words[at:]
