"""Threads that build and drop tables, each checked by a checksum when it is dropped. Says "@ready"; answers each line with
how many did not add up."""
import sys
import threading
import zlib

wrong = 0
ready = threading.Semaphore(0)


def work(number):
    global wrong
    tables, step = [], 0
    while True:
        table = {n: "%d-%d " % (number, n) * (n % 50) for n in range(step % 3000)}
        tables.append((table, zlib.crc32("".join(table.values()).encode())))
        if len(tables) > 20:
            table, sum_before = tables.pop(0)
            wrong += zlib.crc32("".join(table.values()).encode()) != sum_before
            ready.release()
        step += 37


for number in range(3):
    threading.Thread(target=work, args=(number,), daemon=True).start()
for _ in range(3):
    ready.acquire()
print("@ready", flush=True)
for _ in sys.stdin:
    print("@ready", wrong, flush=True)
