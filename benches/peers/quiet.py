"""Detects other load on the machine. Threads that spin while they wait for each other, as in llama.cpp and
CTranslate2, lose many times more to it than its share of the time."""

import sys
import time

# Permitted share of all cores used by other processes.
LIMIT = 0.05
SAMPLE_SECONDS = 1


def busy():
    """Returns the share of all cores' time that was used, or taken by the hypervisor, over a second."""

    def times():
        with open("/proc/stat") as stat:
            fields = [int(field) for field in stat.readline().split()[1:9]]
        user, nice, system, idle, iowait, irq, softirq, steal = fields
        return user + nice + system + irq + softirq + steal, sum(fields)

    used, total = times()
    time.sleep(SAMPLE_SECONDS)
    used_later, total_later = times()
    return (used_later - used) / max(1, total_later - total)


def wait(patience):
    """Waits at most `patience` seconds until the machine is idle, warns if it is not, and returns the load."""
    deadline = time.monotonic() + patience
    while (share := busy()) > LIMIT and time.monotonic() < deadline:
        pass
    if share > LIMIT:
        print(f"other processes use {100 * share:.0f} % of this machine; the figures are unreliable", file=sys.stderr)
    return share
