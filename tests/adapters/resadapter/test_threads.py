"""Threads that share a UNet: pictures of the strength that was asked for, or a clear error, never another's."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from brickwork import load_adapter
from brickwork.adapters.resadapter.functions import load_resadapter, resadapter_at, set_resadapter_scale

SCALES = (0.0, 0.25, -0.5, 1.0)


def drawing(unet, times=(900, 600, 300)):
    """A short drawing: each step's answer is the next one's input."""
    generator = torch.Generator().manual_seed(3)
    sample, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)
    with torch.no_grad():
        for time in times:
            sample = sample - 0.1 * unet(sample, time, text).sample
    return sample


@pytest.fixture
def right(unet, official):
    """The adapter on `unet`, and the picture of each strength."""
    adapter, pictures = load_adapter(unet, official), {}
    for scale in SCALES:
        adapter.scale = scale
        pictures[scale] = drawing(unet)
    return adapter, pictures


def test_each_thread_has_its_own_strength(unet, right):
    adapter, pictures = right

    def draw(number):
        scale = SCALES[number % len(SCALES)]
        with adapter.at(scale):
            return torch.equal(drawing(unet), pictures[scale])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(draw, range(40)))
    adapter.scale = 0.25
    assert torch.equal(drawing(unet), pictures[0.25]) and not unet._resadapters.blocks
    adapter.unload()
    assert "_resadapters" not in vars(unet)


def test_a_strength_set_for_all_threads_is_right_or_an_error(unet, right):
    adapter, pictures = right

    def draw(number):
        scale = SCALES[number % len(SCALES)]
        try:
            adapter.scale = scale
            return "right" if torch.equal(drawing(unet), pictures[scale]) else "wrong"
        except RuntimeError as error:
            assert "`with adapter.at(scale):`" in str(error)
            return "error"

    with ThreadPoolExecutor(4) as pool:
        assert "wrong" not in set(pool.map(draw, range(60)))
    assert draw(3) == "right"  # one thread alone goes on as ever


def test_automatic_strengths_of_two_sizes(unet, official):
    """Each size sets its own strength for all threads: right, or an error."""
    adapter = load_adapter(unet, official, scale="auto")
    generator = torch.Generator().manual_seed(0)
    samples = {side: torch.randn(1, 4, side, side, generator=generator) for side in (8, 12, 16)}
    text = torch.zeros(1, 5, 32)

    def draw(side):
        try:
            with torch.no_grad():
                return [unet(samples[side], time, text).sample for time in (900, 600)]
        except RuntimeError as error:
            assert "another thread" in str(error)

    expected = {side: draw(side) for side in samples}
    assert adapter.scale == "auto" and None not in expected.values()
    with ThreadPoolExecutor(3) as pool:
        for side, found in zip((8, 12, 16) * 10, pool.map(draw, (8, 12, 16) * 10)):
            assert found is None or all(map(torch.equal, found, expected[side]))


def in_thread(action):
    thread = threading.Thread(target=action)
    thread.start()
    thread.join()


@pytest.mark.parametrize("times, moment", [((900, 600), 1), ((900, 900, 600), 2), ((900, 600, 600), 2)])
def test_a_change_between_two_steps_is_noticed(unet, right, times, moment):
    adapter, _ = right
    drawing(unet, times[:moment])
    in_thread(lambda: set_resadapter_scale(unet, 0.25))
    with pytest.raises(RuntimeError, match="another thread has changed"):
        drawing(unet, times[moment:])


def test_a_change_within_the_last_step_is_noticed(unet, right):
    adapter, _ = right
    hook = unet.mid_block.register_forward_hook(lambda *_: in_thread(lambda: set_resadapter_scale(unet, 0.25)))
    with pytest.raises(RuntimeError, match="another thread has changed"):
        drawing(unet, (900,))
    hook.remove()


def test_a_strength_set_elsewhere_holds_for_the_next_drawing(unet, right):
    """Programs with one window set the strength in one thread and draw in another, one after the other."""
    adapter, pictures = right
    results = []
    in_thread(lambda: results.append(drawing(unet)))
    drawing(unet)
    for scale in SCALES:
        in_thread(lambda scale=scale: set_resadapter_scale(unet, scale))
        assert torch.equal(drawing(unet), pictures[scale])
    assert torch.equal(drawing(unet, (900,)), drawing(unet, (900,)))


def test_structure_may_not_change_under_a_block(unet, right, official):
    adapter, _ = right
    with adapter.at(0.5):
        in_thread(lambda: set_resadapter_scale(unet, 0.0))
        drawing(unet)
        in_thread(lambda: load_resadapter(unet, official, "second"))
        with pytest.raises(RuntimeError, match="another thread has changed"):
            drawing(unet)


def test_blocks_within_blocks(unet, official, official_b):
    one, two = load_adapter(unet, official, "one"), load_adapter(unet, official_b, "two", scale=0.5)
    set_resadapter_scale(unet, 0.25, "one")
    set_resadapter_scale(unet, -1.0, "two")
    expected = drawing(unet)
    set_resadapter_scale(unet, 0.0)
    with one.at(0.25), two.at(-1.0):
        assert torch.equal(drawing(unet), expected)
    with resadapter_at(unet, 0.25), two.at(-1.0):
        assert torch.equal(drawing(unet), expected)


def test_pipelines_that_share_a_unet(pipelines, helpers, tmp_path):
    """One UNet, a pipeline and a scheduler for each thread."""
    first = copy.deepcopy(pipelines["sd"])
    parts = first.components | {"scheduler": DDIMScheduler(clip_sample=False)}
    second = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    second.set_progress_bar_config(disable=True)
    folder = helpers.write_official(tmp_path, *helpers.random_adapter_tensors(first.unet))
    adapter, pictures = load_adapter(first, folder), {}
    for scale in (0.25, 1.0):
        adapter.scale = scale
        pictures[scale] = helpers.generate(first)

    def draw(pipe, scale):
        with adapter.at(scale):
            return torch.equal(helpers.generate(pipe), pictures[scale])

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(draw, pipe, scale) for pipe, scale in [(first, 0.25), (second, 1.0)] * 4]
        assert all(job.result() for job in jobs)


def test_what_a_block_refuses(unet, official, official_b):
    adapter = load_adapter(unet, official)
    with pytest.raises(ValueError, match="scale='auto'; allowed: a finite number"):
        adapter.at("auto")
    other = load_adapter(unet, official_b, scale="auto")
    with pytest.raises(ValueError, match="res_2 has scale='auto'"), adapter.at(0.5):
        pass
    other.unload()
    adapter.enabled = False
    with pytest.raises(ValueError, match="enable it first"):
        adapter.at(0.5)
    adapter.enabled = True
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="one strength for all threads"), adapter.at(0.5):
        drawing(compiled, (900,))
    torch._dynamo.reset()
    unet.compile(backend="eager")
    with pytest.raises(ValueError, match="a compiled UNet"), adapter.at(0.5):
        pass


def test_a_unet_with_an_adapter_can_be_sent_to_another_process(unet, right):
    adapter, pictures = right
    drawing(unet)
    assert torch.equal(drawing(pickle.loads(pickle.dumps(unet))), drawing(unet))
