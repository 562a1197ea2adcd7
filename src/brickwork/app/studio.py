"""The studio's state: pipelines and adapters that are loaded, what is being drawn, where pictures go."""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from brickwork.adapters.base import load_adapter
from brickwork.adapters.hub import local_adapter
from brickwork.app.compare import Comparison, variants
from brickwork.app.drawing import Drawing, Name, Settings, Source, describe, draw
from brickwork.app.gallery import keep
from brickwork.app.jobs import Job, Jobs
from brickwork.app.roots import Roots
from brickwork.app.sweeps import Sweep, Sweeps
from brickwork.errors import shown
from brickwork.eval.sampling.pipelines import load_pipeline

_PIPELINES = 2  # held in memory at once
Asked = TypeVar("Asked", bound=Source)


class OfAdapter(Source):
    """A pipeline, and an adapter that goes on it or comes off."""

    adapter: Name
    unload: bool = False


@dataclass
class Loaded:
    """A pipeline, and its adapters by the names they were asked for."""

    pipe: Any
    adapters: dict[str, Any] = field(default_factory=dict)

    def facts(self, source: Source) -> dict:
        """What the page shows of it."""
        asked = {name: getattr(source, name) for name in Source.model_fields}
        return {**asked, **describe(self.pipe), "adapters": list(self.adapters)}


class Studio:
    """Everything that the pages ask for; pipelines are touched by its jobs alone, which run one at a time.

    Args:
        roots: what may be read.
        output: folder for pictures and sweeps.
        device: where pipelines run; `None` for the best there is.
        revision, variant: of models on the hub that are asked for without.
        token: of the hub; it goes nowhere else.
    """

    def __init__(
        self,
        roots: Roots,
        output: Path,
        device: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        token: str | None = None,
    ):
        self.roots, self.output, self.device = roots, output, device
        self.jobs, self.sweeps = Jobs(), Sweeps(output / "sweeps", token)
        self._of_hub = {"revision": revision, "variant": variant}
        self._token = {} if token is None else {"token": token}
        self._loaded: OrderedDict[tuple, Loaded] = OrderedDict()

    def start_load(self, source: Source) -> Job:
        """A job that loads a pipeline and says what can be set for it."""
        source = self._complete(source)
        return self.jobs.start(lambda job: self._load(source).facts(source))

    def start_adapter(self, asked: OfAdapter) -> Job:
        """A job that puts an adapter on a pipeline, or takes it off."""
        asked = self._complete(asked)

        def work(job: Job) -> dict:
            loaded = self._load(asked)
            if not asked.unload:
                self._adapter(loaded, asked.adapter)
            elif asked.adapter not in loaded.adapters:
                raise ValueError(f"`adapter` is {shown(asked.adapter)}, which is not loaded on {shown(asked.model)}.")
            else:
                loaded.adapters.pop(asked.adapter).unload()
            return loaded.facts(asked)

        return self.jobs.start(work)

    def start_sweep(self, asked: Sweep) -> dict:
        """A sweep in a process of its own, and what it has said so far."""
        adapter = self.roots.adapter(asked.adapter) if asked.adapter else None
        asked = self._complete(asked)
        return self.sweeps.start(asked, self.roots.model(asked.model), adapter, self.device)

    def start_draw(self, settings: Settings) -> Job:
        """A job that draws pictures into the gallery."""
        settings = self._complete(settings)

        def work(job: Job) -> dict:
            drawing = self._draw(settings, job)
            return {"pictures": self._keep(drawing, settings), **_cost(drawing)}

        return self.jobs.start(work)

    def start_compare(self, comparison: Comparison) -> Job:
        """A job that draws variants of the same settings; the result has those that are done while it goes.

        Two steps of the first come before, untimed, so that it does not pay for what is done for the first time.
        """
        settings = self._complete(comparison.settings)
        planned = variants(comparison.model_copy(update={"settings": settings}))

        def work(job: Job) -> dict:
            rows: list[dict] = []
            first = planned[0][1]
            self._draw(first.model_copy(update={"steps": min(2, first.steps or 2), "count": 1}), job)
            for caption, settings in planned:
                drawing = self._draw(settings, job)
                rows.append({"caption": caption, "pictures": self._keep(drawing, settings), **_cost(drawing)})
                job.result = {"rows": list(rows)}
            return job.result

        return self.jobs.start(work)

    def close(self) -> None:
        """Stop what is going on."""
        self.sweeps.close()
        self.jobs.close()

    def _draw(self, settings: Settings, job: Job) -> Drawing:
        loaded = self._load(settings)
        for adapter in settings.adapters:
            self._adapter(loaded, adapter)
        return draw(loaded.pipe, settings, loaded.adapters, job.watch)

    def _keep(self, drawing: Drawing, settings: Settings) -> list[dict]:
        count = len(drawing.pictures)
        kept = []
        for index, picture in enumerate(drawing.pictures):
            own = settings.model_copy(update={"seed": settings.seed + index, "count": 1})
            name = keep(self.output, picture, own, drawing.seconds / count, drawing.operations // count)
            kept.append({"picture": name, "settings": own.model_dump()})
        return kept

    def _complete(self, asked: Asked) -> Asked:
        """With the revision and the variant that are really taken, so that pictures note them.

        Raises:
            ValueError: where no such pipeline may be read, and for a revision of what is not on the hub.
        """
        if self.roots.on_hub(self.roots.model(asked.model)):
            wanted = {name: getattr(asked, name) or value for name, value in self._of_hub.items()}
            return asked.model_copy(update=wanted)
        if asked.revision:
            raise ValueError(
                f"`revision` is {shown(asked.revision)}, but {shown(asked.model)} is on this machine, not on the hub; "
                "leave it empty."
            )
        return asked

    def _load(self, source: Source) -> Loaded:
        path = self.roots.model(source.model)
        options = {name: value for name in self._of_hub if (value := getattr(source, name))}
        key = (path, *options.items())
        if key not in self._loaded:
            while len(self._loaded) >= _PIPELINES:
                self._loaded.popitem(last=False)
            options |= self._token if self.roots.on_hub(path) else {}
            pipe = load_pipeline(path, device=self.device, use_safetensors=True, **options)
            pipe.set_progress_bar_config(disable=True)
            self._loaded[key] = Loaded(pipe)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _adapter(self, loaded: Loaded, adapter: str) -> None:
        if adapter not in loaded.adapters:
            found = local_adapter(self.roots.adapter(adapter), "adapter", **self._token)
            loaded.adapters[adapter] = load_adapter(loaded.pipe, found)


def _cost(drawing: Drawing) -> dict:
    return {"seconds": drawing.seconds, "operations": drawing.operations, "subnets": drawing.subnets}
