"""Processes that tests fork, with everything imported already; those that hang end themselves."""

import multiprocessing
import os
import signal
import sys
import threading

from tqdm import tqdm

LONGEST = 300  # seconds of a forked process
# tqdm's own lock is shared by all forks, and one that is killed while it draws a bar would keep it for good.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0  # a thread that holds the lock while another forks


class ForkedCell:
    """What `Popen` does for a cell of a study."""

    def __init__(self, command, stdout, **options):
        self.process = multiprocessing.get_context("fork").Process(target=self.run, args=(command, stdout.fileno()))
        self.process.start()

    @staticmethod
    def run(command, log):
        from brickwork.eval.studies.core.child import main

        sys.stdout = sys.stderr = open(log, "a", buffering=1, closefd=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(LONGEST)
        os._exit(main(command[3:]))

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def wait(self):
        self.process.join()
