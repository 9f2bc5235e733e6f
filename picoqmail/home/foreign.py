"""The configurations of other send-only mailers, as settings of ours. Pure: texts in, values out.

nullmailer-send(8), msmtp(1), ssmtp.conf(5), dma(8). What has no counterpart here becomes a note
for the administrator, never a guess; passwords are written only to relaypass.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from attrs import define, field

from picoqmail.errors import ConfigurationError
from picoqmail.smtp.relay_address import RelayAddressError, parse_relay

if TYPE_CHECKING:
    from collections.abc import Mapping

FILES = {
    "nullmailer": ("/etc/nullmailer", "/etc/mailname"),
    "msmtp": ("/etc/msmtprc",),
    "ssmtp": ("/etc/ssmtp/ssmtp.conf",),
    "dma": ("/etc/dma/dma.conf", "/etc/dma/auth.conf", "/etc/mailname"),
}
"""Where each keeps its configuration; of nullmailer the whole directory."""


@define
class Translation:
    """Settings by name, each with its lines, and notes on what a person has to check."""

    settings: dict[str, list[str]] = field(factory=dict)
    notes: list[str] = field(factory=list)

    def set(self, name: str, value: str) -> None:
        """Give a setting its value."""
        if value:
            self.settings[name] = [value]

    def relay(self, scheme: str, host: str, port: str, user: str, where: str) -> None:
        """Add a relay. Raises ConfigurationError where it cannot be one."""
        bare = f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host
        who = f"{user}@" if user else ""
        text = f"{scheme}://{who}{bare}{f':{port}' if port else ''}"
        try:
            parse_relay(text)
        except RelayAddressError as exc:
            remedy = "correct it there, or write relayip by hand"
            raise ConfigurationError(where, str(exc), remedy) from exc
        self.settings.setdefault("relayip", []).append(text)

    def password(self, value: str, where: str) -> None:
        """Take the password of a relay; there is one for all of them."""
        if not value:
            return
        before = self.settings.get("relaypass")
        if before and before != [value]:
            self.notes.append(
                f"{where}: another password than that of the relay before it: picoqmail has one "
                "relaypass for all relays; keep the relays with that one"
            )
            return
        self.settings["relaypass"] = [value]


def translate(kind: str, texts: Mapping[str, str]) -> Translation:
    """Translate the files of one mailer, by name. Raises ConfigurationError."""
    found = {"nullmailer": nullmailer, "msmtp": msmtp, "ssmtp": ssmtp, "dma": dma}[kind](texts)
    if "relayip" not in found.settings:
        found.notes.append("it names no relay: write one into relayip")
    return found


# --- nullmailer ----------------------------------------------------------------------------------

_SAME = ("defaultdomain", "defaulthost", "helohost", "idhost", "queuelifetime", "adminaddr")


def nullmailer(texts: Mapping[str, str]) -> Translation:
    """Translate the files of /etc/nullmailer, by name; `mailname` is /etc/mailname."""
    found = Translation()
    first = {name: _first_line(text) for name, text in texts.items()}
    found.set("me", first.get("me") or first.get("mailname", ""))
    for name in _SAME:
        found.set(name, first.get(name, ""))
    found.set("doublebounceto", first.get("doublebounceto", ""))
    sender = first.get("allmailfrom", "")
    if sender:
        found.set("rewritefrom", sender)
        found.notes.append("allmailfrom: rewritefrom rewrites the header's From, too")
    local, at, host = first.get("bouncefrom", "").rpartition("@")
    found.set("bouncefrom", local if at else host)
    found.set("bouncehost", host if at else "")
    timeout = first.get("sendtimeout", "")
    found.set("timeoutremote", timeout if timeout != "0" else "")
    for name in ("pausetime", "maxpause"):
        if first.get(name):
            found.notes.append(
                f"{name}: here the setting retryschedule says when mail is tried again"
            )
    for number, line in enumerate(texts.get("remotes", "").splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            _nullmailer_remote(found, line, f"remotes:{number}")
    return found


def _nullmailer_remote(found: Translation, line: str, where: str) -> None:
    try:
        words = shlex.split(line)
    except ValueError as exc:
        raise ConfigurationError(where, str(exc), "see nullmailer-send(8)") from exc
    host, protocol, *more = [*words, "smtp"] if len(words) == 1 else words
    options = {}
    for word in more:
        name, _, value = word.removeprefix("--").partition("=")
        options[name] = value
    if protocol != "smtp":
        found.notes.append(f"{where}: the protocol {protocol} has no counterpart; left out")
        return
    scheme = "smtp"
    if "ssl" in options:
        scheme = "smtps"
    elif "starttls" in options or "tls" in options:
        scheme = "smtp+starttls"
    port = options.get("port", "") or ("25" if scheme == "smtp+starttls" else "")
    found.relay(scheme, host, port, options.get("user", ""), where)
    found.password(options.get("pass", ""), where)
    if "x509cafile" in options:
        found.set("tlsca", options["x509cafile"])
    if "source" in options:
        found.set("sourceip", options["source"])
    if "insecure" in options:
        found.notes.append(
            f"{where}: --insecure is not taken over; if its certificate cannot be verified, set "
            "tlsfingerprint and tls fingerprint"
        )
    if "x509certfile" in options:
        found.notes.append(f"{where}: name one file with certificate and key in tlscert")


# --- msmtp ---------------------------------------------------------------------------------------


def msmtp(texts: Mapping[str, str]) -> Translation:
    """Translate an msmtprc: the account `default`, else the only one."""
    found = Translation()
    accounts: dict[str, dict[str, str]] = {}
    defaults: dict[str, str] = {}
    current = defaults
    (text,) = texts.values()
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        value = value.strip().strip('"')
        if not name or name.startswith("#"):
            continue
        if name == "defaults":
            current = defaults
        elif name == "account":
            account, _, parents = value.partition(":")
            current = accounts.setdefault(account.strip(), dict(defaults))
            for parent in parents.replace(",", " ").split():
                current.update(accounts.get(parent, {}))
        else:
            current[name] = value
    chosen = accounts.get("default") or (next(iter(accounts.values())) if accounts else {})
    if len(accounts) > 1 and "default" not in accounts:
        found.notes.append(f"of {len(accounts)} accounts the first was taken: there is no default")
    if chosen:
        _msmtp_account(found, chosen)
    return found


def _msmtp_account(found: Translation, account: Mapping[str, str]) -> None:
    uses_tls = account.get("tls", "off") in ("on", "")
    starttls = account.get("tls_starttls", "on") in ("on", "")
    scheme = "smtp+starttls" if uses_tls and starttls else "smtps" if uses_tls else "smtp"
    if account.get("protocol") == "lmtp":
        scheme = "lmtp"
    port = account.get("port", "") or ("25" if scheme == "smtp+starttls" else "")
    user = account.get("user", "") if account.get("auth", "off") != "off" else ""
    if account.get("host"):
        found.relay(scheme, account["host"], port, user, "msmtprc")
    if "passwordeval" in account:
        command = f"!sh -c {shlex.quote(account['passwordeval'])}"
        is_token = account.get("auth") in ("oauthbearer", "xoauth2")
        found.password(f"{'oauth2' if is_token else ''}{command}", "msmtprc")
    else:
        found.password(account.get("password", ""), "msmtprc")
    found.set("helohost", account.get("domain", ""))
    found.set("sourceip", account.get("source_ip", ""))
    sender = account.get("from", "")
    if "@" in sender and "%" not in sender and "*" not in sender:
        found.set("rewritefrom", sender)
    elif sender:
        found.notes.append(f"from {sender}: write a rule into rewritefrom by hand")
    trust = account.get("tls_trust_file", "")
    found.set("tlsca", trust if trust.startswith("/") else "")
    if account.get("tls_fingerprint"):
        _fingerprint(found, account["tls_fingerprint"])
    if account.get("tls_certcheck") == "off":
        found.notes.append("tls_certcheck off is not taken over: set tlsfingerprint instead")
    if account.get("syslog", "off") != "off":
        found.set("log", "syslog")
    elif account.get("logfile", "").startswith("/"):
        found.set("log", account["logfile"])


def _fingerprint(found: Translation, text: str) -> None:
    if len(text.replace(":", "")) == 64:
        found.set("tlsfingerprint", text)
        found.set("tls", "fingerprint")
    else:
        found.notes.append("the certificate's fingerprint is no SHA-256: take a new one")


# --- ssmtp ---------------------------------------------------------------------------------------


def ssmtp(texts: Mapping[str, str]) -> Translation:
    """Translate an ssmtp.conf, whose keys may be in any case."""
    found = Translation()
    values: dict[str, str] = {}
    (text,) = texts.values()
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            values[name.strip().lower()] = value.strip()
    host, _, port = values.get("mailhub", "").partition(":")
    scheme = "smtp"
    if values.get("usetls", "no").lower() == "yes":
        scheme = "smtp+starttls" if values.get("usestarttls", "no").lower() == "yes" else "smtps"
    elif values.get("usestarttls", "no").lower() == "yes":
        scheme = "smtp+starttls"
    if host:
        port = port or ("25" if scheme != "smtps" else "")
        found.relay(scheme, host, port, values.get("authuser", ""), "ssmtp.conf")
    found.password(values.get("authpass", ""), "ssmtp.conf")
    found.set("me", values.get("hostname", ""))
    found.set("defaulthost", values.get("rewritedomain", ""))
    found.set("tlsca", values.get("tls_ca_file", ""))
    root = values.get("root", "")
    if root and root != "postmaster":
        found.notes.append(f"root={root}: only mail for system users went there; see adminaddr")
    if values.get("fromlineoverride", "").lower() == "no":
        found.notes.append("FromLineOverride=NO: see rewritefrom")
    return found


# --- dma -----------------------------------------------------------------------------------------


def dma(texts: Mapping[str, str]) -> Translation:
    """Translate a dma.conf, and the password of its smart host in auth.conf."""
    found = Translation()
    values: dict[str, str] = {}
    for line in texts.get("dma.conf", "").splitlines():
        words = line.split(None, 1)
        if words and not words[0].startswith("#"):
            values[words[0]] = words[1].strip() if len(words) > 1 else "yes"
    host = values.get("SMARTHOST", "")
    user = _dma_login(found, texts.get("auth.conf", ""), host)
    scheme = "smtp"
    if "SECURETRANSFER" in values:
        scheme = "smtp+starttls" if "STARTTLS" in values else "smtps"
        if "OPPORTUNISTIC_TLS" in values:
            scheme = "smtp"
            found.notes.append("OPPORTUNISTIC_TLS: that is tls may, the default")
    if host:
        found.relay(scheme, host, values.get("PORT", "25"), user, "dma.conf")
    name = values.get("MAILNAME", "")
    found.set("me", texts.get("mailname", "").strip() if name.startswith("/") or not name else name)
    if values.get("MASQUERADE"):
        mask = values["MASQUERADE"]
        found.set("rewritefrom", mask if "@" in mask else f"*:@{mask}")
    if values.get("FINGERPRINT"):
        _fingerprint(found, values["FINGERPRINT"])
    if "CERTFILE" in values:
        found.set("tlscert", values["CERTFILE"])
    if "ALIASES" in values:
        found.notes.append("aliases: there is no local delivery here; see adminaddr")
    return found


def _dma_login(found: Translation, text: str, host: str) -> str:
    """Return the user for the smart host, of lines `user|smarthost:password`."""
    for number, line in enumerate(text.splitlines(), 1):
        user, bar, rest = line.partition("|")
        name, colon, password = rest.partition(":")
        if bar and colon and name == host and not line.startswith("#"):
            found.password(password, f"auth.conf:{number}")
            return user
    return ""


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    return next((line for line in lines if line and not line.startswith("#")), "")
