"""Checks of settings, owners and modes, the spool, the flow of mail, and the relays.

What may live here: one function for each thing that can be wrong. Each returns what it
found as `Finding`s with the levels of monitoring plugins. Nothing is changed but by `repair`.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

from attrs import frozen

from picoqmail import durable
from picoqmail.admin import filesystem, selection, status
from picoqmail.admin.findings import CRITICAL, OK, WARNING, Finding
from picoqmail.admin.remedies import REMEDIES
from picoqmail.admin.words import count
from picoqmail.errors import DamagedMessageError, NoSuchMessageError, SpoolError
from picoqmail.home import host_sendmail, make_system, settings
from picoqmail.home.hands import HandsError
from picoqmail.home.owner import check_roots_own
from picoqmail.home.paths import PACKAGED_HOME, host_root
from picoqmail.home.values import domain_of_host, doubt_about_host, rough_duration
from picoqmail.layout import (
    BODY,
    CRON_LOCK,
    CUR,
    DIRECTORIES,
    IDEMPOTENCY,
    NEW,
    PRIVATE_DIRECTORY_MODE,
    PRIVATE_FILE_MODE,
    RELAY_NOTES,
    REPORTS,
    SIDECAR,
    UNDELIVERED,
    USERS,
)
from picoqmail.spool import scan
from picoqmail.spool.claim import check_size
from picoqmail.spool.files import BODY_ORDER, NO_BODY
from picoqmail.store.directory import DirectoryStore
from picoqmail.store.opening import open_store
from picoqmail.submission import detached_sender

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picoqmail.admin.relay_probe import Probe
    from picoqmail.admin.status import Status
    from picoqmail.home.paths import Home
    from picoqmail.home.settings import Settings

CRON_LATE_SECONDS = 900
LEAST_FREE_OCTETS = 16 << 20
LEAST_FREE_INODES = 1000
_SHOWN = 5


@frozen
class Thresholds:
    """From which value on something is a warning, or critical; seconds, messages or days.

    None: never. `last` is the time since a relay last took a message.
    """

    age: tuple[int | None, int | None] = (7200, 43200)
    waiting: tuple[int | None, int | None] = (None, None)
    failed: tuple[int | None, int | None] = (None, None)
    last: tuple[int | None, int | None] = (None, None)
    certificate_days: tuple[int | None, int | None] = (14, 3)

    @staticmethod
    def level(value: float, limits: tuple[int | None, int | None]) -> int:
        """Return the level of a value that is worse the higher it is."""
        warning, critical = limits
        if critical is not None and value >= critical:
            return CRITICAL
        return WARNING if warning is not None and value >= warning else OK


def examine(  # noqa: PLR0913 - what is to be checked
    home: Home,
    limits: Thresholds,
    findings: list[Finding],
    *,
    relays: bool = True,
    deep: bool = False,
    send_to: str = "",
) -> tuple[Status, list[Probe]]:
    """Check everything in turn; add what is found to `findings` at once.

    `relays`: connect to them; `deep`: compare every body with what was accepted; `send_to`: send a
    mail to this address. Raises SpoolError where the spool cannot be read.
    """
    store = open_store(home)
    chosen = settings.examine(home).settings
    findings += [*check_settings(home), *check_modes(home), *check_filesystem(home)]
    findings += [*check_host(home), check_sender(home)]
    probes: list[Probe] = []
    if chosen is not None and relays:
        found, probes = check_relays(chosen, limits)
        findings += found
    if chosen is not None and send_to:
        findings.append(_send(home, chosen, send_to))
    if isinstance(store, DirectoryStore):
        findings += check_spool(store, deep=deep)
    else:
        from picoqmail.admin.check_database import check_database
        from picoqmail.postgresql.store import PostgresStore

        if isinstance(store, PostgresStore):
            findings += check_database(home, store)
    now = status.gather(home, store)
    findings += [*check_flow(now, limits, chosen), *check_cron(home, now)]
    return now, probes


def check_sender(home: Home) -> Finding:
    """Whether what accepts mail can start a sender; else every mail waits for cron."""
    command = detached_sender.find(home)
    if command is None:
        text = "no sender can be started after a mail was accepted, so it waits for cron"
        return Finding("sender", WARNING, text, "install picoqmail again")
    return Finding("sender", OK, f"can be started: {command[0]}")


def _send(home: Home, chosen: Settings, address: str) -> Finding:
    """Send one mail by way of the spool; report what became of it."""
    from picoqmail.admin.trial_mail import send

    result = send(home, chosen, address)
    return Finding("mail", OK if result.is_delivered else CRITICAL, result.text)


# --- Settings ------------------------------------------------------------------------------------


def check_settings(home: Home) -> Iterator[Finding]:
    """Yield every wrong value, and what is missing for mail to flow."""
    found = settings.examine(home)
    for error in found.errors:
        yield Finding("settings", CRITICAL, str(error), "see picoqmail config")
    if found.settings is None:
        return
    chosen = found.settings
    if not (chosen.relayip or chosen.smtproutes or chosen.senderroutes):
        where = f"{home.control}/relayip"
        yield Finding("settings", CRITICAL, "no relay is named", f"write host:port into {where}")
        return
    unsafe = settings.logins_in_clear(chosen)
    refused = settings.refused_logins(chosen)
    for relay in unsafe:
        text = f"{relay} may get the password without TLS (cleartextauth is on, tls {chosen.tls})"
        yield Finding("settings", WARNING, text, "write require into tls, or use smtps://")
    for relay in refused:
        text = f"{relay} wants a login, but tls is off and cleartextauth does not allow that"
        yield Finding("settings", CRITICAL, text, "write require into tls, or use smtps://")
    if os.path.islink(chosen.log.path) and not chosen.log.path.startswith("/dev/"):
        text = f"{chosen.log.path} is a link, so nothing is logged there"
        yield Finding("settings", WARNING, text, "name the file itself in the setting log")
    elif not (unsafe or refused):
        yield Finding("settings", OK, "all are right")
    yield from _check_names(home, chosen)


def _check_names(home: Home, chosen: Settings) -> Iterator[Finding]:
    """Yield what this host calls itself, and what it makes of hosts without a dot."""
    doubt = doubt_about_host(chosen.helohost)
    if doubt:
        where = f"{home.control}/{'me' if chosen.helohost == chosen.me else 'helohost'}"
        text = f"{where}: {chosen.helohost} {doubt}"
        remedy = f"relays may refuse it: write this host's full name into {where}"
        yield Finding("names", WARNING, text, remedy)
    domain = domain_of_host(chosen.me)
    if domain and chosen.defaultdomain == chosen.me:
        short = chosen.me.partition(".")[0]
        text = f"user@{short} becomes user@{short}.{chosen.me}, which does not exist"
        remedy = f"write {domain} into {home.control}/defaultdomain"
        yield Finding("names", WARNING, text, remedy)


# --- Owners and modes ----------------------------------------------------------------------------


def check_modes(home: Home) -> Iterator[Finding]:
    """Check that the spool belongs to one user, and that no other user can read it."""
    wrong = list(_wrong_modes(home))
    for path, level, text, remedy in wrong[:_SHOWN]:
        yield Finding("modes", level, f"{path}: {text}", remedy)
    if len(wrong) > _SHOWN:
        more = f"and {len(wrong) - _SHOWN} more"
        yield Finding("modes", WARNING, more, "picoqmail check --repair")
    if not wrong:
        yield Finding("modes", OK, "owners and modes are right")


def check_filesystem(home: Home) -> Iterator[Finding]:
    """Check that the file system of the spool does what the spool relies on."""
    name = "filesystem"
    try:
        found = filesystem.examine(home)
    except OSError as exc:
        yield Finding(name, CRITICAL, f"cannot be tested: {exc.strerror}: {exc.filename or ''}")
        return
    grave = [one.what for one in found if one.grave]
    for what in grave:
        yield Finding(name, CRITICAL, what, f"move {home.spool} to a local file system")
    if not grave:
        # What cannot be tested is reported, but must wake nobody at night.
        doubts = [one.what for one in found if not one.grave]
        yield Finding(name, OK, "; ".join(("locks, links and fsync do what they promise", *doubts)))


# Made when they are first needed.
_OTHER_DIRECTORIES = (IDEMPOTENCY, USERS, REPORTS)
_MAKE_IT = "make it: picoqmail check --repair if others of the spool are there, else picoqmail init"


def _wrong_modes(home: Home) -> Iterator[tuple[str, int, str, str]]:
    try:
        owner = os.stat(home.spool).st_uid
    except OSError as exc:
        yield home.spool, CRITICAL, str(exc.strerror), "make it: picoqmail init"
        return
    for name in ("", *DIRECTORIES, *_OTHER_DIRECTORIES):
        path = f"{home.spool}/{name}" if name else home.spool
        try:
            found = os.lstat(path)
        except OSError as exc:
            if name not in _OTHER_DIRECTORIES:
                yield path, CRITICAL, str(exc.strerror), _MAKE_IT
            continue
        if not stat.S_ISDIR(found.st_mode):
            yield path, CRITICAL, "is not a directory", "move it away, and run picoqmail init"
        else:
            yield from _wrong(path, found, owner, PRIVATE_DIRECTORY_MODE)
    for name in ("", *DIRECTORIES, *_OTHER_DIRECTORIES):
        try:
            with os.scandir(f"{home.spool}/{name}") as entries:
                for entry in entries:
                    yield from _wrong_file(entry, owner, is_ours=bool(name))
        except OSError:
            continue  # It was reported above.


def _wrong_file(
    entry: os.DirEntry[str], owner: int, *, is_ours: bool
) -> Iterator[tuple[str, int, str, str]]:
    """Yield what is wrong with an entry; in the spool's own directory anything may lie."""
    try:
        found = entry.stat(follow_symlinks=False)
    except OSError:
        return  # Gone; or its directory cannot be searched, which was reported.
    if stat.S_ISREG(found.st_mode):
        yield from _wrong(entry.path, found, owner, PRIVATE_FILE_MODE)
    elif is_ours:
        yield entry.path, WARNING, "is not a plain file", "find out what it is, and move it away"


