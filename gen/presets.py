"""Published configurations as data, one line each."""

from collections.abc import Mapping

from brickwork.errors import near_names

# name: (sample size, window sizes, patch sizes, layers, width, heads), after arXiv 2310.06389 and its released code.
# Published: ImageNet 64 FID 2.16 (L-PG) and 2.29 (L-PR), ImageNet 256 FID 2.59 with guidance (XL-U),
# CelebA 64 FID 2.09, CIFAR-10 FID 1.88.
_LEGO = {
    "lego-s-pg-64": (64, (4, 16, 64), (2, 8, 2), (2, 4, 6), 384, 6),
    "lego-s-pr-64": (64, (64, 16, 4), (2, 8, 2), (6, 4, 2), 384, 6),
    "lego-s-u-32": (32, (32, 16, 4, 16, 32), (2, 8, 2, 8, 2), (6, 4, 2, 4, 6), 384, 6),
    "lego-s-u-64": (64, (64, 16, 4, 16, 64), (2, 8, 2, 8, 2), (6, 4, 2, 4, 6), 384, 6),
    "lego-l-pg-32": (32, (4, 16, 32), (2, 8, 2), (4, 8, 12), 1024, 16),
    "lego-l-pr-32": (32, (32, 16, 4), (2, 8, 2), (12, 8, 4), 1024, 16),
    "lego-l-pg-64": (64, (4, 16, 64), (2, 8, 2), (6, 8, 12), 1024, 16),
    "lego-l-pr-64": (64, (64, 16, 4), (2, 8, 2), (12, 8, 6), 1024, 16),
    "lego-l-u-32": (32, (32, 16, 4, 16, 32), (2, 8, 2, 8, 2), (12, 8, 6, 8, 12), 1024, 16),
    "lego-l-u-64": (64, (64, 16, 4, 16, 64), (2, 8, 2, 8, 2), (12, 8, 6, 8, 12), 1024, 16),
    "lego-l-pg-64-old": (64, (4, 16, 64), (2, 8, 2), (6, 6, 12), 1024, 16),
    "lego-l-pr-64-old": (64, (64, 16, 4), (2, 8, 2), (12, 6, 6), 1024, 16),
    "lego-xl-pg-32": (32, (4, 16, 32), (2, 8, 2), (4, 12, 14), 1152, 16),
    "lego-xl-pr-32": (32, (32, 16, 4), (2, 8, 2), (14, 12, 4), 1152, 16),
    "lego-xl-pg-64": (64, (4, 16, 64), (2, 8, 2), (4, 12, 14), 1152, 16),
    "lego-xl-pr-64": (64, (64, 16, 4), (2, 8, 2), (14, 12, 4), 1152, 16),
    "lego-xl-u-32": (32, (32, 16, 4, 16, 32), (2, 8, 2, 8, 2), (14, 10, 4, 10, 14), 1152, 16),
    "lego-xl-u-64": (64, (64, 16, 4, 16, 64), (2, 8, 2, 8, 2), (14, 12, 4, 12, 14), 1152, 16),
}
_LEGO_FIELDS = ("sample_size", "window_sizes", "patch_sizes", "num_layers", "hidden_sizes", "num_attention_heads")

LEGO_PRESETS = {name: dict(zip(_LEGO_FIELDS, values)) for name, values in _LEGO.items()}

# name: (layers, width, head width), after arXiv 2212.09748. Published at 400k steps, ImageNet 256, patch 2, without
# guidance: FID 68.4 (S), 43.5 (B), 23.3 (L), 19.5 (XL).
_DIT = {"s": (12, 384, 64), "b": (12, 768, 64), "l": (24, 1024, 64), "xl": (28, 1152, 72)}
_TRANSFORMER_FIELDS = ("num_layers", "hidden_size", "attention_head_dim")

TRANSFORMER_PRESETS = {
    f"dit-{size}-{patch}": dict(zip(_TRANSFORMER_FIELDS, values)) | {"block_types": "dit", "patch_size": patch}
    for size, values in _DIT.items()
    for patch in (2, 4, 8)
}
# After arXiv 2412.06674, whose logs give the parameters: 24,596,000 (S), 96,082,976 (B), 334,831,648 (L) and
# 492,692,000 (XL). Its head width is not published; 32 is that of the authors' classifiers. Published as above: FID
# 46.3 (S), 24.8 (B), 11.2 (L), 9.6 (XL).
TRANSFORMER_PRESETS |= {
    f"d-emo-{size}-2": dict(zip(_TRANSFORMER_FIELDS, (layers, width, 32)))
    | {"block_types": "i2rmb", "window_size": 8, "patch_size": 2, "norm_elementwise_affine": True}
    for size, (layers, width, _) in _DIT.items()
}

