"""Command-line flags, as sendmail(1) and qmail's programs take them. Hot, pure: no argparse.

A flag is one letter, clustered or not, with an argument that is attached or is the next word. With
qmail's programs flags come first, and any word that begins with two hyphens ends them; with
sendmail they count wherever they stand before `--`.
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
    words: list[bytes], known: Mapping[bytes, int], *, anywhere: bool = False
) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
    """Return the flags of `words` as pairs (letter, argument), and the words after them.

    `known` says for each letter whether it is PLAIN, takes an argument, or takes one only if it is
    attached. With `anywhere`, a flag counts wherever it stands before `--`, and `--word` is a flag
    that is not known. Raises UsageError for one that is not known or lacks its argument.
    """
    found = []
    others = []
    at = 0
    while at < len(words):
        word = words[at]
        if word[:1] != b"-" or word == b"-":
            if not anywhere:
                break
            others.append(word)
            at += 1
            continue
        at += 1
        if word[:2] == b"--":
            if anywhere and word != b"--":
                text = f"unknown option {word.decode('utf-8', 'backslashreplace')}"
                raise UsageError(text)
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
    return found, others + words[at:]
