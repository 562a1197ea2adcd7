"""A small text encoder that knows what captions say before it meets a picture.

Stable Diffusion's text encoder comes from CLIP, which learned from pictures with texts what words mean together. One
from scratch has only the denoiser's loss, which soon teaches it the style of a picture, and "blue hair, a red hat"
hardly at all. Where columns of the data set say what is in its pictures, the encoder learns to name these from the
caption first: a linear head a column reads the end token, or one of the padding behind it, which a UNet reads as well.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

MOST_VALUES = 64  # of a column, beyond which it names pictures and not what they have in common
HELD_OUT = 0.05  # share of the captions that the encoder is tried on
BATCH, WARMUP_STEPS, LEARNING_RATE = 128, 100, 2e-3


def columns_to_name(table, caption_column: str) -> dict[str, list[str]]:
    """The columns of a data set that captions may tell: words or whole numbers, of 2 to `MOST_VALUES` values.

    Raises:
        ValueError: where there is none.
    """
    columns = {}
    for name in table.column_names:
        values = [] if name == caption_column else table[name][: 2 * MOST_VALUES]
        if not any(isinstance(value, (str, int)) for value in values):
            continue
        column = [str(value) for value in table[name]]
        if 2 <= len(set(column)) <= MOST_VALUES:
            columns[name] = column
    if not columns:
        raise ValueError(
            f"`--teach` needs columns of 2 to {MOST_VALUES} different values beside the captions, such as those of "
            f"`brickwork data build avatars`; the data set has {', '.join(table.column_names)}."
        )
    return columns


def teach(
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    captions: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    steps: int,
    seed: int = 0,
) -> dict[str, float]:
    """Train an encoder to name columns from captions.

    Args:
        encoder: changed in place.
        tokenizer: its own.
        captions: of all pictures.
        columns: name => a value a caption; what a caption does not tell is learned as how often each value comes.
        steps: of AdamW, with a cosine course.
        seed: of heads and batches.

    Returns:
        The share of held-out captions whose value is named right, by column; 1 is out of reach where captions leave
        things out.
    """
    padded = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids
    ends = (padded == tokenizer.eos_token_id).int().argmax(dim=1)
    numbers, heads = {}, nn.ModuleDict()
    random = torch.Generator().manual_seed(seed)
    for name, values in columns.items():
        known = {value: number for number, value in enumerate(sorted(set(values)))}
        numbers[name] = torch.tensor([known[value] for value in values])
        heads[name] = nn.Linear(encoder.config.hidden_size, len(known))
        nn.init.normal_(heads[name].weight, std=0.02, generator=random)
    order = torch.randperm(len(padded), generator=random)
    kept = max(1, int(HELD_OUT * len(order)))
    held_out, rows = order[:kept], order[kept:]

    def logits(chosen: torch.Tensor, positions: torch.Tensor) -> dict[str, torch.Tensor]:
        states = encoder(padded[chosen]).last_hidden_state[torch.arange(len(chosen)), positions]
        return {name: head(states) for name, head in heads.items()}

    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, betas=(0.9, 0.98))
    course = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    encoder.train()
    for _ in tqdm(range(steps), desc="text encoder", unit="step"):
        chosen = rows[torch.randint(len(rows), (BATCH,), generator=random)]
        behind = torch.rand(BATCH, generator=random) * (padded.shape[1] - ends[chosen])
        found = logits(chosen, ends[chosen] + behind.long())
        loss = sum(cross_entropy(found[name], numbers[name][chosen]) for name in heads)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        course.step()
    encoder.eval()
    with torch.no_grad():
        parts = [logits(part, ends[part]) for part in held_out.split(BATCH)]
    named = {name: torch.cat([part[name].argmax(dim=1) for part in parts]) for name in heads}
    return {name: (named[name] == numbers[name][held_out]).float().mean().item() for name in heads}
