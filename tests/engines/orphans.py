"""Start two workers, print their process ids, and wait to be killed. Run by test_local.py."""

import time

import psutil

from fedpeft.engines.workers import WorkerPool


def work(item):
    return item


if __name__ == "__main__":
    pool = WorkerPool(work, 2)
    list(pool.map([1, 2]))
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(60)
