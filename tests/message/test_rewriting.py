"""The settings rewritefrom and adminaddr: which address becomes which."""

from __future__ import annotations

import pytest

from picoqmail.errors import ConfigurationError
from picoqmail.message.rewriting import LocalNames, SenderRules, admin_address, to_admin

LOCAL = LocalNames([b"me.test", b"localhost"])


def rules(*lines: str) -> SenderRules:
    """Return the rules of a control file with these lines."""
    placed = [(line, f"/home/control/rewritefrom:{number}") for number, line in enumerate(lines, 1)]
    return SenderRules(placed, LOCAL)


@pytest.mark.parametrize(
    ("lines", "address", "expected"),
    [
        (("all@x.test",), b"anybody@elsewhere.test", b"all@x.test"),
        (("*:all@x.test",), b"joe@me.test", b"all@x.test"),
        (("@:local@x.test",), b"Joe@ME.test", b"local@x.test"),
        (("@:local@x.test",), b"joe@elsewhere.test", b"joe@elsewhere.test"),
        (("joe:joe@x.test", "@:rest@x.test"), b"joe@localhost", b"joe@x.test"),
        (("joe:joe@x.test", "@:rest@x.test"), b"ann@localhost", b"rest@x.test"),
        (("joe:joe@x.test",), b"joe@elsewhere.test", b"joe@elsewhere.test"),
        (("joe@y.test:j@x.test",), b"joe@Y.test", b"j@x.test"),
        (("@y.test:@x.test",), b"any.one@y.test", b"any.one@x.test"),
        (("*:@x.test",), b"any.one@y.test", b"any.one@x.test"),
        ((" joe : j@[IPv6:::1]",), b"joe@me.test", b"j@[IPv6:::1]"),
        (("all@x.test",), b"", b""),
        (("all@x.test",), b"#@[]", b"#@[]"),
        (("all@x.test",), b"list-@y.test-@[]", b"list-@y.test-@[]"),
        (("*:@x.test",), b"list-@y.test-@[]", b"list-@x.test-@[]"),
    ],
)
def test_the_first_rule_that_fits_decides(
    lines: tuple[str, ...], address: bytes, expected: bytes
) -> None:
    """Exact addresses, hosts, users of this host and everything, in the order of the file."""
    assert expected == rules(*lines).apply(address)


@pytest.mark.parametrize("line", ["x", "a:b", "a:b@", "a:b c@d", "a:<b@c>", ":"])
def test_a_wrong_rule_names_its_line(line: str) -> None:
    """A rule that is none is an error with file, line and what is allowed."""
    with pytest.raises(ConfigurationError, match=r"rewritefrom:2: .* PATTERN:user@host"):
        rules("ok@x.test", line)


def test_no_setting_rewrites_nothing() -> None:
    """Without rules every address stays."""
    assert not SenderRules([], LOCAL)
    assert b"a@me.test" == SenderRules([], LOCAL).apply(b"a@me.test")


def test_mail_for_local_users_goes_to_one_address_once() -> None:
    """Recipients elsewhere stay, in order; those of this host become one admin."""
    assert [b"a@x.test", b"admin@y.test", b"b@x.test"] == to_admin(
        [b"a@x.test", b"root@me.test", b"joe@LOCALHOST", b"b@x.test"], b"admin@y.test", LOCAL
    )


def test_adminaddr_is_one_address() -> None:
    """Anything else names the file and line."""
    assert b"a@b" == admin_address("a@b", "/c/adminaddr:1")
    assert b"" == admin_address("", "/c/adminaddr")
    with pytest.raises(ConfigurationError, match=r"/c/adminaddr:3: "):
        admin_address("nobody", "/c/adminaddr:3")
