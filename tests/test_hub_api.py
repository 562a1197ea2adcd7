"""`push_to_hub` and `from_pretrained` over HTTP, with a local stand-in of the hub's API."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
    asked: set[tuple[str, str]]  # paths, and who asks

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
        self.asked.add((path, self.headers.get("Authorization", "")))
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
    handler = type("Hub", (Hub,), {"repositories": {}, "asked": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def run(code: str, address: str, home: Path) -> None:
    """Python with that hub, in a process of its own: its address is read when the hub's client is imported."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": "hf_x", "NO_PROXY": "*"}
    environment = {k: v for k, v in environment.items() if k not in ("HF_HUB_OFFLINE", "HF_HUB_CACHE")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=home, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_what_is_pushed_is_what_loads(hub, tmp_path):
    run(CODE, hub[0], tmp_path)
    repositories = hub[1].repositories
    assert "transformer/diffusion_pytorch_model.safetensors" in repositories["someone/bricks"]
    assert "config.json" in repositories["someone/network"]
    assert "LegoPipeline.from_pretrained" in repositories["someone/bricks"]["README.md"].decode()


COMMANDS = """
import json
import torch
from pathlib import Path
from diffusers import AutoencoderKL
from huggingface_hub import HfApi
from PIL import Image
from brickwork import EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel, cli
from brickwork.eval.commands import benchmark
from brickwork.eval.sampling.pipelines import load_class_pipeline

stack = {"window_sizes": (4, 8), "patch_sizes": (2, 2), "num_layers": (1, 1), "hidden_sizes": 16}
model = LegoTransformer2DModel(sample_size=8, num_classes=2, num_attention_heads=2, **stack)
model.register_to_config(id2label={0: "red", 1: "blue"})
LegoPipeline(model, EDMHeunScheduler()).push_to_hub("someone/bricks", variant="fp16")
model.push_to_hub("someone/network", variant="fp16")
AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8).push_to_hub("someone/vae", variant="fp16")
noted = json.dumps({"type": "edm", "options": {}}).encode()
HfApi().upload_file(path_or_fileobj=noted, path_in_repo="objective.json", repo_id="someone/bricks")
for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
    for number in range(4):
        Path("pictures", name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(f"pictures/{name}/{number}.png")
told = ["--variant", "fp16", "--token", "hf_mine"]


def command(*words):
    assert cli.main([*words, *told, "--revision", f"of-{words[0]}"]) == 0, words


measured = []
benchmark.run_suite = lambda name, settings: measured.append(settings) or {"title": name, "tables": {}}
benchmark.write_result = lambda *arguments: None
command("info", "someone/bricks")
command("info", "someone/network")
command("generate", "someone/bricks", "-n", "1", "--steps", "1", "-o", "drawn")
command("benchmark", "schedules", "--weights", "someone/bricks")
command("distill", "someone/bricks", "--steps", "2", "--data", "pictures", "--dry-run", "run.batch_size=4")
command("data", "cache", "--vae", "someone/vae", "-o", "latents", "data.source=pictures", "data.size=8")
again = load_class_pipeline(measured[0].weights).transformer.state_dict()
assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())
"""


def test_commands_hand_on_what_they_are_told_of_the_hub(hub, tmp_path):
    """Revision, variant and token reach the hub with every request, by every way in which a command loads."""
    run(COMMANDS, hub[0], tmp_path)
    loaded = dict.fromkeys(("info", "generate", "benchmark", "distill"), "someone/bricks") | {"data": "someone/vae"}
    for command, name in loaded.items():
        places = {f"/api/models/{name}/revision/of-{command}", f"/{name}/resolve/of-{command}"}
        asked = [
            who for path, who in hub[1].asked if path in places or path.startswith(tuple(f"{p}/" for p in places))
        ]
        assert asked and set(asked) == {"Bearer hf_mine"}, command
    assert any(path.endswith("/transformer/diffusion_pytorch_model.fp16.safetensors") for path, _ in hub[1].asked)


STUDIO = """
import json
import time
from pathlib import Path
from PIL import Image
from brickwork import EDMHeunScheduler, LegoPipeline, LegoTransformer2DModel
from brickwork.app.drawing import Settings
from brickwork.app.roots import Roots
from brickwork.app.studio import Studio
from brickwork.app.sweeps import Sweep

stack = {"window_sizes": (4, 8), "patch_sizes": (2, 2), "num_layers": (1, 1), "hidden_sizes": 16}
model = LegoTransformer2DModel(sample_size=8, num_classes=2, num_attention_heads=2, **stack)
LegoPipeline(model, EDMHeunScheduler()).push_to_hub("someone/bricks", variant="fp16")
output = Path("studio")
output.mkdir()
studio = Studio(Roots(["."]), output, "cpu", "of-command", "fp16", token="hf_mine")


def drawn(**given):
    job = studio.start_draw(Settings(model="someone/bricks", steps=1, label="1", **given))
    while job.state in ("waiting", "working"):
        time.sleep(0.05)
    return job


done = drawn()
assert done.state == "done", done.message
kept = done.result["pictures"][0]
assert (kept["settings"]["revision"], kept["settings"]["variant"]) == ("of-command", "fp16")
assert drawn(revision="of-page").state == "done"
assert drawn(variant="bf16").state == "failed"
sweep = Sweep(name="one", model="someone/bricks", revision="of-sweep", sizes=[8], steps=1)
studio.start_sweep(sweep)
studio.sweeps._process.wait(120)
assert studio.sweeps.state("one")["sheet"], studio.sweeps.state("one")["log"]
assert b"hf_mine" not in b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
assert json.loads(Image.open(output / kept["picture"]).text["brickwork"])["revision"] == "of-command"
studio.close()
"""


def test_the_studio_asks_the_hub_for_what_it_is_told_and_keeps_the_token_to_itself(hub, tmp_path):
    pytest.importorskip("starlette")
    run(STUDIO, hub[0], tmp_path)
    for revision in ("of-command", "of-page", "of-sweep"):
        asked = {who for path, who in hub[1].asked if f"/{revision}" in path}
        assert asked == {"Bearer hf_mine"}, revision
