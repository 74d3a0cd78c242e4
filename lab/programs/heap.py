"""Brings a Python heap into a state, says so in one line of JSON, and goes on until its input ends."""
import gc
import sys
import time

STATE, SIZE = sys.argv[1], int(sys.argv[2]) << 20


def ready(**figures):
    print("{%s}" % ",".join('"%s":%d' % figure for figure in figures.items()), flush=True)


def rest():
    sys.stdin.readline()


def busy(seconds):
    """Works on little memory, a third of the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100000))
        time.sleep(0.005)


def bytearrays():
    """A list of bytearrays, dropped but for the last."""
    kept = [bytearray(1000) for _ in range(SIZE // 1000)]
    del kept[:-1]
    gc.collect()
    ready()
    rest()


def emptied():
    """A dict that keeps the table of its peak for ten entries; the program works on."""
    kept = {n: None for n in range(SIZE // 40)}
    while len(kept) > 10:
        kept.popitem()
    gc.collect()
    ready(table=sys.getsizeof(kept))
    busy(90)
    rest()


def work(leaks):
    """A list without bound, if it leaks, beside a cache that is full by then; or a cache that fills while watched."""
    leaked, cache = [], {}
    for step in range(2000):
        for n in range(250):
            cache[(step * 250 + n) % 40000] = ["%d" % step, "x" * 200 + str(n)]
            if leaks:
                leaked.append(["%d" % step, "y" * 300 + str(n)])
        if step == (160 if leaks else 20):
            ready()
        time.sleep(0.02)
    rest()


{
    "bytearrays": bytearrays,
    "emptied": emptied,
    "leak": lambda: work(True),
    "plateau": lambda: work(False),
}[STATE]()
