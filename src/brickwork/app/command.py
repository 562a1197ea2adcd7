"""`brickwork app`: the studio in a browser."""

import argparse
import errno
import importlib
import ipaddress
import secrets
import socket
from pathlib import Path

from brickwork import options

EXTRA = ("starlette", "uvicorn")


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "A studio in the browser: draw with any pipeline, compare schedules and adapters side by side, watch training "
        "runs, sweep, and look through what was drawn. It answers this machine alone, sends nothing anywhere (but "
        "fetches models of the hub that you name), takes no uploads, and reads only the folders it is given. Needs "
        "`pip install 'brickwork[app]'`."
    )
    parser.epilog = "examples:\n  brickwork app\n  brickwork app --root runs models --port 8000 --no-browser"
    parser.add_argument(
        "--root", type=Path, nargs="+", default=[Path(".")], metavar="FOLDER",
        help="folders with pipelines, adapters and runs; nothing else is read (default: the current one)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("studio"), help="folder for pictures and sweeps (default: studio)"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 for any that is free (default: 7860)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; with any but this machine's own, visitors need the key in the address that is "
        "shown (default: 127.0.0.1)",
    )
    parser.add_argument("--no-browser", action="store_true", help="show the address, open nothing")
    options.add_common(parser, "--device")
    options.add_hub(parser)
    parser.set_defaults(run=run, check=check, registers=False)


def check(args: argparse.Namespace) -> None:
    """What can be told before anything is imported."""
    if not 0 <= args.port < 65536:
        raise ValueError(f"`--port` is {args.port}; give 0 to 65535.")
    for folder in args.root:
        if not folder.is_dir():
            raise ValueError(f"`--root` is {str(folder)!r}, which is no folder; name one that is there.")
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"`--output` is {str(args.output)!r}, which is a file; name a folder.")
    for name in EXTRA:
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f"The studio needs {name}; pip install 'brickwork[app]'.") from None


def run(args: argparse.Namespace) -> int:
    listening = listen(args.host, args.port)  # a port that is taken is said before anything large is imported
    import uvicorn

    import brickwork
    from brickwork.app.roots import Roots
    from brickwork.app.server import build
    from brickwork.app.studio import Studio

    brickwork.register()
    with listening:
        args.output.mkdir(parents=True, exist_ok=True)
        studio = Studio(Roots([*args.root, args.output]), args.output.resolve(), args.device, **options.of_hub(args))
        here = is_this_machine(args.host)
        key = None if here else secrets.token_urlsafe(16)
        hosts = {args.host, "127.0.0.1", "localhost", "::1"} if here else {"*"}
        url = address(args.host, listening.getsockname()[1], key)
        print(f"The studio is at {url} (Ctrl+C ends it); pictures go to {args.output}.", flush=True)
        if not args.no_browser and not open_browser(url):
            print("No browser could be opened; open the address yourself.", flush=True)
        config = uvicorn.Config(build(studio, hosts, key), log_level="warning", timeout_graceful_shutdown=5)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ValueError: for a port that is taken, and an address that this machine does not have.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise ValueError(f"`--host` is {host!r}, which is no address; leave it out for this machine alone.") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise ValueError(
                f"`--port` is {port}, which is taken; give another, or --port 0 for any that is free."
            ) from None
        raise ValueError(f"Nothing can listen at {host} port {port}: {error.strerror}; give others.") from None
    return listening


def is_this_machine(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def address(host: str, port: int, key: str | None) -> str:
    """What to open."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?key={key}" if key else "")


def open_browser(url: str) -> bool:
    """Whether a browser was there to open."""
    import webbrowser

    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False
