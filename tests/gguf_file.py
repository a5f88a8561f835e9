"""Small GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = ["<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "th"]
HEADS, LAYERS = 2, 2


def write_gguf(
    path: Path,
    *,
    seed: int = 0,
    architecture: str = "llama",
    template: str | None = TEMPLATE,
    eos: bool = True,
    quantised: bool = False,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
) -> LlamaForCausalLM:
    """Write a random Llama of two layers with a byte-level tokenizer; returns it, with weights that bfloat16 holds exactly.

    ``quantised`` stores its matrices as ``kind``, else all is float32.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=32, intermediate_size=64, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(mean=1.0, std=0.1)
            else:
                parameter.normal_(std=0.2)
            parameter.copy_(parameter.to(torch.bfloat16).float())
    writer = GGUFWriter(str(path), architecture)
    _describe(writer, config)
    _tokenizer(writer, template, eos)
    for name, tensor in _tensors(model).items():
        if quantised and tensor.ndim == 2:
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _describe(writer: GGUFWriter, config: LlamaConfig) -> None:
    writer.add_name("Tiny Test 0.1M")
    writer.add_context_length(1024)
    writer.add_embedding_length(32)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(64)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(TOKENS))


def _tokenizer(writer: GGUFWriter, template: str | None, eos: bool) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])  # control, control, normal
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    if eos:
        writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray[Any, Any]]:
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    for layer in range(LAYERS):
        for ours, theirs in names.items():
            tensor = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in (
                "attn_q",
                "attn_k",
            ):  # llama.cpp rotates neighbouring pairs, transformers the two halves of a head
                halves = tensor.reshape(HEADS, 2, tensor.shape[0] // HEADS // 2, tensor.shape[1])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            found[f"blk.{layer}.{theirs}.weight"] = np.ascontiguousarray(tensor)
    return found
