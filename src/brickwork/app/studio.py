"""The studio's state: pipelines and adapters that are loaded, what is being drawn, where pictures go."""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brickwork.adapters.base import load_adapter
from brickwork.app.compare import Comparison, variants
from brickwork.app.drawing import Drawing, Settings, describe, draw
from brickwork.app.gallery import keep
from brickwork.app.jobs import Job, Jobs
from brickwork.app.roots import Roots
from brickwork.app.sweeps import Sweeps
from brickwork.errors import shown
from brickwork.eval.sampling.pipelines import load_pipeline

_PIPELINES = 2  # held in memory at once


@dataclass
class Loaded:
    """A pipeline, and its adapters by the names they were asked for."""

    pipe: Any
    adapters: dict[str, Any] = field(default_factory=dict)

    def facts(self, model: str) -> dict:
        """What the page shows of it."""
        return {"model": model, **describe(self.pipe), "adapters": list(self.adapters)}


class Studio:
    """Everything that the pages ask for; pipelines are touched by its jobs alone, which run one at a time.

    Args:
        roots: what may be read.
        output: folder for pictures and sweeps.
        device: where pipelines run; `None` for the best there is.
    """

    def __init__(self, roots: Roots, output: Path, device: str | None = None):
        self.roots, self.output, self.device = roots, output, device
        self.jobs, self.sweeps = Jobs(), Sweeps(output / "sweeps")
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()

    def start_load(self, model: str) -> Job:
        """A job that loads a pipeline and says what can be set for it."""
        self.roots.model(model)
        return self.jobs.start(lambda job: self._load(model).facts(model))

    def start_adapter(self, model: str, adapter: str, unload: bool = False) -> Job:
        """A job that puts an adapter on a pipeline, or takes it off."""

        def work(job: Job) -> dict:
            loaded = self._load(model)
            if not unload:
                self._adapter(loaded, adapter)
            elif adapter not in loaded.adapters:
                raise ValueError(f"`adapter` is {shown(adapter)}, which is not loaded on {shown(model)}.")
            else:
                loaded.adapters.pop(adapter).unload()
            return loaded.facts(model)

        return self.jobs.start(work)

    def start_draw(self, settings: Settings) -> Job:
        """A job that draws pictures into the gallery."""
        self.roots.model(settings.model)

        def work(job: Job) -> dict:
            drawing = self._draw(settings, job)
            return {"pictures": self._keep(drawing, settings), **_cost(drawing)}

        return self.jobs.start(work)

    def start_compare(self, comparison: Comparison) -> Job:
        """A job that draws variants of the same settings; the result has those that are done while it goes.

        Two steps of the first come before, untimed, so that it does not pay for what is done for the first time.
        """
        planned = variants(comparison)
        self.roots.model(comparison.settings.model)

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
        loaded = self._load(settings.model)
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

    def _load(self, model: str) -> Loaded:
        path = self.roots.model(model)
        if path not in self._loaded:
            while len(self._loaded) >= _PIPELINES:
                self._loaded.popitem(last=False)
            pipe = load_pipeline(path, device=self.device, use_safetensors=True)
            pipe.set_progress_bar_config(disable=True)
            self._loaded[path] = Loaded(pipe)
        self._loaded.move_to_end(path)
        return self._loaded[path]

    def _adapter(self, loaded: Loaded, adapter: str) -> None:
        if adapter not in loaded.adapters:
            loaded.adapters[adapter] = load_adapter(loaded.pipe, self.roots.adapter(adapter))


def _cost(drawing: Drawing) -> dict:
    return {"seconds": drawing.seconds, "operations": drawing.operations, "subnets": drawing.subnets}
