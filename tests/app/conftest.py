import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import uvicorn

from brickwork.app.command import listen
from brickwork.app.roots import Roots
from brickwork.app.server import build
from brickwork.app.studio import Studio


class Running:
    """A studio that listens at a port of its own, and what a browser would ask it."""

    def __init__(self, root: Path, key: str | None = None):
        self.root, self.output = root, root / "studio"
        self.output.mkdir(exist_ok=True)
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.studio = Studio(Roots([root]), self.output, "cpu")
        config = uvicorn.Config(
            build(self.studio, {"127.0.0.1"}, key), log_level="warning", timeout_graceful_shutdown=5
        )  # as `brickwork app` has it
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.socket.close()

    def request(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, address: str, **values: str) -> dict:
        return json.loads(self.request(f"/api/{address}?{urllib.parse.urlencode(values)}")[1])

    def post(self, address: str, **values) -> dict:
        return json.loads(
            self.request(f"/api/{address}", json.dumps(values).encode(), Content_Type="application/json")[1]
        )

    def finished(self, job: dict, seconds: float = 120) -> dict:
        """A job once it is over."""
        end = time.monotonic() + seconds
        while job["state"] in ("waiting", "working"):
            assert time.monotonic() < end, job
            time.sleep(0.05)
            job = self.get("job", job=str(job["number"]))
        return job


@pytest.fixture(scope="package")
def running(tmp_path_factory):
    """A studio over a folder with one run; tests share it, as loading takes most of the time."""
    root = tmp_path_factory.mktemp("studio")
    run = root / "runs" / "one"
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text("run: {}\n")
    (run / "starts.jsonl").write_text("{}\n")
    lines = [{"images": n, "time": 1.0, "train/loss": 1 / n, "loss_at/low": 2 / n} for n in (100, 200, 300)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"images": 4')
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(run / "samples" / "images-000000000300.png")
    (root / "empty").mkdir()
    studio = Running(root)
    yield studio
    studio.close()
