"""Every setting, once: its name, meaning, unit, default, reader and what is allowed.

What may live here: the class `Settings`, whose declarations are also the documentation
(`picoqmail config` and docs/settings.md print them), and the loading of it from a home. `control`
reads control files and `minivars`, and `values` reads the meaning of a text; this module joins the
two and says where a wrong value stands.

`load` is for programs that send mail: all settings or one clear error. `examine` is for people who
check them: everything that is wrong, and where each value came from.
"""

from __future__ import annotations

import posix
import stat

from picoqmail.errors import ConfigurationError
from picoqmail.home import hands
from picoqmail.home import values as setting_values
from picoqmail.home.control import MINIVARS, Control
from picoqmail.home.database import DATABASE_SETTING, read_database, without_password
from picoqmail.home.limits import (
    DEFAULT_RECIPIENTS,
    MOST_MESSAGES,
    MOST_OCTETS,
    MOST_RECIPIENTS,
    MOST_SECONDS,
)
from picoqmail.home.secret import RelayPassword
from picoqmail.home.values import SECONDS_PER_UNIT, RateLimit, Route
from picoqmail.layout import DEFAULT_KEY_LIFETIME_SECONDS, DEFAULT_QUEUE_LIFETIME_SECONDS
from picoqmail.log import privacy
from picoqmail.message.rewriting import LocalNames, SenderRules, admin_address
from picoqmail.smtp.relay_address import ALLOWED as ALLOWED_RELAYS
from picoqmail.smtp.relay_address import RelayAddressError
from picoqmail.value import EMPTY, Value, evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Any, Final

    from picoqmail.home.control import ControlValue
    from picoqmail.home.paths import Home
    from picoqmail.log.choice import LogChoice
    from picoqmail.smtp.relay_address import Relay

_DURATION = "seconds, or a number with one of the units " + " ".join(SECONDS_PER_UNIT)
_BYTES = "a whole number of bytes"
_HOST = "a host name in ASCII, or an address literal in square brackets"


class Spec(Value):
    """What is known of a setting besides its name: the row that documentation is made from.

    `read` turns one line into a value; a setting with `many` has one value a line, in a tuple.
    `default` is the text that would give the default value, or "" if there is none; `follows`
    names the setting whose value is the default. `check`, where another module owns the rule, is
    its own reader, which raises ConfigurationError.
    """

    __slots__ = (
        "meaning",
        "allowed",
        "read",
        "default",
        "follows",
        "unit",
        "many",
        "secret",
        "mandatory",
        "check",
    )

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        meaning: str,
        allowed: str,
        read: Callable[[str], object],
        *,
        default: str = "",
        follows: str = "",
        unit: str = "",
        many: bool = False,
        secret: bool = False,
        mandatory: bool = False,
        check: Callable[[ControlValue], object] | None = None,
    ) -> None:
        self.meaning: Final = meaning
        self.allowed: Final = allowed
        self.read: Final = read
        self.default: Final = default
        self.follows: Final = follows
        self.unit: Final = unit
        self.many: Final = many
        self.secret: Final = secret
        self.mandatory: Final = mandatory
        self.check: Final = check


def _setting(meaning: str, allowed: str, read: Callable[[str], object], **more: Any) -> Any:  # noqa: ANN401 - an instance has the setting's value under this name
    return Spec(" ".join(meaning.split()), " ".join(allowed.split()), read, **more)


