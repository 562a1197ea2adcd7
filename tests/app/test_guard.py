"""Who may ask the studio, and how it starts."""

import asyncio
import http.client
import signal
import socket
import subprocess
import sys
from functools import partial

import pytest

from brickwork import cli
from brickwork.app import command
from brickwork.app.guard import Guard

JSON = {"Content_Type": "application/json"}


def test_pages_elsewhere_get_nothing(running):
    assert running.request("/", Host="evil.example")[0] == 403  # DNS rebinding
    assert running.request("/api/lists", Host="evil.example")[0] == 403
    assert running.request("/api/draw", b"{}", Content_Type="text/plain")[0] == 403  # a form of another page
    assert running.request("/api/draw", b"{}", **JSON, Origin="http://evil.example")[0] == 403
    assert running.request("/api/draw", b"{}", **JSON, Origin=running.url)[0] == 400  # ours, but without a model
    assert running.request("/api/draw")[0] == 405


@pytest.mark.parametrize(("chunk", "chunks", "taken"), [(b"{}", 3, 3), (b"a" * 2**15, 9, 2)])
def test_what_is_refused_is_read_before_it_is_answered(chunk, chunks, taken):
    log = []
    messages = [{"type": "http.request", "body": chunk, "more_body": number < chunks - 1} for number in range(chunks)]

    async def receive():
        log.append("read")
        return messages.pop(0)

    async def send(message):
        log.append(message.get("status", "body"))

    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": [(b"host", b"evil.example")]}
    asyncio.run(Guard(None, ["localhost"])(scope, receive, send))
    assert log == ["read"] * taken + [403, "body"]


def test_requests_are_bounded(running):
    assert b"longer" in running.request("/api/draw", b'"' + b"a" * 100_000 + b'"', **JSON)[1]
    assert b"no JSON" in running.request("/api/draw", b"[" * 5_000, **JSON)[1]
    assert b"no JSON object" in running.request("/api/draw", b"[]", **JSON)[1]


def test_the_page_asks_nobody_else(running):
    connection = http.client.HTTPConnection("127.0.0.1", int(running.url.rpartition(":")[2]), timeout=30)
    connection.request("GET", "/")
    response = connection.getresponse()
    assert "default-src 'self'" in response.headers["content-security-policy"]
    text = response.read().decode()
    for name in ("studio.js", "common.js", "watching.js", "studio.css", "icon.svg"):
        status, content = running.request(f"/page/{name}")
        assert status == 200
        text += content.decode()
    assert "https://" not in text and text.count("http://") == text.count("http://www.w3.org/2000/svg")


def test_other_machines_need_the_key(tmp_path, running):
    studio = type(running)(tmp_path, key="secret")
    try:
        assert studio.request("/")[0] == 403
        assert studio.request("/?key=wrong")[0] == 403
        assert studio.request("/?key=secret")[0] == 200
        assert studio.request("/api/lists", Cookie="brickwork-key=secret")[0] == 200
        assert studio.request("/api/lists", Cookie="brickwork-key=no")[0] == 403
    finally:
        studio.close()


def test_addresses():
    assert command.is_this_machine("127.0.0.1") and command.is_this_machine("::1")
    assert not command.is_this_machine("0.0.0.0") and not command.is_this_machine("192.168.0.2")
    assert command.address("::1", 80, None) == "http://[::1]:80/"
    assert command.address("127.0.0.1", 80, "k") == "http://127.0.0.1:80/?key=k"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "give 0 to 65535"),
        (["--root", "nowhere"], "`--root` is 'nowhere'"),
        (["--host", "no.such.invalid"], "`--host` is"),
        (["--output", __file__], "name a folder"),
    ],
)
def test_wrong_options_are_one_line(words, message, capsys):
    assert cli.main(["app", "--no-browser", *words]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


def test_a_taken_port_is_one_line(capsys, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert cli.main(["app", "--no-browser", "--port", port, "-o", str(tmp_path / "o")]) == 2
    told = capsys.readouterr().err
    assert f"{port}, which is taken" in told and "--port 0" in told and told.count("\n") == 1


def test_without_the_extra_help_works_and_the_command_names_it(tmp_path):
    code = """
import sys
sys.modules["starlette"] = sys.modules["uvicorn"] = None
from brickwork import cli
try:
    cli.main(["app", "--help"])
except SystemExit as end:
    assert end.code == 0
sys.exit(cli.main(["app", "--no-browser"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "--port" in done.stdout and done.returncode == 2
    assert done.stderr == "error: The studio needs starlette; pip install 'brickwork[app]'.\n"


def test_no_browser_is_told_and_the_studio_runs(tmp_path):
    words = ["-u", "-m", "brickwork", "app", "--port", "0", "-o", str(tmp_path / "out"), "--root", str(tmp_path)]
    environment = {"PATH": "/nowhere", "HOME": str(tmp_path)}
    # Jobs in the background of a shell ignore Ctrl-C, and so would what they start.
    heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=heeding
    )
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("The studio is at http://127.0.0.1:") and "open the address yourself" in second
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
