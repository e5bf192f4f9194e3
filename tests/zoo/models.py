"""Name -> how to build a model with example inputs, and what is known of its symmetries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.libraries import library

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One model.

    ``share`` is the least share of its parameters that must move; ``axes`` the number of free axes where it was
    counted by hand; ``quick`` marks the cross-section that runs in every test run. ``outputs`` are those that are used:
    an encoder's hidden states that a model also returns would else be fixed.
    """

    name: str
    build: Callable[[], Built]
    share: float = 0.95
    axes: int | None = None
    quick: bool = False
    outputs: tuple[str, ...] = ()


def entries() -> Iterator[Entry]:
    """Every model of the zoo."""
    yield from _torchvision()
    yield from _timm()
    yield from _transformers()
    yield from _einops()


def image(size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size)


# -------------------------------------------------------------------- torchvision


def _torchvision() -> Iterator[Entry]:
    plain = {
        "alexnet": 64, "vgg11": 32, "vgg13_bn": 32, "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64,
        "wide_resnet50_2": 64, "squeezenet1_1": 64, "densenet121": 64, "shufflenet_v2_x0_5": 64, "mobilenet_v2": 64,
        "mobilenet_v3_small": 64, "mnasnet0_5": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
        "regnet_y_400mf": 64, "convnext_tiny": 64, "swin_t": 64, "swin_v2_t": 64,
    }  # fmt: skip
    counted = {
        "resnet18": 12,
        "resnet50": 37,
    }  # residual axes of 4 stages (and a stem of its own), inner ones of blocks
    for name, size in plain.items():
        yield Entry(f"torchvision/{name}", _vision(name, size), axes=counted.get(name), quick=name == "resnet18")
    yield Entry("torchvision/vit_b_16", _vision("vit_b_16", 32, image_size=32))
    yield Entry("torchvision/googlenet", _vision("googlenet", 64, aux_logits=False, init_weights=False))
    for name in ("fcn_resnet50", "lraspp_mobilenet_v3_large"):
        yield Entry(f"torchvision/{name}", _segmenter(name))


def _vision(name: str, size: int, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        module = getattr(library("torchvision").models, name)(weights=None, num_classes=7, **options)
        return module, (image(size),), {}

    return build


def _segmenter(name: str) -> Callable[[], Built]:
    def build() -> Built:
        factory = getattr(library("torchvision").models.segmentation, name)
        return factory(weights=None, weights_backbone=None, num_classes=5), (image(64, 1),), {}

    return build


# -------------------------------------------------------------------- timm

SMALL = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4)
STAGES = dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40))
WINDOWS = dict(img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4))


def _timm() -> Iterator[Entry]:
    models: dict[str, tuple[int, dict[str, Any]]] = {
        "vit_tiny_patch16_224": (32, SMALL), "deit_tiny_distilled_patch16_224": (32, SMALL),
        "beit_base_patch16_224": (32, SMALL), "eva02_tiny_patch14_224": (32, SMALL),
        "vit_relpos_small_patch16_224": (32, SMALL), "vit_base_patch16_siglip_224": (32, SMALL),
        "convnext_atto": (64, STAGES), "convnextv2_atto": (64, STAGES), "swin_tiny_patch4_window7_224": (64, WINDOWS),
        "mixer_s16_224": (64, dict(img_size=64)), "resnet10t": (64, {}), "resnetv2_50": (64, {}),
        "seresnext26d_32x4d": (64, {}), "res2net50_26w_4s": (64, {}), "skresnet18": (64, {}), "dla34": (64, {}),
        "cspresnet50": (64, {}), "hrnet_w18_small": (64, {}), "ghostnet_050": (64, {}), "mobileone_s0": (64, {}),
        "mixnet_s": (64, {}), "nfnet_l0": (64, {}), "poolformer_s12": (64, {}), "pvt_v2_b0": (64, {}),
        "mobilevit_xxs": (64, {}), "edgenext_xx_small": (64, {}), "fastvit_t8": (64, {}), "inception_v3": (96, {}),
        "coat_tiny": (64, dict(img_size=64, serial_depths=(1, 1, 1, 1), parallel_depth=1)),
        "xcit_nano_12_p16_224": (64, {}), "sequencer2d_s": (64, {}), "focalnet_tiny_srf": (64, {}),
        "starnet_s1": (64, {}), "repghostnet_050": (64, {}), "lambda_resnet26t": (128, {}),
        "cait_xxs24_224": (64, dict(img_size=64, depth=2, embed_dim=48, num_heads=4)), "crossvit_9_240": (240, {}),
        "botnet26t_256": (256, {}), "visformer_tiny": (224, {}), "test_maxvit": (0, {}), "test_nfnet": (0, {}),
    }  # fmt: skip
    quick = {"convnext_atto", "swin_tiny_patch4_window7_224"}
    for name, (size, options) in models.items():
        yield Entry(f"timm/{name}", _timm_model(name, size, options), quick=name in quick)


