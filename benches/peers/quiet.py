"""Whether anything else keeps the machine busy: threads that wait for each other in a spin, as
llama.cpp's and CTranslate2's do, lose many times more to that than a share of the time."""

import sys
import time

# The share of all cores that others may use.
LIMIT = 0.05
SAMPLE_SECONDS = 1


def busy():
    """The share of all cores' time that was used, or taken by the hypervisor, over a second."""

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
    """Waits, some seconds at most, until the machine is quiet; says so if it never is, and gives how busy it was."""
    deadline = time.monotonic() + patience
    while (share := busy()) > LIMIT and time.monotonic() < deadline:
        pass
    if share > LIMIT:
        print(f"others use {100 * share:.0f} % of this machine: the figures mean little", file=sys.stderr)
    return share
