"""Detectors of transformers, as tiny networks with random weights in the layout of the real ones."""

import numpy as np
import pytest
import torch

from brickwork.eval.judge.detectors import load_detector

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


@pytest.fixture
def owlv2(clip_folder, tmp_path):
    from transformers import AutoTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    ids = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = Owlv2Config(
        text_config={**SIZES, **ids, "max_position_embeddings": 16},
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    Owlv2ForObjectDetection(config).save_pretrained(tmp_path / "owlv2")
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
        tmp_path / "owlv2"
    )
    return tmp_path / "owlv2"


@pytest.fixture
def grounding_dino(tmp_path):
    from transformers import (
        BertTokenizerFast,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat", "dog", "teddy", "bear"]
    folder = tmp_path / "dino"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    backbone = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config={"model_type": "bert", **SIZES, "vocab_size": len(words)}, d_model=32,
        encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, num_queries=12, num_feature_levels=4,
    )  # fmt: skip
    torch.manual_seed(0)
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab_file=str(folder / "vocab.txt"))
    pictures = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 256})
    GroundingDinoProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def check_found(found, names):
    assert list(found) == names
    boxes = [one for objects in found.values() for one in objects]
    assert boxes and all(
        0 < one.score <= 1 and 0 <= one.box[0] <= one.box[2] <= 40 and one.box[3] <= 24 for one in boxes
    )


def test_owlv2_finds_what_its_processor_does(owlv2, picture):
    detector = load_detector(f"owlv2:{owlv2}", "cpu")
    (found,) = detector([picture], [["cat", "dog"]])
    check_found(found, ["cat", "dog"])
    inputs = detector.processor(text=[["a photo of a cat", "a photo of a dog"]], images=[picture], return_tensors="pt")
    with torch.no_grad():
        outputs = detector.model(**inputs)
    (theirs,) = detector.processor.image_processor.post_process_object_detection(outputs, 0.02, [picture.shape[:2]])
    ours = {(name, round(one.score, 4)) for name, objects in found.items() for one in objects}
    expected = {(["cat", "dog"][k], round(s, 4)) for k, s in zip(theirs["labels"].tolist(), theirs["scores"].tolist())}
    assert ours == expected
    box = max((one for objects in found.values() for one in objects), key=lambda one: one.score).box
    expected = theirs["boxes"][theirs["scores"].argmax()].clamp_min(0).minimum(torch.tensor([40, 24, 40, 24]))
    torch.testing.assert_close(torch.tensor(box), expected)


def test_grounding_dino_scores_names_by_their_tokens(grounding_dino, picture):
    detector = load_detector(f"grounding-dino:{grounding_dino}", "cpu")
    names = ["cat", "teddy bear"]
    (found,) = detector([picture], [names])
    check_found(found, names)
    inputs = detector.processor(text="cat. teddy bear.", images=[picture], return_tensors="pt")
    with torch.no_grad():
        outputs = detector.model(**inputs)
    tokens = outputs.logits[0].sigmoid()
    own = {"cat": [1], "teddy bear": [3, 4]}  # [CLS] cat . teddy bear . [SEP]
    scores = torch.stack([tokens[:, own[name]].amax(dim=1) for name in names], dim=1)
    expected = sorted(score for score in scores.amax(dim=1).tolist() if score > 0.02)
    assert sorted(one.score for objects in found.values() for one in objects) == pytest.approx(expected)


def test_other_networks_and_folders_are_refused(owlv2, tmp_path):
    with pytest.raises(ValueError, match="holds a owlv2; give a grounding-dino"):
        load_detector(f"grounding-dino:{owlv2}", "cpu")
    with pytest.raises(ValueError, match="'owlv2:.*nothing', which could not be loaded"):
        load_detector(f"owlv2:{tmp_path}/nothing", "cpu")


def test_options_of_the_hub_are_handed_on(owlv2, monkeypatch):
    """Of processors there is one variant alone."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    given = []
    for kind in (AutoProcessor, AutoModelForZeroShotObjectDetection):

        def load(source, kind=kind, load=kind.from_pretrained, **options):
            given.append((kind.__name__, options))
            return load(source)

        monkeypatch.setattr(kind, "from_pretrained", load)
    load_detector(f"owlv2:{owlv2}", "cpu", revision="old", variant="fp16", token="mine")
    expected = {"revision": "old", "token": "mine"}
    assert given[0] == ("AutoProcessor", expected)
    assert given[1] == ("AutoModelForZeroShotObjectDetection", expected | {"variant": "fp16"})
