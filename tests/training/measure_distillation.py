"""How near a student of few steps comes to what its teacher draws from the same noise in all its steps.

    python tests/training/measure_distillation.py lego-avatars-64 runs/lego-avatars-64-4-steps --guidance 2

Prints for each sampler the calls of the network an image (two a step with guidance), and the root mean square
difference of pixels in [0, 1] to the teacher's images, with the standard error over images.
"""

import argparse

import numpy as np
import torch
from diffusers import EDMEulerScheduler

from brickwork.eval.report.pictures import grid, save_picture
from brickwork.eval.sampling.pipelines import load_pipeline


def draw(pipe, count: int, **options) -> tuple[np.ndarray, float]:
    """Images `(count, H, W, 3)` in [0, 1], and calls of the network an image."""
    calls, classes = [], pipe.transformer.config.num_classes
    pipe.set_progress_bar_config(disable=True)
    handle = pipe.transformer.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    images = pipe(
        class_labels=[number % classes if classes else None for number in range(count)],
        generator=[torch.Generator().manual_seed(number) for number in range(count)],
        output_type="np",
        **options,
    ).images
    handle.remove()
    return images, sum(calls) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("student")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--picture", help="a PNG with the first eight images of each")
    args = parser.parse_args()
    teacher, student, few = (load_pipeline(name) for name in (args.teacher, args.student, args.teacher))
    # Where a sampler draws noise of its own, a picture does not follow from its start.
    if teacher.scheduler.config.get("algorithm_type", "").startswith("sde"):
        teacher.register_modules(scheduler=EDMEulerScheduler(sigma_data=teacher.scheduler.config.sigma_data))
    few.register_modules(scheduler=student.scheduler)
    steps, guided = student.config.num_inference_steps, {"guidance_scale": args.guidance}
    windows = {"windows": "fixed"} if "windows" in student.config else {}
    wanted, calls = draw(teacher, args.count, **guided, **windows)
    print(f"teacher, all its steps: {calls:.0f} calls")
    shown = [*wanted[:8]]
    for name, pipe, options in (
        (f"teacher, {steps} steps of the student's grid", few, {"num_inference_steps": steps} | guided),
        (f"teacher, {steps} of its own steps", teacher, {"num_inference_steps": steps} | guided),
        (f"student, {steps} steps", student, {}),
    ):
        images, calls = draw(pipe, args.count, **options, **windows)
        errors = np.sqrt(np.square(images - wanted).reshape(args.count, -1).mean(axis=1))
        print(f"{name}: {calls:.0f} calls, {errors.mean():.4f} ± {errors.std(ddof=1) / args.count**0.5:.4f}")
        shown += [*images[:8]]
    if args.picture:
        save_picture(grid([(255 * image).round().astype(np.uint8) for image in shown], columns=8), args.picture)


if __name__ == "__main__":
    main()
