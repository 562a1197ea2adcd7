"""Write the averaged weights of a run's newest checkpoint as a pipeline folder with a model card: data and licences,
images and hours of training, held-out loss, samples from fixed seeds beside their nearest training images. The run may
still be going.

example:
  brickwork publish runs/lego-avatars-64 pipelines/pretrained/lego-avatars-64 --attribution data/avatars/README.md
"""

import argparse
import re
from pathlib import Path

from brickwork import options
from brickwork.errors import explained
from brickwork.files import check_folder, filled, new_folder, write_file

MAKER, CARD = "brickwork publish", Path(__file__).with_name("model_card.md.jinja")
CARD_SAMPLES = 64
STEPS = 18
SAME = 0.02  # of latents of variance one: what rounding to half precision changes
SHOWN_NEIGHBOURS = 12


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, help="folder of a run of training/train_backbone.py")
    options.add_target(parser, "output", "folder to write")
    parser.add_argument("--data", help="where the run's data lie now (default: data.source of its configuration)")
    parser.add_argument(
        "--vae", metavar="FOLDER", help="draw with this autoencoder, whose latents are those of the run's (see "
        "avatars_decoder.yaml)",
    )  # fmt: skip
    parser.add_argument("--attribution", type=Path, help="licences and sources of the data, in Markdown, for the card")
    parser.add_argument("--license", help="licence of the weights as the hub names it, such as cc-by-4.0")
    parser.add_argument("--overwrite", action="store_true", help="replace what this command wrote; other files stay")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    output = options.target(args, "output")
    publish(args.run_folder, output, args.data, args.attribution, args.license, args.overwrite, args.vae)
    print(f"wrote {output}")
    return 0


def publish(
    run_folder: Path,
    output: Path,
    data_source: str | None = None,
    attribution: Path | None = None,
    license: str | None = None,
    overwrite: bool = False,
    vae: str | None = None,
) -> dict:
    """Write a pipeline folder with `README.md`, `samples.png` and `neighbours.png`.

    Returns:
        The card's figures: images, hours, held-out loss, memorisation.

    Raises:
        ValueError: for a folder without a run or checkpoint, an output that exists, or a `vae` of other latents.
    """
    from brickwork.eval.held_out.paired_loss import paired_loss
    from brickwork.pipelines.objective_file import save_objective
    from brickwork.training.config.config import load_config
    from brickwork.training.data.images import images_of
    from brickwork.training.engine.checkpoints import CheckpointFolder, load_tensors, trained_tensors
    from brickwork.training.tasks.backbone import build_held_out, build_images, trained_on
    from brickwork.training.tasks.backbones import build_model, build_objective, pipeline_of

    if not (run_folder / "config.yaml").is_file():
        raise ValueError(f"`run_folder` is {str(run_folder)!r}, which holds no run (no config.yaml).")
    check_folder(output, MAKER, overwrite=overwrite)
    licences = attribution.read_text(encoding="utf-8") if attribution else None
    with explained(f"`run_folder` is {str(run_folder)!r}, and only runs of train_backbone.py can be published"):
        config = load_config(run_folder / "config.yaml", [f"data.source={data_source}"] if data_source else None)
    found = CheckpointFolder(run_folder / "checkpoints").newest()
    if found is None:
        raise ValueError(f"`run_folder` is {str(run_folder)!r}, which holds no checkpoint yet.")
    tensors, state = found
    images = build_images(config.data)
    train_rows, held_out_rows = images.split(config.data.held_out)
    model = build_model(config.model, config.objective, trained_on(images, config.data), config.run.seed)
    load_tensors(trained_tensors(model), tensors["ema"])
    objective = build_objective(config.objective)
    pipeline = pipeline_of(model.eval(), objective, vae_of(images, vae))
    pairs = build_held_out(images, held_out_rows)
    figures = {
        "images": state["images"],
        "train_images": len(train_rows),
        "hours": training_hours(run_folder),
        "parameters": sum(p.numel() for p in model.parameters()),
        "classes": images.class_names,
        "held_out": None if pairs is None else paired_loss(model, pairs, objective),
    }
    with new_folder(output, MAKER, overwrite=overwrite) as folder:
        pipeline.save_pretrained(folder)
        save_objective(folder, config.objective.type, config.objective.options)
        figures["memory"] = _draw(pipeline, images_of(config.data), train_rows, held_out_rows, folder)
        card = model_card(output.name, config, figures, _sampler_of(pipeline), licences, license)
        write_file(folder / "README.md", card)
    return figures