def _timm_model(name: str, size: int, options: Mapping[str, Any]) -> Callable[[], Built]:
    def build() -> Built:
        module = library("timm").create_model(name, pretrained=False, num_classes=7, **options)
        return module, (image(size or module.default_cfg["input_size"][-1]),), {}

    return build


# -------------------------------------------------------------------- transformers

TEXT: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=99,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False,
)  # fmt: skip
GROUPED = dict(TEXT, num_key_value_heads=2)
MIXED = dict(GROUPED, num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
GPT = dict(n_layer=2, n_embd=32, n_head=4, vocab_size=99, n_positions=64, use_cache=False)
PICTURE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32,
               patch_size=8, num_labels=5)  # fmt: skip
PAIR = dict(d_model=32, vocab_size=99, decoder_start_token_id=0, pad_token_id=0, use_cache=False)
BART = dict(PAIR, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64)  # fmt: skip
T5 = dict(PAIR, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4)
SPEECH = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16),
              conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
              num_conv_pos_embedding_groups=4, vocab_size=32)  # fmt: skip
WHISPER = dict(BART, num_mel_bins=16, max_source_positions=32, max_target_positions=32, bos_token_id=1, eos_token_id=2)

SEEN = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=4, spatial_merge_size=2,
            temporal_patch_size=1)  # fmt: skip
PYRAMID = dict(model_type="rt_detr_resnet", embedding_size=16, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1],
               layer_type="basic", out_features=["stage2", "stage3", "stage4"])  # fmt: skip

