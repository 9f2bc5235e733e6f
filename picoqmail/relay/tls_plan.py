"""What is demanded of TLS to a relay, by its scheme and the settings. Pure; ssl is not imported."""

from __future__ import annotations

from picoqmail.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    from picoqmail.smtp.relay_address import Relay


class TlsPolicy(Value):
    """What the settings say about TLS.

    ``mode`` is the setting ``tls``: ``off``, ``may``, ``require``, ``implicit``, ``fingerprint``.
    ``ca`` is a PEM file (``""``: the platform's store),
    ``certificate`` a PEM file with our own certificate and key (``""``: none). ``fingerprints`` are
    SHA-256 of the relay's certificate (DER) in 64 hex digits; colons and case do not matter.
    """

    __slots__ = ("mode", "ca", "certificate", "fingerprints")

    def __init__(
        self,
        mode: str = "may",
        ca: str = "",
        certificate: str = "",
        fingerprints: tuple[str, ...] = (),
    ) -> None:
        self.mode: Final = mode
        self.ca: Final = ca
        self.certificate: Final = certificate
        self.fingerprints: Final = fingerprints


DEFAULT_POLICY = TlsPolicy()
"""What the settings say by default."""


class TlsPlan(Value):
    """How TLS starts with one relay, and how the relay's certificate is verified."""

    __slots__ = ("implicit", "starttls", "verify")

    def __init__(
        self,
        *,
        implicit: bool,
        starttls: Literal["never", "may", "must"],
        verify: Literal["nothing", "authority", "fingerprint"],
    ) -> None:
        self.implicit: Final = implicit
        self.starttls: Final = starttls
        self.verify: Final = verify


IN_CLEAR = TlsPlan(implicit=False, starttls="never", verify="nothing")
"""The plan that uses no TLS."""


def plan_tls(relay: Relay, policy: TlsPolicy, *, guards_login: bool) -> TlsPlan:
    """Return the plan for a relay. Its scheme can demand more than the setting, never less.

    ``guards_login``: we log in, and the setting cleartextauth is off. Then ``may`` counts as
    ``require``: a password must not go to whoever happens to listen (RFC 8314).
    """
    if relay.scheme == "lmtp+unix":
        return IN_CLEAR
    implicit = relay.scheme == "smtps" or policy.mode == "implicit"
    must = relay.scheme == "smtp+starttls" or policy.mode in ("require", "fingerprint")
    must = must or (policy.mode == "may" and guards_login)
    verify: Literal["nothing", "authority", "fingerprint"] = "nothing"
    if policy.mode == "fingerprint":
        verify = "fingerprint"
    elif implicit or must:
        verify = "authority"
    starttls: Literal["never", "may", "must"] = "never"
    if not implicit:
        starttls = "must" if must else "never" if policy.mode == "off" else "may"
    return TlsPlan(implicit=implicit, starttls=starttls, verify=verify)