def vae_of(images, other: str | None):
    """The autoencoder of a run's latents, if it has any, or another one of the same latents.

    Raises:
        ValueError: where the latents of a picture differ, or the run has none.
    """
    import torch

    from brickwork.eval.sampling.pipelines import load_vae
    from brickwork.pipelines import latents
    from brickwork.training.data.images import to_unit_range

    own = getattr(images, "vae", None)
    if other is None:
        return own
    if own is None:
        raise ValueError(f"`--vae` is {other!r}, and the run is of pixels; leave it out.")
    vae = load_vae(other)
    picture = torch.from_numpy(to_unit_range(images.images.picture(0)))[None]
    wanted, found = (latents.encode(one, picture) for one in (own, vae))
    if found.shape != wanted.shape or not torch.allclose(found, wanted, atol=SAME):
        raise ValueError(
            f"`--vae` is {other!r}, whose latents of the first picture are not the run's; give one whose decoder "
            "alone was trained on (`objective.options.learns: decoder`)."
        )
    return vae


def training_hours(run_folder: Path, longest_pause: float = 600) -> float:
    """Hours in which a run logged something at least every `longest_pause` seconds."""
    from brickwork.training.engine.page import log_entries

    times = [entry["time"] for entry in log_entries(run_folder / "log.jsonl") if "time" in entry]
    return sum(b - a for a, b in zip(times, times[1:]) if 0 < b - a < longest_pause) / 3600


def _draw(pipeline, images, train_rows, held_out_rows, folder: Path) -> dict:
    """Samples from seeds 0, 1, … and their nearest training images, by the root mean square of pixel differences.

    Returns:
        The median distance, on pixels in [0, 1], of samples and of held-out images to the nearest training image, and
        the share of each that is nearer to it than any other training image is.
    """
    import numpy as np
    import torch

    from brickwork.eval.metrics.distances import nearest_neighbours
    from brickwork.eval.report.pictures import grid, neighbour_sheet
    from brickwork.training.engine.previews import draw_samples

    samples = draw_samples(pipeline, pipeline.transformer.config.num_classes, CARD_SAMPLES, STEPS, 1.0)
    shape = samples.shape[1:3]
    training = np.stack([images.picture(row, shape) for row in train_rows])

    def features(pictures: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pictures.reshape(len(pictures), -1) / 255.0) / (pictures[0].size ** 0.5)

    known = features(training)

    def nearest(pictures: np.ndarray) -> tuple[torch.Tensor, float, float]:
        distances, rows = nearest_neighbours(features(pictures), known, 3)
        others = nearest_neighbours(known[rows[:, 0]], known, 2)[0][:, 1]  # a row is its own nearest
        return rows, distances[:, 0].median().item(), (distances[:, 0] < others).double().mean().item()

    rows, distance, copied = nearest(samples)
    grid(samples[:32], columns=8).save(folder / "samples.png")
    shown = [[training[row] for row in found] for found in rows[:SHOWN_NEIGHBOURS].tolist()]
    neighbour_sheet(list(samples[:SHOWN_NEIGHBOURS]), shown).save(folder / "neighbours.png")
    memory = {"sample_distance": distance, "copied": copied}
    if len(held_out_rows):
        held_out = np.stack([images.picture(row, shape) for row in held_out_rows])
        _, memory["held_out_distance"], memory["held_out_copied"] = nearest(held_out)
    return memory


def _sampler_of(pipeline) -> str:
    """How `_draw` sampled, in words."""
    bricks = ", every brick" if hasattr(pipeline.transformer, "num_bricks") else ""
    return f"{STEPS} steps of {type(pipeline.scheduler).__name__}, no guidance{bricks}"


def model_card(
    name: str, config, figures: dict, sampler: str, attribution: str | None, license: str | None = None
) -> str:
    """The card in Markdown, with the metadata that the hub reads."""
    start = config.model.init_from and _ending(config.model.init_from)
    # Headings of the attribution two levels down, below the card's own.
    licences = re.sub("^#", "###", (attribution or "").strip(), flags=re.MULTILINE)
    hours = figures["hours"]
    duration = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    further = {"duration": duration, "epochs": figures["images"] / figures["train_images"]}
    further |= {"configuration": _portable(config).strip(), "start": start, "licences": licences, "license": license}
    return filled(CARD, name=name, config=config, sampler=sampler, samples=CARD_SAMPLES, **figures, **further)


def _portable(config) -> str:
    """The configuration without the folders of the machine that it ran on."""
    import yaml

    values = yaml.safe_load(config.to_yaml())
    for section, key in (("data", "source"), ("run", "output_dir")):
        values[section][key] = Path(values[section][key]).name
    values["model"]["init_from"] = config.model.init_from and _ending(config.model.init_from)
    return yaml.safe_dump(values, sort_keys=False)


def _ending(path: str) -> str:
    """A folder's own name and the one above it, which is the run's where this is its pipeline."""
    return "/".join(Path(path).parts[-2:])