# name: (block, channels, layers, head width, condition width, options). Nobody has published U-shaped denoisers of
# these blocks: the sizes follow DiT-S and DiT-B, the i2RMB's expansion is that of its authors' segmentation network.
_UNET = {
    "u-emo-s": ("i2rmb", (128, 256, 512), (2, 3, 4), 32, 512, {"i2rmb": {"expand_ratio": 2.0}}),
    "u-emo-b": ("i2rmb", (256, 512, 1024), (2, 3, 4), 32, 1024, {"i2rmb": {"expand_ratio": 2.0}}),
    "maxvit-s": ("maxvit", (96, 192, 384), (1, 2, 2), 32, 192, None),
    "maxvit-b": ("maxvit", (192, 384, 768), (1, 2, 2), 32, 384, None),
    "resnet-s": ("resnet", (112, 224, 448), (2, 2, 2), None, 448, None),
    "resnet-b": ("resnet", (224, 448, 896), (2, 2, 2), None, 896, None),
}
_UNET_FIELDS = (
    "block_types", "block_out_channels", "layers_per_block", "attention_head_dim", "time_embed_dim", "block_options",
)  # fmt: skip

UNET_PRESETS = {name: dict(zip(_UNET_FIELDS, values)) for name, values in _UNET.items()}

# name: (block, channels of `-s`, layers, further settings). Both sizes have the parameters of `resnet-s` or `resnet-b`
# within 5%, and double widths are four times the parameters. Recipes raise `drop_path`.
_PAIRS = {
    "pvt-u": (
        "sra",
        (96, 192, 480),
        (2, 2, 2),
        {"attention_head_dim": 32, "stage_options": [{"sr_ratio": 4}, {"sr_ratio": 2}, {"sr_ratio": 1}]},
    ),
    "osa-u": ("osa", (128, 256, 512), (2, 2, 1), {}),
    "resnet-rs-u": ("resnet_rs", (128, 256, 512), (4, 5, 6), {}),
    "ffnet": ("basic", (80, 160, 320), (4, 8, 10), {"neck": "ffnet_up"}),
    "giraffe": ("basic", (104, 208, 416), (0, 0, 0), {"stem": "s2d", "neck": "gfpn", "neck_options": {"depth": 5}}),
}
_PAIR_FIELDS = ("block_types", "block_out_channels", "layers_per_block")


def _sized(block: str, channels: tuple[int, ...], layers: tuple[int, ...], further: dict, times: int) -> dict:
    wider = tuple(times * width for width in channels)
    return dict(zip(_PAIR_FIELDS, (block, wider, layers))) | {"time_embed_dim": 4 * wider[0]} | further


UNET_PRESETS |= {
    f"{name}-{size}": _sized(*values, times) for name, values in _PAIRS.items() for size, times in (("s", 1), ("b", 2))
}
# For small devices: an eighth of the parameters.
UNET_PRESETS["osa-lite"] = _sized("osa", (64, 128, 256), (1, 1, 1), {"block_options": {"osa": {"depthwise": True}}}, 1)


# All of them, by the class of the network: whatever offers, trains, measures or describes presets reads this.
PRESETS = {
    "LegoTransformer2DModel": LEGO_PRESETS,
    "BlockTransformer2DModel": TRANSFORMER_PRESETS,
    "BlockUNet2DModel": UNET_PRESETS,
}


def network_of_preset(name: str) -> str | None:
    """The name of the class of a preset's network, `None` for a name that no preset has."""
    return next((network for network, presets in PRESETS.items() if name in presets), None)


def find_preset(presets: Mapping[str, dict], name: str) -> dict:
    """A copy of the preset, or a `ValueError` with the names that come near."""
    if name in presets:
        return dict(presets[name])
    near = near_names(name, presets, count=3, cutoff=0.5) or list(presets)
    raise ValueError(f"There is no preset {name!r}; did you mean {', '.join(near)}? All: {', '.join(presets)}.")