def _wrong(
    path: str, found: os.stat_result, owner: int, mode: int
) -> Iterator[tuple[str, int, str, str]]:
    if found.st_uid != owner:
        text = f"belongs to user {found.st_uid}, and the spool to user {owner}"
        yield path, CRITICAL, text, f"chown {owner} {path}"
    # Directories may have set-id bits, and bodies marks: execute bits, by which nobody reads.
    elif found.st_mode & mode != mode:
        text = f"mode {stat.S_IMODE(found.st_mode):04o} keeps its owner out"
        yield path, CRITICAL, text, f"picoqmail check --repair, or chmod {mode:04o} {path}"
    elif found.st_mode & (0o066 if stat.S_ISREG(found.st_mode) else 0o077):
        level = CRITICAL if found.st_mode & 0o022 else WARNING
        text = f"mode {stat.S_IMODE(found.st_mode):04o} lets other users access mail"
        yield path, level, text, f"picoqmail check --repair, or chmod {mode:04o} {path}"


# --- The host ------------------------------------------------------------------------------------


def check_host(home: Home) -> Iterator[Finding]:
    """Check that this host's mail comes here: whose its sendmail is, and if init is due again."""
    if home.root != host_root():
        return
    packaged = home.root == PACKAGED_HOME
    whose = host_sendmail.whose(host_sendmail.SENDMAIL, home)
    if not whose:
        yield Finding("sendmail", OK, f"{host_sendmail.SENDMAIL} leads here")
    else:
        # In a home that init made the name is taken on request only.
        missing = not os.path.exists(host_sendmail.SENDMAIL) and not packaged
        again = "install picoqmail again" if packaged else "picoqmail init --system --sendmail"
        yield Finding(
            "sendmail",
            OK if missing else WARNING,
            f"{host_sendmail.SENDMAIL} {whose}: what programs give to it does not come here",
            f"to have it here: {again}",
        )
    setid = f"{home.bin}/qmail-queue"
    is_setid = os.path.isfile(setid) and os.stat(setid).st_mode & stat.S_ISUID
    if is_setid and not packaged and make_system.is_outdated(home):
        text = f"{setid} was made before the last update of picoqmail, Python or the owner's groups"
        yield Finding("set-id program", WARNING, text, "as root: picoqmail init --system")
    if not packaged and os.path.exists(f"{PACKAGED_HOME}/bin/qmail-queue"):
        text = f"the package of Debian is installed, too, and {home.root} goes before its home"
        remedy = f"remove the package, or let this spool run empty and move {home.control}/me away"
        yield Finding("homes", WARNING, text, remedy)


