"""Cached captions: as the pipelines' own encoders see them, each encoded once, refused when stale."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from brickwork import cli
from brickwork.training.config.config import load_config
from brickwork.training.data import text_cache
from brickwork.training.data.images import images_of
from brickwork.training.data.text_cache import CachedTexts, cache_texts, captions_of, load_text_encoders

CAPTIONS = ["a red hat", "sun", "a red hat", "", "a dog and a cat", "moon"]


@pytest.fixture
def tokenizer(tmp_path):
    """CLIP's, with a vocabulary of letters."""
    letters = [chr(c) for c in range(97, 123)]
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(tmp_path, model_max_length=12)


@pytest.fixture(params=["sd", "sdxl"])
def pipeline(request, tokenizer):
    """A pipeline that has nothing but its text encoders."""
    ids = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPTextConfig(
        **ids, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=6,
    )  # fmt: skip
    torch.manual_seed(0)
    parts = {"text_encoder": CLIPTextModel(config).eval(), "tokenizer": tokenizer}
    parts |= dict.fromkeys(("vae", "unet", "scheduler"))
    if request.param == "sd":
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    second = CLIPTextModelWithProjection(config).eval()
    return StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False)


def test_rows_are_what_the_pipeline_makes_of_their_captions(tmp_path, pipeline):
    texts = CachedTexts(cache_texts(tmp_path / "c", CAPTIONS, pipeline, batch_size=2), CAPTIONS, pipeline)
    assert (len(texts), len(texts.cache)) == (6, 1 + 5)
    xl = isinstance(pipeline, StableDiffusionXLPipeline)
    for row, caption in enumerate(CAPTIONS):
        with torch.no_grad():
            encoded = pipeline.encode_prompt(
                prompt=caption, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
        found = texts[row]
        torch.testing.assert_close(found["prompt_embeds"], encoded[0][0], rtol=1e-5, atol=1e-6)
        assert found["prompt_embeds"].shape == (12, 16 if xl else 8)
        if xl:
            torch.testing.assert_close(found["pooled_prompt_embeds"], encoded[2][0], rtol=1e-5, atol=1e-6)
    assert set(texts[0]) == ({"prompt_embeds", "pooled_prompt_embeds"} if xl else {"prompt_embeds"})
    assert not torch.equal(texts[0]["prompt_embeds"], texts[1]["prompt_embeds"])


def test_no_caption_is_what_the_pipeline_uses_for_it(tmp_path, pipeline):
    texts = CachedTexts(cache_texts(tmp_path / "c", CAPTIONS, pipeline), CAPTIONS, pipeline)
    xl = isinstance(pipeline, StableDiffusionXLPipeline)
    expected = torch.zeros(12, 16) if xl else texts[CAPTIONS.index("")]["prompt_embeds"]
    torch.testing.assert_close(texts.no_caption["prompt_embeds"], expected, rtol=1e-5, atol=1e-6)


def test_each_distinct_caption_is_encoded_once(tmp_path, pipeline, monkeypatch):
    seen, encode = [], text_cache.encode_captions

    def counted(pipeline, captions, *options, negative=False):
        seen.extend([] if negative else captions)
        return encode(pipeline, captions, *options, negative=negative)

    monkeypatch.setattr(text_cache, "encode_captions", counted)
    cache_texts(tmp_path / "c", CAPTIONS, pipeline, batch_size=2)
    assert seen == sorted(set(CAPTIONS))


def test_half_precision_is_kept(tmp_path, pipeline):
    folder = cache_texts(tmp_path / "c", CAPTIONS, pipeline, torch.float16)
    assert CachedTexts(folder, CAPTIONS, pipeline, torch.float16)[3]["prompt_embeds"].dtype == torch.float16
    with pytest.raises(ValueError, match="is stale: its dtype"):
        CachedTexts(folder, CAPTIONS, pipeline)


def test_a_stale_cache_is_refused(tmp_path, pipeline, tokenizer):
    folder = cache_texts(tmp_path / "c", CAPTIONS, pipeline)
    with pytest.raises(ValueError, match="is stale: its captions"):
        CachedTexts(folder, CAPTIONS[::-1], pipeline)
    tokenizer.model_max_length = 6
    with pytest.raises(ValueError, match="is stale: its tokenizer"):
        CachedTexts(folder, CAPTIONS, pipeline)
    tokenizer.model_max_length = 12
    encoder = getattr(pipeline, "text_encoder_2", None) or pipeline.text_encoder
    with torch.no_grad():
        next(encoder.parameters())[0, 0] += 1e-3
    with pytest.raises(ValueError, match="is stale: its text encoder"):
        CachedTexts(folder, CAPTIONS, pipeline)


def test_encoders_may_move_but_must_be_there(tmp_path, pipeline):
    folder = cache_texts(tmp_path / "c", CAPTIONS, pipeline)
    pipeline.text_encoder.save_pretrained(tmp_path / "elsewhere")
    pipeline.text_encoder = CLIPTextModel.from_pretrained(tmp_path / "elsewhere")
    CachedTexts(folder, CAPTIONS, pipeline)
    pipeline.text_encoder = None
    if hasattr(pipeline, "text_encoder_2"):
        pipeline.text_encoder_2 = None
    with pytest.raises(ValueError, match="without a text encoder"):
        CachedTexts(folder, CAPTIONS, pipeline)


def test_the_command_encodes_a_column(tmp_path, pipeline, capsys, request):
    sample = request.path.parents[2] / "data" / "emoji" / "sample.parquet"
    pipeline.save_pretrained(tmp_path / "pipe")
    wanted = ["--output", str(tmp_path / "c"), f"data.source={sample}", "data.label_column=label"]
    capsys.readouterr()
    assert cli.main(["data", "cache", "--captions", "txt", "--pipeline", str(tmp_path / "pipe"), *wanted]) == 2
    assert "did you mean text" in capsys.readouterr().err
    assert cli.main(["data", "cache", "--captions", "text", "--pipeline", str(tmp_path / "nothing"), *wanted]) == 2
    assert "holds no pipeline with text encoders" in capsys.readouterr().err
    assert cli.main(["data", "cache", "--captions", "text", *wanted]) == 2
    assert "belong together" in capsys.readouterr().err
    assert cli.main(["data", "cache", "--captions", "text", "--pipeline", str(tmp_path / "pipe"), *wanted]) == 0
    captions = captions_of(images_of(load_config(None, wanted[2:]).data), "text")
    texts = CachedTexts(tmp_path / "c", captions, load_text_encoders(str(tmp_path / "pipe")))
    assert len(texts) == len(captions) and texts.cache.source == str(tmp_path / "pipe")
