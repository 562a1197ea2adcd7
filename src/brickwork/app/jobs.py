"""Work that takes a while, one piece after the other in one thread, watched and stopped from elsewhere."""

import base64
import io
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from brickwork.app.drawing import Stopped

_KEPT, _WAITING = 50, 8


class Job:
    """One piece of work.

    Attributes:
        state: waiting, working, done, failed or stopped.
        result: JSON values, once done; some of them before where the work puts them there.
    """

    def __init__(self, number: int):
        self.number, self.state, self.message = number, "waiting", ""
        self.step = self.steps = 0
        self.preview, self.result = "", {}
        self._stop = threading.Event()

    def stop(self) -> None:
        """Ask it to end at its next step."""
        self._stop.set()

    def watch(self, step: int, steps: int, preview: Image.Image | None = None) -> None:
        """Note how far it is; raises `Stopped` where it was asked to stop."""
        self.step, self.steps = step, steps
        if preview is not None:
            stream = io.BytesIO()
            preview.save(stream, "PNG")
            self.preview = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
        if self._stop.is_set():
            raise Stopped

    def run(self, work: Callable[["Job"], dict]) -> None:
        """Do the work; whatever it raises becomes a message of one line."""
        try:
            self.watch(0, 0)
            self.state = "working"
            self.result = work(self)
            self.state = "done"
        except Stopped:
            self.state, self.message = "stopped", "Stopped."
        except (ValueError, OSError) as error:
            self.message, self.state = one_line(error), "failed"
        except Exception as error:  # the studio goes on whatever a pipeline does
            traceback.print_exc(file=sys.stderr)
            self.message = f"{type(error).__name__}: {one_line(error)} (the terminal has the rest)"
            self.state = "failed"
        finally:
            self.preview = ""

    def json(self) -> dict[str, Any]:
        """What the page shows of it."""
        names = ("number", "state", "message", "step", "steps", "preview", "result")
        return {name: getattr(self, name) for name in names}


class Jobs:
    """The latest jobs, done one at a time."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="studio")
        self._jobs: dict[int, Job] = {}
        self._lock, self._count = threading.Lock(), 0

    def start(self, work: Callable[[Job], dict]) -> Job:
        """Put work at the end of the line.

        Raises:
            ValueError: where too much waits already.
        """
        with self._lock:
            if sum(job.state == "waiting" for job in self._jobs.values()) >= _WAITING:
                raise ValueError(f"{_WAITING} pieces of work wait already; stop one, or wait.")
            self._count += 1
            job = self._jobs[self._count] = Job(self._count)
            for number in list(self._jobs)[:-_KEPT]:
                del self._jobs[number]
        self._worker.submit(job.run, work)
        return job

    def find(self, number: Any) -> Job:
        """A job by its number; a `ValueError` for one that is not known."""
        job = self._jobs.get(int(number) if str(number).isdecimal() and len(str(number)) < 10 else -1)
        if job is None:
            raise ValueError(f"`job` is {str(number)[:20]!r}, which this studio does not know; start it again.")
        return job

    def close(self) -> None:
        """Stop all of them."""
        for job in list(self._jobs.values()):
            job.stop()
        self._worker.shutdown(wait=True, cancel_futures=True)


def one_line(error: BaseException) -> str:
    """An error's words on one line."""
    return " ".join(str(error).split())[:600] or type(error).__name__
