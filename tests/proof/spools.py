"""Spools for scenarios of crashes, restores and administrators.

The rule of this module: a spool is made by ordinary programs, or by copying or moving whole files
of one, as a crash or a restore does. The ordinary spools are in scenarios.py.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any, cast

from picoqmail.layout import BODY, IN_HAND_BIT, PRIVATE_FILE_MODE, SIDECAR, SUSPECT_BIT
from proof.world import read_sidecar

if TYPE_CHECKING:
    from proof.world import World
    from proof.zygote import Zygote

LATER = "later@there.test"
NEVER = "never@there.test"
BREAKS = "breaks@there.test"
DAY = 86400
# How far ahead the clock is when old failures are deleted, and for how many days they are kept.
KEPT_DAYS = 30
LATE_SECONDS = 40 * DAY
_STORM = "storm@here.test"


def some_new(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare one mail in cur/, which is due now, and two in new/."""
    world.accept([LATER])
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    world.accept()
    world.accept(["a@there.test", "b@there.test"])


def some_held(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare three mails that are held, and one that is not."""
    some_new(world, zygote, relay)
    _administer(world, zygote, "hold", "--all", "--yes")
    world.accept()


def some_waiting(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare two mails that wait for tomorrow, and one in new/."""
    world.setting("retryschedule", str(DAY))
    world.accept([LATER])
    world.accept([LATER, "now@there.test"])
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    world.setting("retryschedule", "1")
    world.accept()


def all_failed(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare two mails in undelivered/, whose reports were delivered."""
    world.setting("keepundelivered", str(KEPT_DAYS))
    world.accept([NEVER])
    world.accept(["now@there.test", NEVER])
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    zygote.run(world.root, "cron", offset=-3600)


def all_failed_and_more(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare the same, and a mail in new/."""
    all_failed(world, zygote, relay)
    world.accept()


def a_storm(world: World, _zygote: Zygote, _relay: str) -> None:
    """Prepare three mails of one sender that will fail; he gets one report an hour."""
    world.setting("bouncelimit", "1")
    for _ in range(3):
        world.accept([NEVER], sender=_STORM)


def a_storm_ago(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare the same two hours later: one report was sent, and a digest of two is due."""
    a_storm(world, zygote, relay)
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    world.accept()


def one_breaks(world: World, _zygote: Zygote, _relay: str) -> None:
    """Prepare a mail for which the relay drops the connection, among others."""
    world.accept()
    world.accept([BREAKS])
    world.accept()
    world.accept()


def after_deaths(world: World, _zygote: Zygote, _relay: str) -> None:
    """Prepare three mails: runs died with the first of them once, and with the second twice."""
    once, twice = world.accept(), world.accept()
    world.accept()
    os.chmod(world.path("new", once, BODY), PRIVATE_FILE_MODE | IN_HAND_BIT)
    os.chmod(world.path("new", twice, BODY), PRIVATE_FILE_MODE | IN_HAND_BIT | SUSPECT_BIT)


def after_a_crash(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare what crashes in the middle of moves leave: messages in two states, bodies elsewhere.

    A mail was about to be deferred: both sidecars are there. Another failed: power loss undid the
    end of its move, and its body lies in cur/. The body of a third lies in tmp/ only.
    """
    deferred = world.accept([LATER])
    failed = world.accept([NEVER])
    world.relay(relay)
    zygote.run(world.root, "send", offset=-7200)
    zygote.run(world.root, "cron", offset=-7000)
    _older(world, deferred, "cur", "new")
    os.link(world.path("cur", deferred, BODY), world.path("new", deferred, BODY))
    _older(world, failed, "undelivered", "cur")
    os.rename(world.path("undelivered", failed, BODY), world.path("cur", failed, BODY))
    unnamed = world.accept()
    os.rename(world.path("new", unnamed, BODY), world.path("tmp", unnamed, BODY))
    open_to_all = world.accept()
    os.chmod(world.path("new", open_to_all, SIDECAR), 0o644)


def _older(world: World, message_id: str, there: str, here: str) -> None:
    """Write the sidecar that was in another directory before."""
    record = cast("dict[str, Any]", read_sidecar(world.path(there, message_id)))
    for one in record["recipients"]:
        one.update(state="pending", reply=None)
        one.pop("told", None)
    record |= {"revision": record["revision"] - 1, "attempts": 0, "history": []}
    with open(world.path(here, message_id), "w", encoding="utf-8") as file:
        json.dump(record, file)


def restored(world: World, zygote: Zygote, relay: str) -> None:
    """Prepare a spool over which an older copy of it was restored.

    Since the copy one mail was delivered, one deferred again, one failed, and one accepted.
    """
    again = world.accept([LATER])
    world.relay(relay)
    zygote.run(world.root, "send", again, offset=-7200)
    world.accept()
    world.accept([NEVER])
    copy = f"{world.root}/copy"
    shutil.copytree(world.spool, copy)
    zygote.run(world.root, "send", offset=-3600)
    zygote.run(world.root, "cron", offset=-3000)
    world.accept()
    for state in ("new", "cur", "undelivered"):
        shutil.copytree(f"{copy}/{state}", f"{world.spool}/{state}", dirs_exist_ok=True)
    shutil.rmtree(copy)


IMPORTED = {
    "relayip": "smtp+starttls://user@relay.example.org:587\n",
    "relaypass": "a secret of some length\n",
    "idhost": "ids.example.org\n",
    "adminaddr": "root@example.org\n",
}


def another_mailer(world: World, _zygote: Zygote, _relay: str) -> None:
    """Prepare the configuration of nullmailer, and a home in which no relay was set yet."""
    world.accept()
    os.unlink(f"{world.root}/control/relayip")
    os.mkdir(f"{world.root}/nullmailer")
    remote = "relay.example.org smtp --port=587 --starttls --user=user"
    texts = {
        "remotes": f"{remote} --pass='{IMPORTED['relaypass'].strip()}'\n",
        "idhost": IMPORTED["idhost"],
        "adminaddr": IMPORTED["adminaddr"],
    }
    for name, text in texts.items():
        with open(f"{world.root}/nullmailer/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def _administer(world: World, zygote: Zygote, *words: str) -> None:
    status, said = zygote.run(world.root, "main", *words)
    assert status == 0, (words, said)