def _between(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        return setting_values.whole_number(text, least, most)

    return read


def _seconds(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        seconds = setting_values.duration(text)
        if seconds < least:
            raise ValueError(f"{text} is less than {least} seconds")
        return seconds

    return read


class Settings:
    """The settings of one home; every attribute is named as its file under `control/`.

    This is the one table of all settings: the class holds what is known of each, as a `Spec`, and
    an instance holds their values under the same names.

    Times are whole seconds, sizes bytes. A name that was not set has its default; `None` stands
    for "not set" where there is no default, and for qmail's own schedule in `retryschedule`.
    """

    me: str = _setting(
        "This host's name. Every other host setting follows it.",
        _HOST,
        setting_values.host_name,
        mandatory=True,
    )
    relayip: tuple[Relay, ...] = _setting(
        """The relays, one a line, tried in order. A user before the @ logs in with the password
        of relaypass.""",
        ALLOWED_RELAYS,
        setting_values.relay,
        many=True,
    )
    relaypass: RelayPassword | None = _setting(
        """The relay's password, or !command that prints it on its first line, or oauth2!command
        that prints an access token. The command is executed directly, without a shell, at most
        once a run.""",
        """a password, !command or oauth2!command, in a file of mode 0600 or stricter that belongs
        to the user who sends, or to root""",
        RelayPassword,
        secret=True,
    )
    helohost: str = _setting(
        "The name that EHLO and HELO give to the relay.",
        _HOST,
        setting_values.host_name,
        follows="me",
    )
    idhost: str = _setting(
        "The host after the @ of a Message-ID that inject makes.",
        _HOST,
        setting_values.host_name,
        follows="me",
    )
    defaulthost: str = _setting(
        "The host that inject adds to an address without one.",
        _HOST,
        setting_values.host_name,
        follows="me",
    )
    defaultdomain: str = _setting(
        "The domain that inject adds to a host without a dot.",
        _HOST,
        setting_values.host_name,
        follows="me",
    )
    plusdomain: str = _setting(
        "The domain that inject adds to a host that ends with a plus sign.",
        _HOST,
        setting_values.host_name,
        follows="me",
    )
    smtproutes: tuple[Route, ...] = _setting(
        """Relays by recipient, one rule a line: the host itself before .domain (everything below
        it, the longest first) before a rule without a host. Several relays, with blanks between,
        are tried in order; a rule without a relay stands for those of relayip.""",
        f"host:relay, .domain:relay or :relay, where relay is {ALLOWED_RELAYS}",
        setting_values.recipient_route,
        many=True,
    )
    senderroutes: tuple[Route, ...] = _setting(
        """Relays by envelope sender, one rule a line: the address before its host before .domain
        before a rule without a pattern; <> is the null sender. A rule for the sender goes before
        one for the recipient.""",
        f"address:relay, host:relay, .domain:relay, <>:relay, :relay; relay is {ALLOWED_RELAYS}",
        setting_values.sender_route,
        many=True,
    )
    cleartextauth: bool = _setting(
        """Whether to log in over a line without verified TLS, which shows the password to everybody
        on the way. On this host, too: any user may listen on a port of 127.0.0.1. Unix sockets
        (lmtp+unix) need no permission.""",
        "on, off",
        setting_values.switch,
        default="off",
    )
    authmechanisms: tuple[str, ...] | None = _setting(
        """The logins that may be used. Of those that the relay offers, the strongest that works is
        taken. Not set: all.""",
        "a list with blanks between of SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER, XOAUTH2",
        setting_values.login_mechanisms,
    )
    pipelining: bool = _setting(
        """Whether commands are sent without waiting for the reply to each, if the relay offers
        PIPELINING.""",
        "on, off",
        setting_values.switch,
        default="on",
    )
    chunking: bool = _setting(
        "Whether messages are sent by BDAT, if the relay offers CHUNKING.",
        "on, off",
        setting_values.switch,
        default="on",
    )
    tls: str = _setting(
        """off: never; may: if the relay offers it, certificate unchecked (a relay with a user is
        treated as by require, unless cleartextauth is on); require: with a
        certificate that is valid for the relay's name; implicit: the same, from the first byte on;
        fingerprint: with the certificate whose SHA-256 is tlsfingerprint.""",
        ", ".join(setting_values.TLS_MODES),
        setting_values.tls_mode,
        default="may",
    )
    tlsca: str | None = _setting(
        """The certificates of the authorities that may sign a relay's, in PEM, instead of the
        system's.""",
        "the absolute path of a file that can be read",
        setting_values.absolute_path,
    )
    tlscert: str | None = _setting(
        "This host's own certificate and key, in PEM, for relays that ask for one.",
        "the absolute path of a file that can be read",
        setting_values.absolute_path,
    )
    tlsfingerprint: str | None = _setting(
        "The SHA-256 of the relay's certificate, for tls fingerprint.",
        "64 hex digits, colons between them or not",
        setting_values.fingerprint,
    )
    timeoutconnect: int = _setting(
        "How long to wait for a connection to the relay.",
        f"{_DURATION}; at least 1",
        _seconds(1),
        default="60",
        unit="seconds",
    )
    timeoutremote: int = _setting(
        "How long to wait for each reply of the relay, and for all its steps together at most.",
        f"{_DURATION}; at least 1",
        _seconds(1),
        default="1200",
        unit="seconds",
    )
    concurrencyremote: int = _setting(
        "How many connections one run opens at most, in all its processes together.",
        "a whole number from 1 to 255",
        _between(1, 255),
        default="20",
        unit="connections",
    )
    queuelifetime: int = _setting(
        """How old a message may become. After that one last attempt is made, then what is pending
        fails as expired; but not before the message had the attempts of a tenth of this time.""",
        "a whole number of seconds",
        _between(0, MOST_SECONDS),
        default=str(DEFAULT_QUEUE_LIFETIME_SECONDS),
        unit="seconds",
    )
    retryschedule: tuple[int, ...] | None = _setting(
        """When a deferred message is tried again: the pauses after the first, second, ... attempt,
        the last one repeating; or qmail, with attempts 0, 400, 1600, 3600, ... seconds after the
        message came, (20 n) squared.""",
        f"qmail, or a list of pauses with blanks between, each {_DURATION}; at least 1",
        setting_values.retry_schedule,
        default="qmail",
        unit="seconds",
    )
    runlifetime: int = _setting(
        "After this time a run of picoqmail-cron no longer keeps the next one out.",
        f"{_DURATION}; at least 1",
        _seconds(1),
        default="1800",
        unit="seconds",
    )
    idempotencylifetime: int = _setting(
        """How long an idempotency key that a Python program gave with a message keeps the same
        message from being enqueued again.""",
        "a whole number of seconds",
        _between(0, MOST_SECONDS),
        default=str(DEFAULT_KEY_LIFETIME_SECONDS),
        unit="seconds",
    )
    databytes: int = _setting(
        "The largest message that is accepted; 0 means no limit.",
        _BYTES,
        _between(0, MOST_OCTETS),
        default="0",
        unit="bytes",
    )
    minfree: int = _setting(
        "A message is refused for now if it would leave less than this free in the spool's file "
        "system; 0 means no limit.",
        _BYTES,
        _between(0, MOST_OCTETS),
        default="0",
        unit="bytes",
    )
    userlimit: int = _setting(
        "How many messages one user may submit in an hour through the set-id qmail-queue of a "
        "home for many users; 0 means no limit.",
        "a whole number",
        _between(0, MOST_MESSAGES),
        default="0",
        unit="messages",
    )
    recipientlimit: int = _setting(
        "How many recipients a message of one user may have in a home for many users.",
        f"a whole number up to {MOST_RECIPIENTS}",
        _between(1, MOST_RECIPIENTS),
        default=str(DEFAULT_RECIPIENTS),
        unit="recipients",
    )
    submitters: tuple[str, ...] = _setting(
        """Who may submit mail in a home for many users: a user a line, or a group after an @.
        Root always may. Not set: everybody.""",
        "the name or number of a user, or @ and that of a group",
        setting_values.plain_text,
        many=True,
    )
    sendatonce: bool = _setting(
        """Whether mail of a user starts the sender in a home for many users. Off: cron or a timer
        of systemd sends it, and the sender runs in no control group of the user.""",
        "on, off",
        setting_values.switch,
        default="on",
    )
    spool: str | None = _setting(
        """The PostgreSQL database that keeps the mail, for any number of hosts. Not set: the spool
        is a directory. PICOQMAIL_SPOOL goes before it.""",
        """postgresql://USER@HOST/DATABASE with the parameters of libpq, and schema and lease; in a
        file of mode 0600 if it holds a password""",
        setting_values.plain_text,
        check=read_database,
    )
    fallback: bool = _setting(
        """Whether the spool directory of this host takes mail while the database is away. A sender
        or worker brings it over later, once.""",
        "on, off",
        setting_values.switch,
        default="on",
    )
    bouncefrom: str = _setting(
        "The local part that bounces come from.",
        "a local part: no @, no blank",
        setting_values.local_part,
        default="MAILER-DAEMON",
    )
    bouncehost: str = _setting(
        "The host that bounces come from.",
        _HOST,
        setting_values.host_name,
        follows="me",
    )
    doublebounceto: str = _setting(
        "The address that gets bounces which could not be delivered, and reports on failed mail "
        "without a sender; bouncehost is added if it has no host. Not set: they stay in "
        "undelivered/.",
        "an address, or a local part",
        setting_values.mail_address,
    )
    bounces: bool = _setting(
        "Whether a sender gets a report by mail when a message failed.",
        "on, off",
        setting_values.switch,
        default="on",
    )
    bouncelimit: int = _setting(
        """How many bounces one address gets within an hour. Further failures are reported in one
        digest when the hour is over; 0 means no limit.""",
        "a whole number",
        _between(0, 10**6),
        default="20",
        unit="bounces",
    )
    bouncemaxbytes: int = _setting(
        "Of a larger message, the bounce returns only the header.",
        _BYTES,
        _between(0, MOST_OCTETS),
        default="50000",
        unit="bytes",
    )
    delaywarning: int | None = _setting(
        """The sender gets one warning when a message has waited for this time and was deferred
        again. Not set, or 0: no warning.""",
        _DURATION,
        _seconds(0),
        unit="seconds",
    )
    doubtlimit: int = _setting(
        """How many copies of a message a recipient may get because connections end before the
        relay has replied to the whole message. After so many the message is not sent to this
        recipient again by itself; picoqmail retry sends it once more. 0: it is tried for its whole
        queuelifetime, as RFC 5321 4.5.4 says, with a copy each time.""",
        "a whole number",
        _between(0, 10**6),
        default="2",
        unit="copies",
    )
    doubtpause: int | None = _setting(
        """For how long a message is not sent to a recipient that doubtlimit stopped; after that
        pause it is sent once more. Not set: until picoqmail retry.""",
        f"{_DURATION}; at least 1",
        _seconds(1),
        unit="seconds",
    )
    keepundelivered: int | None = _setting(
        """For how many days messages are kept in undelivered/; older ones are deleted by
        picoqmail-cron, once an hour. Not set: until they are purged by hand.""",
        "a whole number of days, at least 1",
        _between(1, 36500),
        unit="days",
    )
    rewritefrom: tuple[str, ...] = _setting(
        """Rewriting of the sender, in envelope and header, by picoqmail-inject and
        picoqmail-sendmail: rules, the first that fits an address decides. A pattern is user@host,
        @host (every address there), user (of this host), @ (every user of this host) or *
        (everything); @host behind the colon keeps the user.""",
        "PATTERN:user@host or PATTERN:@host, or an address alone for *",
        setting_values.plain_text,
        many=True,
        check=lambda raw: SenderRules(raw.places, LocalNames([])),
    )
    adminaddr: str | None = _setting(
        "The one address that gets all mail for users of this host that comes through "
        "picoqmail-inject and picoqmail-sendmail.",
        "an address user@host",
        setting_values.mail_address,
        check=lambda raw: admin_address(raw.text, raw.where()),
    )
    sourceip: str | None = _setting(
        "The address of this host from which connections to relays are made.",
        "an IPv4 or IPv6 address",
        setting_values.ip_address,
    )
    ratelimit: RateLimit | None = _setting(
        """How many messages are sent in a period at most; 0 means no limit. If a relay replies
        that we send too fast (421, 450 4.7.x, 454), there are pauses in any case.""",
        "messages/period, such as 14/s, 300/5m or 10000/d; or 0",
        setting_values.rate_limit,
        default="0",
    )
    log: LogChoice = _setting(
        """Where events are written, and from which level on (info by default). auto: to standard
        error if that is a terminal, else to syslog if the host has one, else to the file log in
        the spool, which is kept small. json: one JSON object a line, to standard error or the
        file named.""",
        """auto, stderr, syslog, journal, json, json /path, /path or off, then debug, info, warning
        or error""",
        setting_values.log_choice,
        default="auto",
    )
    logprivacy: str = _setting(
        """Which part of addresses the log hides: off: none; local: what is before the @; all: all
        of it.""",
        ", ".join(privacy.CHOICES),
        setting_values.log_privacy,
        default="off",
    )

    def __init__(self, given: Mapping[str, object], origins: Mapping[str, str] = EMPTY) -> None:
        """Take the values that were set, by name; all others get their defaults.

        `origins` says where each of them came from, as `file:line`. Raises KeyError where a
        mandatory one is missing.
        """
        self.origins = origins
        for name, spec in SPECS.items():
            is_given = name in given or spec.mandatory
            setattr(self, name, given[name] if is_given else self._default(spec))

    def _default(self, spec: Spec) -> object:
        if spec.follows:
            return getattr(self, spec.follows)
        if spec.many:
            return ()
        return spec.read(spec.default) if spec.default else None


SPECS = {name: spec for name, spec in vars(Settings).items() if isinstance(spec, Spec)}
"""Every setting by name, in the order of `Settings`."""


class SettingEntry(Value):
    """One setting as it was found: its value, the text it was made from, and where that stands.

    `value` is None if `error` is set. `where` is `file:line`, and empty for a default. `text` has
    one string a line, and is empty for secrets.
    """

    __slots__ = ("name", "spec", "value", "text", "where", "error")

    def __init__(  # noqa: PLR0913 - an argument a field
        self,
        name: str,
        spec: Spec,
        value: object,
        *,
        text: tuple[str, ...] = (),
        where: str = "",
        error: ConfigurationError | None = None,
    ) -> None:
        self.name: Final = name
        self.spec: Final = spec
        self.value: Final = value
        self.text: Final = text
        self.where: Final = where
        self.error: Final = error


class Examination(Value):
    """Everything there is to say about a home's settings.

    `settings` is None if there is any error.
    """

    __slots__ = ("entries", "errors", "warnings", "settings")

    def __init__(
        self,
        entries: tuple[SettingEntry, ...],
        errors: tuple[ConfigurationError, ...],
        warnings: tuple[str, ...],
        settings: Settings | None,
    ) -> None:
        self.entries: Final = entries
        self.errors: Final = errors
        self.warnings: Final = warnings
        self.settings: Final = settings


def load(home: Home, control: Control | None = None) -> Settings:
    """Return the settings of a home; `control` as for read_limits.

    Raises ConfigurationError, for the first of them, if a value is wrong or `me` is missing.
    Unknown names are not errors: a home of qmail holds files of which we know nothing.
    """
    examination = examine(home, control)
    if examination.settings is None:
        raise examination.errors[0]
    return examination.settings


def examine(home: Home, control: Control | None = None) -> Examination:
    """Return all settings of a home, all that is wrong with them, and what looks strange.

    Raises nothing for what a file holds, nor for a file that cannot be read: each is among
    `errors`. `control` as for read_limits.
    """
    control = control or Control(home.control)
    try:
        control.minivars()
    except ConfigurationError as exc:
        # Without it no setting is known for sure, so only its error is reported.
        return Examination((), (exc,), (), None)
    entries = [_entry(control, name, spec) for name, spec in SPECS.items()]
    errors = [entry.error for entry in entries if entry.error is not None]
    settings = None
    if not errors:
        given = {entry.name: entry.value for entry in entries if entry.where}
        origins = {entry.name: entry.where for entry in entries if entry.where}
        settings = Settings(given, origins)
        # A default that follows another setting is known only now.
        entries = [evolve(entry, value=getattr(settings, entry.name)) for entry in entries]
        errors.extend(_contradictions(settings, home))
    warnings = (*_unused_lines(control, entries), *_unknown_names(control), *_gaps(settings, home))
    return Examination(tuple(entries), tuple(errors), warnings, None if errors else settings)


def _entry(control: Control, name: str, spec: Spec) -> SettingEntry:
    """Read one setting; whatever is wrong with it becomes the entry's error."""
    try:
        raw = control.read(name)
    except ConfigurationError as exc:
        about = _about_the_owner(f"{control.directory}/{name}") if spec.secret else None
        return SettingEntry(name, spec, None, error=about or exc)
    if raw is None and spec.mandatory:
        missing = ConfigurationError(
            f"{control.directory}/{name}",
            "is not there, and the setting has no default",
            f"write {spec.allowed} into it, or run: picoqmail init",
        )
        return SettingEntry(name, spec, None, error=missing)
    if raw is None:
        return SettingEntry(name, spec, None, text=(spec.default,) if spec.default else ())
    text = () if spec.secret else tuple(line for line, _ in raw.lines)
    if name == DATABASE_SETTING:
        text = tuple([without_password(line) for line in text])
    try:
        return SettingEntry(name, spec, _value(name, spec, raw), text=text, where=raw.where())
    except ConfigurationError as exc:
        return SettingEntry(name, spec, None, text=text, where=raw.where(), error=exc)


def _value(name: str, spec: Spec, raw: ControlValue) -> object:
    """Return what the lines of a setting mean. Raises ConfigurationError."""
    if spec.secret:
        _refuse_if_others_can_read(raw)
    if not raw.lines and not (spec.default or spec.follows or spec.secret or spec.mandatory):
        # An empty file is the way to say "none" over a value in minivars.
        return () if spec.many else None
    if spec.check is not None:
        spec.check(raw)
    values = []
    lines = raw.lines or [("", 0)]
    for index, (line, _) in enumerate(lines if spec.many else lines[:1]):
        try:
            values.append(_read_line(spec, line, raw.where(index)))
        except ValueError as exc:
            problem = f"{name}: {exc}" if line else f"{name} is empty"
            # The error of a relay has said already what is allowed.
            remedy = "" if isinstance(exc, RelayAddressError) else f"allowed: {spec.allowed}"
            # From None for secrets: the parser's own error might quote what it was given.
            raise ConfigurationError(
                raw.where(index),
                problem,
                remedy,
            ) from (None if spec.secret else exc)
    return tuple(values) if spec.many else values[0]


def _read_line(spec: Spec, line: str, where: str) -> object:
    return RelayPassword(line, where) if spec.secret else spec.read(line)


def _about_the_owner(path: str) -> ConfigurationError | None:
    """Return the error of a secret that another user owns; None if its owner is right."""
    try:
        found = posix.lstat(path)
    except OSError:
        return None
    if stat.S_ISLNK(found.st_mode):
        # Never to advise a chown: it would give away what the link leads to.
        return ConfigurationError(
            path,
            "must not be a link",
            "put a file in its place, with the password or a command that prints it: !cat /path",
        )
    owner = found.st_uid
    if owner == posix.geteuid():
        return None
    return ConfigurationError(
        path,
        f"belongs to user {owner}, and user {posix.geteuid()}, who sends the mail, cannot read it",
        f"run as root: picoqmail check --repair, or chown -h {posix.geteuid()} {path}",
    )


def _refuse_if_others_can_read(raw: ControlValue) -> None:
    """Raise ConfigurationError if the file that a secret was read from is open to others.

    Whose it is was checked when it was read.
    """
    mode = stat.S_IMODE(raw.mode)
    if mode & 0o077:
        raise ConfigurationError(
            raw.path,
            f"holds a password, and its mode {mode:04o} lets other users read or change it",
            f"run: chmod 600 {raw.path}, or picoqmail check --repair; and change the password if "
            "others use this host",
        )


def _contradictions(settings: Settings, home: Home) -> Iterator[ConfigurationError]:
    """Yield what is wrong with settings that are right each by itself."""
    if settings.tls == "fingerprint" and settings.tlsfingerprint is None:
        yield ConfigurationError(
            settings.origins["tls"],
            "tls is fingerprint, but there is no tlsfingerprint",
            f"write the relay's into {home.control}/tlsfingerprint",
        )
    for name in ("tlsca", "tlscert"):
        path = getattr(settings, name)
        if path is None:
            continue
        if not posix.access(path, posix.R_OK):
            yield ConfigurationError(
                settings.origins[name],
                f"{name}: {path} is not there or cannot be read by user {posix.geteuid()}",
                f"allowed: {SPECS[name].allowed}",
            )
            continue
        # Whoever can write it decides which relay is trusted with the password.
        try:
            hands.check_way(path, posix.geteuid())
        except hands.HandsError as exc:
            yield exc


def logins_in_clear(settings: Settings) -> list[Relay]:
    """Return the relays that may get the password over a line without verified TLS."""
    return _plain_logins(settings, ("off", "may")) if settings.cleartextauth else []


def refused_logins(settings: Settings) -> list[Relay]:
    """Return the relays that cannot be used, because a login would be sent in clear."""
    return [] if settings.cleartextauth else _plain_logins(settings, ("off",))


def _plain_logins(settings: Settings, modes: tuple[str, ...]) -> list[Relay]:
    if settings.tls not in modes:
        return []
    routes = (*settings.smtproutes, *settings.senderroutes)
    relays = [*settings.relayip, *(relay for route in routes for relay in route.relays)]
    return [one for one in dict.fromkeys(relays) if one.user and one.scheme in ("smtp", "lmtp")]


def _unused_lines(control: Control, entries: Iterable[SettingEntry]) -> Iterator[str]:
    """Yield a warning for each setting of one value that has more lines."""
    for entry in entries:
        raw = control.read(entry.name) if entry.where and not entry.spec.many else None
        if raw is not None and len(raw.lines) > 1:
            yield f"{raw.where(1)}: is not used: {entry.name} is one value, on the first line"


def _unknown_names(control: Control) -> Iterator[str]:
    """Yield a warning for each file and variable that is not a setting of ours."""
    for name, value in control.minivars().items():
        if name.lower() not in SPECS:
            yield f"{value.where()}: {name} is not a setting of picoqmail, and not used"
    try:
        files = sorted(posix.listdir(control.directory))
    except OSError as exc:
        yield f"{control.directory}: cannot be listed: {exc.strerror}"
        return
    for name in files:
        if name not in SPECS and name != MINIVARS:
            yield f"{control.directory}/{name}: is not a setting of picoqmail, and not used"


def _gaps(settings: Settings | None, home: Home) -> Iterator[str]:
    """Yield a warning for what is allowed, but hardly meant."""
    if settings is None:
        return
    routes = (*settings.smtproutes, *settings.senderroutes)
    if not settings.relayip:
        yield (
            f"{home.control}/relayip: is not there: mail is accepted and kept, but only what "
            "smtproutes or senderroutes name a relay for can be sent"
        )
    relays = [*settings.relayip, *(relay for route in routes for relay in route.relays)]
    users = [relay for relay in relays if relay.user]
    if hands.is_link(settings.log.path) and not settings.log.path.startswith("/dev/"):
        where = settings.origins["log"]
        yield f"{where}: {settings.log.path} is a link, so nothing is logged there"
    for relay in logins_in_clear(settings):
        yield (
            f"{settings.origins['cleartextauth']}: lets {relay}, and everybody "
            "on the way, see the login without TLS: set tls to require, or write smtps:// or "
            "smtp+starttls://"
        )
    for relay in refused_logins(settings):
        yield (
            f"{settings.origins['tls']}: tls is off, so nothing is sent to {relay}: its password "
            "would go out in clear, and cleartextauth is off"
        )
    if users and settings.relaypass is None:
        yield f"{home.control}/relaypass: is not there, but a relay is given with a user to log in"
    if settings.relaypass is not None and not users:
        yield (
            f"{settings.origins['relaypass']}: is not used: no relay is given with a user, as in "
            "user@host"
        )
