"""Taking over the settings of another mailer: its files read, ours written.

What may live here: the reading and the writing. What the files mean is in foreign.py.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from picoqmail.errors import ConfigurationError
from picoqmail.home import make
from picoqmail.home.control import Control, read_text
from picoqmail.home.owner import owner_of, refuse_root

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picoqmail.home.paths import Home

WROTE = "wrote"
KEPT = "kept"
LEFT_ALONE = "left alone"


def read_files(paths: Sequence[str]) -> dict[str, str]:
    """Read files, and those in directories; return the texts of those that are there, by name.

    Raises ConfigurationError.
    """
    texts = {}
    for path in paths:
        files = [path]
        if _is_directory(path):
            files = [f"{path}/{name}" for name in sorted(os.listdir(path))]
        for name in files:
            text = None if _is_directory(name) else read_text(name)
            if text is not None:
                texts[os.path.basename(name)] = text
    return texts


def _is_directory(path: str) -> bool:
    """Say whether that is a directory; False if nothing is there. Raises ConfigurationError."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError as exc:
        # What cannot be looked at is not taken for absent.
        raise ConfigurationError(path, f"cannot be read: {exc.strerror}") from exc


def write_settings(home: Home, settings: Mapping[str, list[str]]) -> dict[str, str]:
    """Write each setting that is not set yet; return by name what became of each.

    `wrote`; `kept`: it had this value; `left alone`: it has another one. Raises OSError,
    ConfigurationError.
    """
    refuse_root(home)
    outcomes = {}
    control = Control(home.control, (owner_of(home),))
    for name, lines in settings.items():
        value = control.read(name)
        if value is not None:
            same = [text for text, _ in value.lines] == lines
            outcomes[name] = KEPT if same else LEFT_ALONE
            continue
        path = f"{home.control}/{name}"
        made = make.create_durably(path, "".join(f"{line}\n" for line in lines).encode())
        if made:
            _let_the_sender_read(home, path, secret=name == "relaypass")
        outcomes[name] = WROTE if made else LEFT_ALONE
    return outcomes


def _let_the_sender_read(home: Home, path: str, *, secret: bool) -> None:
    """Let the user for whom root makes the home read what root wrote."""
    try:
        owner = os.stat(home.spool)
    except FileNotFoundError:
        return
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if secret:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        else:
            os.fchmod(descriptor, 0o644)
    finally:
        os.close(descriptor)
