"""`push_to_hub` and `from_pretrained` over HTTP, with a local stand-in of the hub's API."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CODE = """
import torch
from diffusers import DiffusionPipeline
from brickwork import BrickSchedule, EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel

stack = {"window_sizes": (4, 8), "patch_sizes": (2, 2), "num_layers": (1, 1), "hidden_sizes": 16}
model = LegoTransformer2DModel(sample_size=8, num_classes=2, num_attention_heads=2, **stack)
pipe = LegoPipeline(model, EDMHeunScheduler())
pipe.brick_schedule = BrickSchedule.fast(model)
pipe.push_to_hub("someone/bricks")
model.push_to_hub("someone/network")
loaded = DiffusionPipeline.from_pretrained("someone/bricks")
assert type(loaded) is LegoPipeline and loaded.brick_schedule == pipe.brick_schedule
for network in (loaded.transformer, LegoTransformer2DModel.from_pretrained("someone/network")):
    state = network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the API as a push and a download ask for; everything is stored as it is, without LFS."""

    repositories: dict[str, dict[str, bytes]]

    def log_message(self, *args):
        pass

    def answer(self, body: bytes = b"{}", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            self.repositories.setdefault(name, {})
            return self.answer(json.dumps({"url": f"http://{self.headers['Host']}/{name}", "id": name}).encode())
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.answer(json.dumps({"files": modes}).encode())
        if "/commit/" in self.path:
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, filter(None, body.splitlines())):
                if line["key"] == "file":
                    self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{name}/commit/{'0' * 40}"
            return self.answer(json.dumps({"commitUrl": url, "commitOid": "0" * 40, "success": True}).encode())
        self.answer()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            content = self.repositories.get(name, {}).get(rest.partition("/")[2])
            if content is None:
                return self.answer(b"{}", 404, X_Error_Code="EntryNotFound")
            return self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit="0" * 40)
        name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        files = self.repositories.get(name)
        if files is None:
            return self.answer(b"{}", 404, X_Error_Code="RepoNotFound")
        if "/tree/" in path:
            rows = [{"type": "file", "path": f, "size": len(c), "oid": "0" * 40} for f, c in files.items()]
            return self.answer(json.dumps(rows).encode())
        siblings = [{"rfilename": file} for file in files]
        self.answer(json.dumps({"id": name, "sha": "0" * 40, "siblings": siblings, "tags": []}).encode())

    do_HEAD = do_GET


@pytest.fixture
def hub():
    handler = type("Hub", (Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.repositories
    server.shutdown()
    server.server_close()


def test_what_is_pushed_is_what_loads(hub, tmp_path):
    address, repositories = hub
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_x", "NO_PROXY": "*"}
    environment = {k: v for k, v in environment.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    result = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "transformer/diffusion_pytorch_model.safetensors" in repositories["someone/bricks"]
    assert "config.json" in repositories["someone/network"]
    assert "LegoPipeline.from_pretrained" in repositories["someone/bricks"]["README.md"].decode()
