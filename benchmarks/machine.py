"""The machine of the measurement: hardware, kernel, file system, versions."""

from __future__ import annotations

import glob
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from typing import TYPE_CHECKING

from rig.private_root import cache

if TYPE_CHECKING:
    from disk import Disk

FSYNCS = 50


def facts(disk: Disk) -> dict[str, object]:
    """Return facts about this machine, with the cost of an fsync on the disk that is measured."""
    return {
        "when": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "processor": _first("/proc/cpuinfo", "model name"),
        "processors": len(os.sched_getaffinity(0)),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "system": _first("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "disk": disk.facts,
        "load before": os.getloadavg()[0],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "fsync of a new 4 KiB file, ms": round(_fsync_seconds(disk.path) * 1000, 3),
    }


def version(package: str) -> str:
    """Return the version of a distribution or of a Debian package, unpacked or installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        fetched = sorted(glob.glob(f"{cache()}/{package}_*.deb"))
        if fetched:
            return os.path.basename(fetched[-1]).split("_")[1].replace("%3a", ":")
        return _said(["dpkg-query", "-W", "-f", "${Version}", package])


def _first(path: str, key: str, separator: str = ":") -> str:
    with open(path, encoding="utf-8") as file:
        for line in file:
            name, _, value = line.partition(separator)
            if name.strip() == key:
                return value.strip()
    return "unknown"


def _said(command: list[str]) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return ran.stdout.strip() or "unknown"


def _fsync_seconds(directory: str) -> float:
    taken = []
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        for number in range(FSYNCS):
            descriptor = os.open(f"{scratch}/{number}", os.O_WRONLY | os.O_CREAT)
            os.write(descriptor, b"x" * 4096)
            before = time.perf_counter()
            os.fsync(descriptor)
            taken.append(time.perf_counter() - before)
            os.close(descriptor)
    return statistics.median(taken)
