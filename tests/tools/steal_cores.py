#!/usr/bin/env python3
"""Takes every core at once for up to 1.5 s at a time, at random moments: what a machine does to its programs that is shared
with others, is suspended, or swaps. For scripts/stress-tests, and by hand beside one test.

Every core has a process of the highest right that this user may give it: real time (root), which leaves others the
twentieth that the kernel keeps for them; else, as many more as an ordinary scheduler needs to give it most of the time. All
of them know the same moments, from one seed and one clock. Ends when it is told to, when its standard input ends, or after
--seconds.

usage: tests/tools/steal_cores.py [--seed N] [--busy-ms 1500] [--pause-ms 1500] [--seconds N]
"""
import argparse
import os
import random
import signal
import sys
import time

MORE = 8  # processes a core where there is no right to real time


def raise_priority():
    """Whether this process comes before others now."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        return True
    except OSError:
        pass
    try:
        with open("/proc/self/autogroup", "w") as f:
            f.write("-10")
    except OSError:
        pass
    try:
        os.nice(-10)
        return True
    except OSError:
        return False


def steal(core, moments, begin):
    """One core, at these moments, until it is killed."""
    try:
        os.sched_setaffinity(0, {core})
    except OSError:
        pass
    raise_priority()
    for pause, busy in moments:
        begin += pause
        while (left := begin - time.monotonic()) > 0:
            time.sleep(left)
        begin += busy
        while time.monotonic() < begin:
            pass


def moments(seed, busy_s, pause_s):
    chance = random.Random(seed)
    while True:
        yield chance.uniform(0, pause_s), chance.uniform(0, busy_s)


def main():
    parser = argparse.ArgumentParser(description="Takes every core for moments.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--busy-ms", type=int, default=1500, help="the longest moment")
    parser.add_argument("--pause-ms", type=int, default=1500, help="the longest pause")
    parser.add_argument("--seconds", type=float, help="end after them")
    args = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    # In a child: the parent has to do nothing at such a moment.
    if not (probe := os.fork()):
        os._exit(0 if raise_priority() else 1)
    above = os.waitstatus_to_exitcode(os.waitpid(probe, 0)[1]) == 0
    cores = sorted(os.sched_getaffinity(0))
    print(f"steals {len(cores)} cores for up to {args.busy_ms} ms at a time, seed {args.seed}"
          + ("" if above else ", without any right to more than others"), flush=True)
    begin, children = time.monotonic() + 0.1, []
    try:
        for core in cores * (1 if above else MORE):
            pid = os.fork()
            if not pid:
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                try:
                    steal(core, moments(args.seed, args.busy_ms / 1000, args.pause_ms / 1000), begin)
                finally:
                    os._exit(1)
            children.append(pid)
        if args.seconds is not None:
            time.sleep(args.seconds)
        else:
            sys.stdin.buffer.read()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for pid in children:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