# --- The spool -----------------------------------------------------------------------------------


def check_spool(spool: DirectoryStore, *, deep: bool) -> Iterator[Finding]:
    """Check for damaged messages, and for leftovers that were not swept.

    `deep` also compares every body with what was accepted, which reads the whole spool.
    """
    damaged = list(_damaged(spool, deep=deep))
    for message_id, reason in damaged[:_SHOWN]:
        remedy = f"picoqmail explain {message_id}"
        yield Finding("messages", CRITICAL, f"{message_id}: {reason}", remedy)
    if len(damaged) > _SHOWN:
        more = f"and {len(damaged) - _SHOWN} more are damaged"
        yield Finding("messages", CRITICAL, more, "picoqmail list --state damaged")
    if not damaged:
        yield Finding("messages", OK, "none is damaged" + ("" if deep else ", bodies not read"))
    aside = sum(1 for one in selection.select(spool, _PUT_ASIDE) if one.put_aside)
    if aside:
        text = f"{aside} were put aside as damaged"
        yield Finding("messages", WARNING, text, "picoqmail list --state damaged")
    old = leftovers(spool)
    if old:
        text = (
            f"{len(old)} leftovers of programs that died are older than 36 hours, such as {old[0]}"
        )
        yield Finding("leftovers", WARNING, text, "picoqmail check --repair; cron sweeps them, too")
    else:
        yield Finding("leftovers", OK, "none is old")


