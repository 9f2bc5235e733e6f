"""Programs that live long, have threads, and fork: nothing grows, nothing waits for ever.

PICOQMAIL_ENQUEUES=100000 is the long run; the suite makes a short one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

ENQUEUES = int(os.environ.get("PICOQMAIL_ENQUEUES", "3000"))
SECONDS = 1800 if ENQUEUES > 10_000 else 120
GROWTH_OCTETS = 2 << 20

MANY = """
import gc, json, os, resource, sys
from email.message import EmailMessage
import picoqmail
from picoqmail.testing import TemporarySpool

def gauge():
    gc.collect()
    with open("/proc/self/status") as file:
        facts = dict(line.split(":") for line in file)
    return {
        "octets": int(facts["VmRSS"].split()[0]) * 1024,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": int(facts["Threads"]),
        "objects": len(gc.get_objects()),
    }

def message(number):
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@example.org", "b@example.net", f"mail {number}"
    made.set_content("x")
    return made

count = int(sys.argv[1])
kinds = [
    lambda spool, n: spool.enqueue(b"x", "a@example.org", ["b@example.net"]),
    lambda spool, n: spool.enqueue(message(n)),
    lambda spool, n: spool.enqueue(b"x", "a@x.org", ["b@y.org"], idempotency_key=str(n % 100)),
    lambda spool, n: spool.prepare(b"x", "a@x.org", ["b@y.org"]).commit(),
    lambda spool, n: spool.enqueue_many([picoqmail.Mail(b"x", "a@x.org", ["b@y.org"])] * 10),
    lambda spool, n: spool.prepare(b"x", "a@x.org", ["b@y.org"]).abort(),
]
def refused(spool, n):
    try:
        spool.enqueue(b"x", "a@x.org", ["nobody"])
    except picoqmail.AddressError:
        pass
kinds.append(refused)
gauges = []
with TemporarySpool() as temporary:
    for number in range(count):
        kinds[number % len(kinds)](temporary.spool, number)
        if number % 1000 == 999:
            for state in ("new", "cur"):
                for name in os.listdir(f"{temporary.root}/spool/{state}"):
                    os.unlink(f"{temporary.root}/spool/{state}/{name}")
            gauges.append(gauge())
print(json.dumps([gauges[0], gauges[-1]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
def test_many_enqueues_leave_nothing_behind() -> None:
    """Memory, descriptors, threads and objects: after the first thousand and after the last."""
    # The home lies in memory, where that is possible: it is the process that is looked at.
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    ran = subprocess.run(
        [sys.executable, "-c", MANY, str(ENQUEUES)],
        env={**os.environ, "TMPDIR": where},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert 0 == ran.returncode, ran.stderr
    first, last = json.loads(ran.stdout)
    print(first, last)  # noqa: T201 - for the long run
    assert first["descriptors"] == last["descriptors"]
    assert first["threads"] == last["threads"]
    assert last["objects"] <= first["objects"] + 200
    assert last["octets"] <= first["octets"] + GROWTH_OCTETS


FORKS = """
import logging, os, sys, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # that is what is tried
import picoqmail
from picoqmail.logging_handler import MailHandler
from picoqmail.testing import TemporarySpool

with TemporarySpool() as temporary:
    handler = MailHandler(
        "a@example.org", "ops@example.org", "{message}", burst=100_000, capacity=100_000,
        home=temporary.root, send=False,
    )
    logger = logging.getLogger()
    logger.addHandler(handler)
    stop = threading.Event()
    counts = {}
    def work(name):
        counts[name] = 0
        while not stop.is_set():
            temporary.spool.enqueue(b"Subject: thread\\n\\n", "a@example.org", ["b@example.net"])
            counts[name] += 1
            if counts[name] % 20 == 0:
                logger.error("log of a thread")
    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for one in threads:
        one.start()
    children = []
    for number in range(int(sys.argv[1])):
        child = os.fork()
        if not child:
            status = 1
            try:
                temporary.spool.enqueue(b"Subject: child\\n\\n", "a@example.org", ["b@example.net"])
                results = picoqmail.enqueue_many(
                    [picoqmail.Mail(b"Subject: many\\n\\n", "a@x.org", ["b@y.org"])] * 10,
                    home=temporary.root, send=False,
                )
                results.raise_for_errors()
                logger.error("log of a child")
                handler.close()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
        time.sleep(0.005)
    deadline = time.monotonic() + 60
    for child in children:
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                assert status == 0, status
                break
            assert time.monotonic() < deadline, "a child waits for ever"
            time.sleep(0.01)
    stop.set()
    for one in threads:
        one.join(60)
    handler.close()
    assert not handler.lost
    subjects = [one.subject for one in temporary.mails]
    count = int(sys.argv[1])
    assert subjects.count("child") == subjects.count("log of a child") == count
    assert subjects.count("many") == 10 * count
    assert subjects.count("thread") == sum(counts.values())
    assert subjects.count("log of a thread") == sum(one // 20 for one in counts.values())
print("all is well")
"""


@pytest.mark.slow
def test_forks_among_threads() -> None:
    """Children that are forked while threads enqueue and log work, each at once."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    ran = subprocess.run(
        [sys.executable, "-c", FORKS, "40"],
        env={**os.environ, "TMPDIR": where},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (0, "all is well\n") == (ran.returncode, ran.stdout), ran.stderr
