"""Which modules are mutated, and which tests concern them; those that find most come first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# The tests of a module are files below tests/. Those that run a mutant's line are tried first, the
# quick ones before the slow ones; then the others, which may run it in a program.
MODULES: Mapping[str, Sequence[str]] = {
    "durable": (
        "test_durable.py",
        "spool/test_incoming.py",
        "spool/test_transitions.py",
        "store/test_directory.py",
        "house/test_syscalls.py",
    ),
    "spool/incoming": ("store/test_journeys.py", "spool/test_incoming.py"),
    "store/directory": ("store/test_journeys.py", "store/test_directory_rest.py"),
    "spool/files": ("store/test_journeys.py", "spool/test_files.py"),
    "spool/claim": ("store/test_journeys.py", "spool/test_claim.py", "spool/test_collect.py"),
    "spool/progress": ("spool/test_progress.py",),
    "spool/keys": ("store/test_journeys.py", "spool/test_key_records.py"),
    "spool/locks": ("spool/test_locks.py",),
    "spool/syncfs": ("spool/test_syncfs.py", "library/test_api.py"),
    "spool/retention": ("spool/test_retention.py",),
    "delivery/deliver": ("delivery/test_episodes.py",),
    "delivery/policy": ("delivery/test_policy.py",),
    "delivery/routing": ("delivery/test_routing.py",),
    "delivery/report_state": ("delivery/test_report_state.py",),
    "delivery/outages": ("delivery/test_outages.py",),
    "relay/breaker": ("relay/test_breaker.py",),
    "ledger/routes": ("relay/test_breaker.py", "delivery/test_outages.py"),
    "smtp/conversation": ("smtp/test_dialogues.py", "smtp/test_conversation.py"),
    "library/groups": ("library/test_api.py", "spool/test_syncfs.py"),
}
# Modules whose tests take seconds: the sample of .ci/run is drawn from these.
QUICK = ("relay/breaker", "ledger/routes", "spool/retention", "delivery/routing")
