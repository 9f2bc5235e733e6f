"""5 and 6: large messages and many recipients, with their memory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from measuring import Program, progress, run_alone
from ours import ENVELOPE, make_home, message

from rig.sink import Sink

if TYPE_CHECKING:
    from typing import Any

    from bench import Bench

MIB = 1 << 20


def measure(bench: Bench) -> dict[str, Any]:
    """Accept and deliver each size, then each number of recipients."""
    sizes, crowds = [], []
    with Sink(keep=False) as sink:
        for number, size in enumerate(bench.sizes):
            sizes.append({"octets": size, **_through(bench, sink.address, size, ENVELOPE)})
            progress("sizes", number + 1, len(bench.sizes))
        for number, count in enumerate(bench.crowds):
            addresses = b"".join(b"Tb%d@example.net\0" % index for index in range(count))
            envelope = b"Fa@example.org\0" + addresses + b"\0"
            crowds.append({"recipients": count, **_through(bench, sink.address, 4096, envelope)})
            progress("crowds", number + 1, len(bench.crowds))
    return {
        "title": "One message of growing size",
        "rows": sizes,
        "more": [{"title": "One message to growing numbers of recipients", "rows": crowds}],
    }


def _through(bench: Bench, relay: str, size: int, envelope: bytes) -> dict[str, Any]:
    home = make_home(bench.scratch, relay)
    mail, to = f"{bench.scratch}/big", f"{bench.scratch}/to"
    piece = message(MIB)
    with open(mail, "wb") as file:
        if size <= MIB:
            file.write(message(size))
        else:
            file.writelines(piece for _ in range(size // MIB))
    with open(to, "wb") as file:
        file.write(envelope)
    report = f"{bench.scratch}/taken"
    queue = run_alone(
        Program("queue", (bench.ours.program("queue"),), home.variables(), mail, to), report
    )
    send = run_alone(Program("send", (bench.ours.program("send"),), home.variables()), report)
    if queue.status or send.status or home.count("new"):
        raise RuntimeError(f"queue {queue.status}, send {send.status}, left {home.count('new')}")
    os.unlink(mail)
    return {
        "queue s": round(queue.wall, 3),
        "queue MiB": round(queue.rss_mib),
        "send s": round(send.wall, 3),
        "send MiB": round(send.rss_mib),
    }