# name: (auto class, config, kind of input, free axes counted by hand, least share)
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str, int | None, float]] = {
    "bert": ("MaskedLM", TEXT, "ids", 9, 0.95),
    "roberta": ("MaskedLM", dict(TEXT, pad_token_id=1), "ids", 9, 0.95),
    "albert": ("MaskedLM", dict(TEXT, embedding_size=16), "ids", 6, 0.95),
    "electra": ("MaskedLM", dict(TEXT, embedding_size=16), "ids", 10, 0.95),
    "distilbert": ("MaskedLM", dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48, vocab_size=99,
                                    max_position_embeddings=64), "ids", 9, 0.95),
    "gpt2": ("CausalLM", GPT, "ids", 9, 0.99),
    "gptj": ("CausalLM", dict(GPT, rotary_dim=4), "ids", None, 0.95),
    "gpt_neox": ("CausalLM", TEXT, "ids", None, 0.95),
    "opt": ("CausalLM", dict(TEXT, ffn_dim=48, word_embed_proj_dim=32), "ids", 9, 0.95),
    "bloom": ("CausalLM", dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=99, use_cache=False), "ids", None, 0.95),
    "llama": ("CausalLM", GROUPED, "ids", 9, 0.99),
    "mistral": ("CausalLM", GROUPED, "ids", 9, 0.99),
    "qwen2": ("CausalLM", GROUPED, "ids", 9, 0.99),
    "qwen3": ("CausalLM", dict(GROUPED, head_dim=8), "ids", 9, 0.99),
    "gemma": ("CausalLM", dict(GROUPED, head_dim=8), "ids", 9, 0.99),
    "gemma2": ("CausalLM", dict(GROUPED, head_dim=8, query_pre_attn_scalar=8), "ids", 9, 0.99),
    "phi3": ("CausalLM", GROUPED, "ids", 9, 0.99),
    "cohere": ("CausalLM", GROUPED, "ids", None, 0.99),
    # router and experts, with a gated hidden axis that may differ for each: 9 + 2 of the decoder above
    "mixtral": ("CausalLM", MIXED, "ids", 11, 0.99),
    "qwen3_moe": ("CausalLM", dict(MIXED, head_dim=8), "ids", 11, 0.99),
    "gpt_oss": ("CausalLM", dict(MIXED, head_dim=8, sliding_window=4), "ids", 11, 0.99),
    # rows split by counts that depend on data: both attention and MLP have experts
    "jetmoe": ("CausalLM", dict(GROUPED, kv_channels=8, num_local_experts=4, num_experts_per_tok=2), "ids", 13, 0.99),
    "mamba": ("CausalLM", dict(hidden_size=32, num_hidden_layers=2, state_size=4, vocab_size=99, use_cache=False),
              "ids", 7, 0.99),
    "t5": ("Seq2SeqLM", T5, "pair", 21, 0.99),
    "bart": ("Seq2SeqLM", BART, "pair", 12, 0.99),
    "marian": ("Seq2SeqLM", dict(BART, decoder_vocab_size=99), "pair", 12, 0.99),
    "vit": ("ImageClassification", PICTURE, "pixels", 9, 0.99),
    "dinov2": ("ImageClassification", PICTURE, "pixels", None, 0.99),
    "swin": ("ImageClassification", dict(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4],
                                         window_size=4, num_labels=5), "pixels", 10, 0.99),
    "convnextv2": ("ImageClassification", dict(hidden_sizes=[16, 24], depths=[1, 1], num_stages=2, num_labels=5),
                   "pixels", 4, 0.99),
    "resnet": ("ImageClassification", dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=5),
               "pixels", None, 0.99),
    "segformer": ("SemanticSegmentation", dict(depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], num_labels=5,
                                               decoder_hidden_size=16), "pixels", None, 0.99),
    "wav2vec2": ("CTC", SPEECH, "sound", None, 0.95),
    "hubert": ("CTC", SPEECH, "sound", None, 0.95),
    "whisper": ("SpeechSeq2Seq", WHISPER, "features", 14, 0.99),
    # overlapping windows cut out of memory by strides
    "longformer": ("MaskedLM", dict(TEXT, attention_window=[4, 4], pad_token_id=1), "ids", None, 0.95),
    # attention layers that share their weights, between state-space layers
    "zamba2": ("CausalLM", dict(TEXT, num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2, mamba_d_state=4,
                                mamba_headdim=8, mamba_ngroups=1, n_mamba_heads=8, num_mem_blocks=1, chunk_size=4,
                                adapter_rank=4), "ids", None, 0.99),
    # attention at learned places
    "rt_detr": ("ObjectDetection", dict(
        backbone_config=PYRAMID, encoder_hidden_dim=32, encoder_in_channels=[24, 32, 40], encoder_ffn_dim=48,
        encoder_attention_heads=4, d_model=32, num_queries=6, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=48,
        decoder_layers=2, decoder_attention_heads=4, num_labels=4, num_denoising=0), "photo", None, 0.98),
    "sam": ("MaskGeneration", dict(
        vision_config=dict(PICTURE, mlp_dim=48, window_size=2, output_channels=16, global_attn_indexes=[1],
                           num_pos_feats=8),
        prompt_encoder_config=dict(hidden_size=16, image_size=32, patch_size=8, mask_input_channels=4,
                                   num_point_embeddings=4),
        mask_decoder_config=dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_dim=24,
                                 iou_head_hidden_dim=16, num_multimask_outputs=3, iou_head_depth=2)),
        "points", None, 0.99),
    # attention by autocorrelation: Fourier transforms, the best lags, a decomposition into trend and season
    "autoformer": ("", dict(
        prediction_length=4, context_length=8, lags_sequence=[1, 2], num_time_features=2, d_model=32, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        moving_average=3, label_length=4, autocorrelation_factor=2), "series", None, 0.95),
    "layoutlmv3": ("SequenceClassification", dict(
        TEXT, coordinate_size=6, shape_size=4, input_size=32, patch_size=8, rel_pos_bins=8, max_rel_pos=16,
        rel_2d_pos_bins=8, max_rel_2d_pos=32, max_2d_position_embeddings=64, pad_token_id=1), "document", None, 0.99),
    "qwen2_vl": ("ImageTextToText", dict(
        text_config=dict(GROUPED, rope_parameters=dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=1e4)),
        vision_config=SEEN, image_token_id=7, video_token_id=8, vision_start_token_id=10, vision_end_token_id=11),
        "scene", None, 0.99),
}  # fmt: skip
QUICK = {"bert", "gpt2", "llama", "mixtral", "mamba", "t5", "vit", "wav2vec2"}


