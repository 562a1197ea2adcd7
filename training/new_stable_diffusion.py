"""Write an untrained Stable Diffusion pipeline of any size, for `train_text_to_image.py` to train from scratch.

    python training/new_stable_diffusion.py --config training/configs/avatars_base.yaml --teach 800 \\
        --vae runs/avatars-vae/vae --captions data/avatars/train.parquet --output runs/avatars-sd-64-base

The VAE is taken as it is; the tokenizer is learned from the captions; text encoder and UNet have random weights,
unless `--teach` has the encoder learn first what the captions say. With `--start-from` all parts are those of another
pipeline, whose encoder is to learn other captions.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from brickwork.errors import explained
from brickwork.eval.sampling.pipelines import load_vae
from brickwork.eval.sets.tables import find_column
from brickwork.files import check_folder, new_folder
from brickwork.options import check_at_least
from brickwork.pipelines.stable_diffusion import load_pipeline
from brickwork.training.commands.train import script
from brickwork.training.config.library import find_config
from brickwork.training.config.reading import read_yaml
from brickwork.training.data.images import load_table
from brickwork.training.tasks.latent.text_encoder import columns_to_name, teach

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
# Stable Diffusion's own noise schedule.
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
MAKER = "training/new_stable_diffusion.py"
SECTIONS = ("tokenizer", "text_encoder", "unet")
OPTIONAL = ("scheduler",)


def learn_tokenizer(captions: list[str], vocabulary: int, max_length: int) -> CLIPTokenizer:
    """CLIP's kind of tokenizer, learned from captions: pairs of letters merged by how often they come, on all bytes.

    Args:
        captions: to learn from.
        vocabulary: number of tokens; at least 514, which are all bytes, within and at the end of words, and two marks.
        max_length: tokens of a prompt, with the two marks.

    Raises:
        ValueError: for a vocabulary that is too small.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    single = [*letters, *(letter + WORD_END for letter in letters)]
    merged = vocabulary - len(single) - 2
    if merged < 0:
        raise ValueError(f"`tokenizer.vocabulary` is {vocabulary}; give {len(single) + 2} or more, for all bytes.")
    learned = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) * 2 + merged,
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learned.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]][:merged]
    tokens = [*single, *(left + right for left, right in merges), START, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))},
        merges=merges,
        model_max_length=max_length,
    )


def build_pipeline(config: dict, vae: AutoencoderKL, captions: list[str], seed: int = 0) -> StableDiffusionPipeline:
    """A pipeline whose UNet and text encoder know nothing yet.

    Args:
        config: `tokenizer` (`vocabulary`, `max_length`), `text_encoder` (values of `CLIPTextConfig`) and `unet`
            (values of `UNet2DConditionModel`); also `scheduler` (values of `DPMSolverMultistepScheduler` over Stable
            Diffusion's own).
        vae: trained.
        captions: to learn the tokenizer from.
        seed: of the random weights.

    Raises:
        ValueError: for missing or unknown sections, or values that do not fit.
    """
    if sorted(set(config) - set(OPTIONAL)) != sorted(SECTIONS):
        raise ValueError(
            f"The configuration has the sections {sorted(config)}; it takes {', '.join(SECTIONS)} and may have "
            f"{', '.join(OPTIONAL)}."
        )
    tokenizer = learn_tokenizer(captions, **config["tokenizer"])
    torch.manual_seed(seed)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config["text_encoder"],
        )
    )
    channels = vae.config.latent_channels
    unet = UNet2DConditionModel(
        in_channels=channels,
        out_channels=channels,
        cross_attention_dim=text_encoder.config.hidden_size,
        **config["unet"],
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(**SCHEDULER | config.get("scheduler", {})),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def configure_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="YAML file, or the name of one that ships")
    parser.add_argument("--vae", help="folder of a trained AutoencoderKL")
    parser.add_argument(
        "--start-from", metavar="PIPELINE", help="a pipeline whose parts are taken instead of these two"
    )
    parser.add_argument("--captions", required=True, help="data set whose captions the tokenizer is learned from")
    parser.add_argument("--caption-column", default="text", help="its column (default: text)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="pipeline folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace a pipeline that this script wrote")
    parser.add_argument(
        "--teach",
        type=int,
        default=0,
        metavar="STEPS",
        help="have the text encoder learn so long to name the data set's other columns from the captions (default: 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights (default: 0)")
    parser.set_defaults(run=write)


def write(args: argparse.Namespace) -> None:
    """Write the pipeline that the arguments describe.

    Raises:
        ValueError: for an output that exists, or arguments that describe no pipeline.
    """
    check_folder(args.output, MAKER, overwrite=args.overwrite, argument="--output")
    table = load_table(args.captions)
    find_column(table, args.caption_column, "--caption-column")
    check_at_least(args, 0, "teach")
    columns = columns_to_name(table, args.caption_column) if args.teach else {}
    captions = list(table[args.caption_column])
    pipeline = _parts(args, captions)
    if columns:
        right = teach(pipeline.text_encoder, pipeline.tokenizer, captions, columns, args.teach, seed=args.seed)
        print("named from held-out captions: " + ", ".join(f"{name} {share:.0%}" for name, share in right.items()))
    with new_folder(args.output, MAKER, overwrite=args.overwrite, argument="--output") as folder:
        pipeline.save_pretrained(folder)
    sizes = {name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("unet", "text_encoder")}
    print(f"wrote {args.output}: " + ", ".join(f"{name} {number:,} parameters" for name, number in sizes.items()))


def _parts(args: argparse.Namespace, captions: list[str]) -> StableDiffusionPipeline:
    if args.start_from is not None:
        for option in ("config", "vae"):
            if getattr(args, option) is not None:
                raise ValueError(f"`--{option}` is for a pipeline from scratch; leave it or `--start-from` out.")
        return load_pipeline(args.start_from)
    if args.config is None or args.vae is None:
        raise ValueError("A pipeline from scratch needs `--config` and `--vae`; or name one with `--start-from`.")
    with explained(f"`--config` is {str(args.config)!r}, in which something does not fit", TypeError):
        return build_pipeline(read_yaml(find_config(args.config)), load_vae(args.vae), captions, args.seed)


main = script(__file__, __doc__, configure_parser)

if __name__ == "__main__":
    raise SystemExit(main())