_PUT_ASIDE = selection.Filter(kinds=(selection.DAMAGED,))


def _damaged(spool: DirectoryStore, *, deep: bool) -> Iterator[tuple[str, str]]:
    for message_id, state in spool.names().items():
        if state == UNDELIVERED:
            continue
        try:
            _, message = spool.read(message_id, state)
            if deep:
                spool.check_body(message)
                continue
            size = _body_size(spool, message_id)
            if size is None:
                # It may have been moved or delivered since the directory was read.
                if spool.where(message_id) and _body_size(spool, message_id) is None:
                    yield message_id, NO_BODY
            else:
                check_size(message, size)
        except NoSuchMessageError:
            continue
        except (DamagedMessageError, SpoolError) as exc:
            if spool.where(message_id):
                yield message_id, str(exc)


def _body_size(spool: DirectoryStore, message_id: str) -> int | None:
    for state in BODY_ORDER:
        try:
            return os.lstat(f"{spool.path}/{state}/{message_id}{BODY}").st_size
        except FileNotFoundError:
            continue
    return None


def leftovers(spool: DirectoryStore) -> list[str]:
    """Return the paths that a sweep would check. Raises SpoolError."""
    now = spool.clock()
    sights = {NEW: spool.look(NEW), CUR: spool.look(CUR)}
    try:
        found = scan.leftovers(spool.path, now, sights)
        return found + scan.undelivered_leftovers(spool.path, now)
    except OSError as exc:
        raise SpoolError("read", spool.path, exc) from exc


# --- The flow of mail ----------------------------------------------------------------------------


def check_flow(now: Status, limits: Thresholds, chosen: Settings | None) -> Iterator[Finding]:
    """Check ages, counts, relays that are known to be down, and space."""
    oldest = now.taken - now.oldest_waiting if now.oldest_waiting else 0
    age = f", the oldest for {rough_duration(oldest)}" if oldest else ""
    level = max(limits.level(oldest, limits.age), limits.level(now.waiting, limits.waiting))
    held = f" ({now.held} held)" if now.held else ""
    yield Finding(
        "queue", level, f"{count(now.waiting, 'message')}{held} to send{age}", "picoqmail status"
    )
    if now.in_doubt:
        text = f"{count(now.in_doubt, 'message')} may have arrived, and not sent again by itself"
        remedy = (
            "see picoqmail list --state in_doubt; ask whether it arrived, then picoqmail retry ID, "
            "or picoqmail delete ID"
        )
        yield Finding("in doubt", WARNING, text, remedy)
    fresh = now.heaps[UNDELIVERED].fresh
    text = f"{now.heaps[UNDELIVERED].messages} kept, {fresh} of the last day"
    level = limits.level(fresh, limits.failed)
    yield Finding("undelivered", level, text, "picoqmail list --state undelivered")
    yield _last_delivery(now, limits)
    for name, one in now.outages.items():
        level = max(WARNING, limits.level(now.taken - one.since, limits.age))
        down = rough_duration(now.taken - one.since)
        text = f"{name} is down for {down} ({one.stage}: {one.reason})"
        remedy = REMEDIES.get(one.stage, "see the relay's host")
        yield Finding("relay", level, text, f"{remedy}; picoqmail check tries it now")
    for name, lessons in now.lessons.items():
        for text in lessons:
            forget = f"to have this learnt anew, remove {RELAY_NOTES} from the spool"
            yield Finding("relay", OK, f"{name} {text}", forget)
    yield from _space(now, chosen)