def _transformers() -> Iterator[Entry]:
    for name, (auto, config, kind, axes, share) in TRANSFORMERS.items():
        used = ("logits",) if kind in ("pair", "features") else ()
        yield Entry(f"transformers/{name}", _auto(name, auto, config, kind), share, axes, name in QUICK, used)


def _auto(name: str, auto: str, config: Mapping[str, Any], kind: str) -> Callable[[], Built]:
    def build() -> Built:
        transformers = library("transformers")
        settings = transformers.AutoConfig.for_model(name, **config)
        return (
            getattr(transformers, f"AutoModelFor{auto}" if auto else "AutoModel").from_config(settings),
            (),
            _inputs(kind),
        )

    return build


def _inputs(kind: str) -> dict[str, Tensor]:
    ids = torch.randint(3, 90, (2, 7))
    match kind:
        case "pixels":
            return {"pixel_values": image(32)}
        case "sound":
            return {"input_values": torch.randn(1, 400)}
        case "features":
            return {"input_features": torch.randn(1, 16, 64), "decoder_input_ids": ids[:1, :5]}
        case "pair":
            return {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
        case "photo":
            return {"pixel_values": image(64, 1)}
        case "points":
            return {"pixel_values": image(32, 1), "input_points": torch.rand(1, 1, 2, 2) * 32}
        case "series":
            past = {"past_values": torch.randn(2, 10), "past_time_features": torch.randn(2, 10, 2)}
            future = {"future_values": torch.randn(2, 4), "future_time_features": torch.randn(2, 4, 2)}
            return {**past, **future, "past_observed_mask": torch.ones(2, 10)}
        case "document":
            return {"input_ids": ids, "bbox": torch.tensor([1, 2, 30, 40]).expand(2, 7, 4), "pixel_values": image(32)}
        case "scene":
            said = torch.tensor([[20, 10, 7, 7, 7, 7, 11, 30, 31, 32]])
            shown = {"pixel_values": torch.randn(16, 48), "image_grid_thw": torch.tensor([[1, 4, 4]])}
            return {"input_ids": said, "mm_token_type_ids": (said == 7).int(), **shown}
    return {"input_ids": ids}


# -------------------------------------------------------------------- written with einops


def _einops() -> Iterator[Entry]:
    yield Entry("einops/attention", _attention, axes=4, quick=True)
    yield Entry("einops/mixer", _mixer, axes=2, quick=True)


class Rearranged(nn.Module):
    """Attention whose heads are cut out and put back by einops."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.qkv, self.out, self.end = (nn.Linear(a, b) for a, b in ((5, 12), (12, 36), (12, 12), (12, 2)))

    def forward(self, x: Tensor) -> Tensor:
        rearrange = library("einops").rearrange
        x = self.inp(x)
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=3)
        y = (q @ rearrange(k, "b h t d -> b h d t")).softmax(-1) @ v
        return self.end(x + self.out(rearrange(y, "b h t d -> b t (h d)")))


class Patches(nn.Module):
    """Patches cut out by einops, mixed along channels only."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.up, self.down, self.out = (nn.Linear(a, b) for a, b in ((48, 10), (10, 14), (14, 10), (10, 2)))

    def forward(self, x: Tensor) -> Tensor:
        einops = library("einops")
        x = self.inp(einops.rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4))
        x = x + self.down(torch.nn.functional.gelu(self.up(x)))
        return self.out(einops.reduce(x, "b n c -> b c", "mean"))


def _attention() -> Built:
    return Rearranged(), (torch.randn(2, 6, 5),), {}


def _mixer() -> Built:
    return Patches(), (image(8),), {}
