import multiprocessing
import os
import signal
import sys

import pytest
import torch
from hypothesis import settings

# How long an example takes says how busy the machine is, nothing of what is tested.
settings.register_profile("brickwork", deadline=None)
settings.load_profile("brickwork")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests run side by side; networks this small only lose by more threads."""
    torch.set_num_threads(1)


class ForkedProcess:
    """What `Popen` does for a cell of a study, without importing anything anew."""

    def __init__(self, command, stdout, **options):
        self.process = multiprocessing.get_context("fork").Process(target=self.run, args=(command, stdout.fileno()))
        self.process.start()

    @staticmethod
    def run(command, log):
        from brickwork.eval.studies.core.child import main

        sys.stdout = sys.stderr = open(log, "a", buffering=1, closefd=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
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


@pytest.fixture
def forked_cells(monkeypatch):
    """Cells of studies in forked processes, which have everything imported already; their class."""
    monkeypatch.setattr("brickwork.eval.studies.core.processes.Popen", ForkedProcess)
    return ForkedProcess