def _last_delivery(now: Status, limits: Thresholds) -> Finding:
    if now.last_delivery is None:
        return Finding("last delivery", OK, "nothing was delivered yet")
    age = now.taken - now.last_delivery
    level = limits.level(age, limits.last)
    return Finding("last delivery", level, f"{rough_duration(age)} ago", "picoqmail status")


def _space(now: Status, chosen: Settings | None) -> Iterator[Finding]:
    if now.free_octets is None or now.free_inodes is None:
        return  # The mail lies elsewhere, and this host has no directory for it.
    least = max(LEAST_FREE_OCTETS, chosen.minfree if chosen else 0)
    free = f"{now.free_octets >> 20} MiB and {now.free_inodes} inodes are free"
    # Some file systems have no fixed number of inodes, and report 0.
    few = now.free_octets < least or 0 < now.free_inodes < LEAST_FREE_INODES
    yield Finding("space", CRITICAL if few else OK, free, "free some space, or mail is refused")


def check_cron(home: Home, now: Status) -> Iterator[Finding]:
    """Check that cron runs: each run leaves its time on its lock file."""
    last = cron_ran(home.spool)
    remedy = "see crontab -l; for the line that it needs: picoqmail init --units"
    if now.cron is not None:
        yield Finding("cron", OK, "a run is active")
    elif last is None:
        level = WARNING if now.waiting else OK
        yield Finding("cron", level, "picoqmail-cron has never run", remedy)
    elif now.taken - last > CRON_LATE_SECONDS:
        text = f"picoqmail-cron last ran {rough_duration(now.taken - last)} ago"
        yield Finding("cron", WARNING, text, remedy)
    else:
        yield Finding("cron", OK, f"last ran {rough_duration(now.taken - last)} ago")


def cron_ran(spool: str) -> int | None:
    """Return when a run of picoqmail-cron last began or ended, Unix seconds; None if never."""
    try:
        return int(os.stat(f"{spool}/{CRON_LOCK}").st_mtime)
    except OSError:
        return None


# --- The relays ----------------------------------------------------------------------------------


def check_relays(chosen: Settings, limits: Thresholds) -> tuple[list[Finding], list[Probe]]:
    """Try every relay. One that is down is critical only if no other one takes its mail."""
    from picoqmail.admin.relay_probe import probe

    routes = (*chosen.smtproutes, *chosen.senderroutes)
    relays = [*chosen.relayip, *(relay for route in routes for relay in route.relays)]
    probes = [probe(relay, chosen) for relay in dict.fromkeys(relays)]
    up = {one.relay for one in probes if one.is_up}
    spare = any(str(relay) in up for relay in chosen.relayip)
    own = {str(relay) for relay in chosen.relayip}
    findings = []
    for one in probes:
        if one.is_up:
            findings.append(_relay_up(one, limits))
        else:
            level = WARNING if spare and one.relay in own else CRITICAL
            text = f"{one.relay}: {one.stage}: {one.reason}"
            findings.append(Finding("relay", level, text, REMEDIES.get(one.stage, "")))
    return findings, probes


def _relay_up(one: Probe, limits: Thresholds) -> Finding:
    words = [f"{one.relay} took a connection in {one.seconds:.1f} s"]
    words.append(f"{one.tls}, certificate check: {one.verified}" if one.tls else "without TLS")
    level = OK
    if one.certificate_ends is not None:
        days = int(one.certificate_ends - time.time()) // 86400
        warning, critical = limits.certificate_days
        if critical is not None and days < critical:
            level = CRITICAL
        elif warning is not None and days < warning:
            level = WARNING
        words.append(f"which ends in {days} days" if days >= 0 else f"which ended {-days} days ago")
    if one.logged_in:
        words.append("login accepted")
    return Finding("relay", level, ", ".join(words), "have the relay's certificate renewed")


# --- Repair --------------------------------------------------------------------------------------


