"""The studio's addresses: one page, what it asks for as JSON, and pictures."""

import json
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from brickwork.app.compare import Comparison
from brickwork.app.drawing import Settings, Source, checked
from brickwork.app.gallery import listing, notes_of, picture_file
from brickwork.app.guard import Guard
from brickwork.app.jobs import one_line
from brickwork.app.runs import run_folder, sample_file, watch
from brickwork.app.studio import OfAdapter, Studio
from brickwork.app.sweeps import Sweep

LARGEST = 64_000  # bytes of a request
_PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def build(studio: Studio, hosts: Collection[str], key: str | None = None) -> Starlette:
    """The application of a studio.

    Args:
        studio: what it shows; it is closed with the application.
        hosts: names it may be called by.
        key: see `Guard`.
    """

    @asynccontextmanager
    async def life(app):
        yield
        await run_in_threadpool(studio.close)

    routes = [
        Route("/", lambda request: _file("studio.html")),
        Route("/page/{name}", lambda request: _file(request.path_params["name"])),
        Route("/pictures/{name}", _picture(lambda ask: picture_file(studio.output, ask("name")))),
        Route("/samples/{name}", _picture(lambda ask: _sample(studio, ask))),
        Route("/sheets/{name}", _picture(lambda ask: studio.sweeps.path(ask("name")) / "sheet.png")),
    ]
    for name, (method, answer) in _answers(studio).items():
        routes.append(Route(f"/api/{name}", _json(answer, method), methods=[method]))
    return Starlette(routes=routes, lifespan=life, middleware=[Middleware(Guard, hosts=hosts, key=key)])


def _answers(studio: Studio) -> dict[str, tuple[str, Callable[[dict], Any]]]:
    """What each address does with the values that it is given."""
    roots, jobs, sweeps = studio.roots, studio.jobs, studio.sweeps

    def stop(values: dict) -> dict:
        job = jobs.find(values.get("job"))
        job.stop()
        return job.json()

    return {
        "lists": ("GET", lambda _: {"models": roots.models(), "adapters": roots.adapters(), "runs": _runs(studio)}),
        "job": ("GET", lambda values: jobs.find(values.get("job")).json()),
        "gallery": ("GET", lambda _: {"pictures": listing(studio.output)}),
        "notes": ("GET", lambda values: notes_of(picture_file(studio.output, _text(values, "picture")))),
        "run": ("GET", lambda values: watch(run_folder(roots, _text(values, "run")))),
        "sweep/state": ("GET", lambda values: sweeps.state(_text(values, "name"))),
        "load": ("POST", lambda values: studio.start_load(checked(Source, values)).json()),
        "adapter": ("POST", lambda values: studio.start_adapter(checked(OfAdapter, values)).json()),
        "draw": ("POST", lambda values: studio.start_draw(checked(Settings, values)).json()),
        "compare": ("POST", lambda values: studio.start_compare(checked(Comparison, values)).json()),
        "stop": ("POST", stop),
        "sweep": ("POST", lambda values: studio.start_sweep(checked(Sweep, values))),
        "sweep/stop": ("POST", lambda _: sweeps.stop() or {}),
    }


def _runs(studio: Studio) -> list[str]:
    return [str(run) for run in studio.roots.runs()]


def _text(values: dict, name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value or len(value) > 1000:
        raise ValueError(f"`{name}` is missing; say which.")
    return value


def _sample(studio: Studio, ask: Callable[[str], str]) -> Path:
    return sample_file(studio.roots, run_folder(studio.roots, ask("run")), ask("name"))


def _file(name: str) -> Response:
    known = {file.name: file for file in _PAGE.iterdir() if file.suffix in _TYPES}
    if name not in known:
        return Response(status_code=404)
    return FileResponse(known[name], media_type=_TYPES[known[name].suffix])


def _picture(find: Callable[[Callable[[str], str]], Path]) -> Callable:
    def endpoint(request: Request) -> Response:
        try:
            file = find(lambda name: request.path_params.get(name) or request.query_params.get(name, ""))
        except (ValueError, OSError) as error:
            return Response(one_line(error), 404)
        return FileResponse(file, media_type="image/png") if file.is_file() else Response(status_code=404)

    return endpoint


def _json(answer: Callable[[dict], Any], method: str) -> Callable:
    async def endpoint(request: Request) -> Response:
        try:
            values = dict(request.query_params) if method == "GET" else await _body(request)
            return JSONResponse(await run_in_threadpool(answer, values))
        except (ValueError, OSError) as error:
            return JSONResponse({"error": one_line(error)}, 400)
        except Exception as error:  # such as a log that another program wrote
            traceback.print_exc(file=sys.stderr)
            return JSONResponse({"error": f"{type(error).__name__}: {one_line(error)}"}, 500)

    return endpoint


async def _body(request: Request) -> dict:
    """The JSON object of a request; what is too long is not read to its end."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise ValueError(f"The request is longer than {LARGEST} bytes.")
    try:
        values = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        raise ValueError("The request is no JSON.") from None
    if not isinstance(values, dict):
        raise ValueError("The request is no JSON object.")
    return values