def repair(home: Home, spool: DirectoryStore) -> list[str]:
    """Repair what can be repaired without losing anything; return what was done.

    Modes, missing directories, leftovers, messages in two states after a crash, and the file times
    by which cron knows what is due. A damaged message is put aside. What cannot be repaired is
    returned as well.
    """
    done = [*_repair_modes(home), *_make_directories(home)]
    spool = DirectoryStore(
        spool.path,
        spool.clock,
        on_damage=lambda one: done.append(f"{one.id}: {one.reason}"),
        on_copy=lambda path: done.append(f"swept {path}, a damaged copy of a body that is whole"),
    )
    try:
        gone, trouble = spool.sweep(leftovers(spool))
        done += [f"swept {path}" for path in gone]
        done += [str(error) for error in trouble]
        for message_id in spool.names():
            try:
                done += _repair_message(spool, message_id)
            except SpoolError as exc:
                done.append(f"{message_id}: {exc}")
        spool.flush()
    except SpoolError as exc:
        done.append(f"not finished: {exc}")
    return done


def repair_password(home: Home) -> list[str]:
    """Let the sender, and no other user, read `relaypass`; return what was done.

    To be called before root has become the owner of the spool, for only root can give a file away.
    """
    path = f"{home.control}/relaypass"
    try:
        if os.geteuid() == 0:
            check_roots_own(home)
        owner = os.lstat(home.spool)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (HandsError, OSError):
        return []  # There is none, or the check of the settings reports what is wrong with it.
    try:
        found = os.fstat(descriptor)
        wanted = owner.st_uid if os.geteuid() == 0 else found.st_uid
        is_right = found.st_uid == wanted and not found.st_mode & 0o077
        # A second name may lead to a file of root's that is none of this home.
        if is_right or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return []
        os.fchmod(descriptor, PRIVATE_FILE_MODE)
        if found.st_uid != wanted:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
    except OSError as exc:
        return [f"{path}: cannot be given to the sender: {exc.strerror}"]
    finally:
        os.close(descriptor)
    was = f"belonged to user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}"
    return [f"{path}: {was}; now user {wanted}, mode 0600"]


def _repair_message(spool: DirectoryStore, message_id: str) -> list[str]:
    before = spool.where(message_id)
    if before == [UNDELIVERED]:
        return []
    done = []
    claim = spool.claim(message_id, (NEW, CUR))
    after = spool.where(message_id)
    if claim is not None:
        if claim.state == CUR and _is_off(spool, claim.message.id):
            spool.repeat_due_time(claim)
            done.append(f"{message_id}: its file time is when it is due again")
        claim.release()
    if before != after:
        done.append(f"{message_id}: now in {' '.join(after) or 'no state'}")
    return done


def _make_directories(home: Home) -> Iterator[str]:
    """Make those that a copy left out because they were empty.

    If all are missing, none is made: then a disk is not mounted, or there is no spool.
    """
    missing = [one for one in DIRECTORIES if not os.path.lexists(f"{home.spool}/{one}")]
    for name in missing if len(missing) < len(DIRECTORIES) else ():
        path = f"{home.spool}/{name}"
        try:
            durable.make_directory(path)
            yield f"{path}: was missing, and was made"
        except OSError as exc:
            yield f"{path}: is missing, and cannot be made: {exc.strerror}"


def _is_off(spool: DirectoryStore, message_id: str) -> bool:
    """Say whether the file time of a sidecar in cur/ is not when its message is due."""
    try:
        _, message = spool.read(message_id, CUR)
        found = os.stat(f"{spool.path}/{CUR}/{message_id}{SIDECAR}").st_mtime
    except (FileNotFoundError, NoSuchMessageError, DamagedMessageError):
        return False
    return found != message.due_hint


def _repair_modes(home: Home) -> Iterator[str]:
    """Correct modes; what is in a directory can be seen once its own mode is right."""
    tried: set[str] = set()
    while True:
        wrong = [one for one in _wrong_modes(home) if "mode" in one[2] and one[0] not in tried]
        if not wrong:
            return
        for path, _, text, remedy in wrong:
            tried.add(path)
            try:
                found = os.lstat(path)
                is_directory = stat.S_ISDIR(found.st_mode)
                least = PRIVATE_DIRECTORY_MODE if is_directory else PRIVATE_FILE_MODE
                os.chmod(path, stat.S_IMODE(found.st_mode) & ~0o077 | least)
                if is_directory:
                    durable.sync_directory(path)
                yield f"{path}: {text}; corrected"
            except OSError as exc:
                yield f"{path}: {text}; cannot be changed: {exc.strerror}; {remedy}"
