"""Checkpoints are read as transformers reads them, or refused with the reason."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dispatchgym.envs.api import InvalidInstanceError, UnknownNameError, UsageError
from dispatchgym.serving.executor.byte_tokenizer import byte_tokenizer
from dispatchgym.serving.executor.demo import write_demo
from dispatchgym.serving.executor.inputs import HostStep, pack, unpack
from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.models import open_model
from dispatchgym.serving.executor.ops import TorchOps
from dispatchgym.serving.executor.shares import Share
from dispatchgym.serving.executor.weights import Model
from tests.serving.executor.models import FAMILIES, VOCABULARY, model, reference, save


def logits(loaded: Model, ids: torch.Tensor, cuts: tuple[int, ...]) -> torch.Tensor:
    """Of every token of a text that is run in pieces, its blocks strewn over the cache."""
    spec = loaded.spec
    cache = torch.zeros(spec.layers, 2, 20, 16, spec.kv_heads, spec.head_dim, dtype=loaded.dtype)
    decoder = Decoder(spec, loaded.weights, cache, TorchOps())
    table = torch.from_numpy(np.random.default_rng(0).permutation(20).astype(np.int32))[None]
    found = []
    for start, end in pairwise(cuts):
        n = end - start
        piece = ids[start:end].numpy().astype(np.int32)
        host = HostStep(piece, np.array([0]), np.array([start]), np.array([n]), np.arange(n), int(n == 1))
        step = unpack(torch.from_numpy(pack(host)), table, host)
        found.append(decoder.forward(step, torch.zeros(1, dtype=torch.int32)))
    return torch.cat(found)


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str) -> None:
    """Whatever the pieces in which a text is run; past the length from which Llama 3 stretches positions."""
    ids = torch.randint(0, VOCABULARY, (150,), generator=torch.Generator().manual_seed(0))
    wanted = reference(family)(ids[None]).logits[0]
    for cuts in ((0, 150), (0, 1, 2, 50, 51, 150)):
        torch.testing.assert_close(logits(model(family), ids, cuts), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_bfloat16_is_as_close_to_float32_as_that_of_transformers(tmp_path: Path) -> None:
    save("llama", tmp_path)
    ids = torch.randint(0, VOCABULARY, (80,), generator=torch.Generator().manual_seed(1))
    found = logits(open_model(str(tmp_path), "cpu", torch.bfloat16), ids, (0, 80)).float()
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)(ids[None]).logits[0].float()
    wanted = reference("llama")(ids[None]).logits[0]
    assert (found - wanted).norm() < 1.2 * (theirs - wanted).norm()


def test_parameters_of_a_step_are_counted() -> None:
    """Tied: every number of the model is read once."""
    counted = sum(parameter.numel() for parameter in reference("llama").parameters())
    assert model("llama").spec.parameters == counted


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save("qwen2", tmp_path, max_shard_size="50KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UsageError, match=f"shard {lost.name} is missing"):
        open_model(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("family", "lost"),
    [
        ("qwen3", ("k_norm.weight",)),
        ("qwen2", ("k_proj.bias",)),
        ("qwen2", ("q_proj.bias", "k_proj.bias", "v_proj.bias")),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, family: str, lost: tuple[str, ...]) -> None:
    save(family, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    for name in lost:
        del tensors[f"model.layers.1.self_attn.{name}"]
    save_file(tensors, file)
    with pytest.raises(InvalidInstanceError, match=f"tensor model.layers.1.self_attn.{lost[0]} is missing"):
        open_model(str(tmp_path), "cpu")


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["intermediate_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InvalidInstanceError, match=r"gate_proj.weight has shape \(80, 48\), config.json says \(64, 48\)"
    ):
        open_model(str(tmp_path), "cpu")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save("llama", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InvalidInstanceError, match=r"model.safetensors"):
        open_model(str(tmp_path), "cpu")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    reference("llama").config.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"pytorch_model.bin is a pickle, which is not read"):
        open_model(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, "architecture 'gpt2' is not covered"),
        ({"hidden_act": "gelu"}, "activation 'gelu' is not covered"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope type 'dynamic'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized weights are not covered"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layers of type 'linear_attention' are not covered"),
    ],
)
def test_what_the_decoder_does_not_cover_is_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=why):
        open_model(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hidden_size": "48"}, "config.json: .*'hidden_size' expected int"),
        ({"num_attention_heads": 0}, "config.json: integer modulo by zero"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0 is below 1"),
        ({"max_position_embeddings": -1}, "max_position_embeddings -1 is below 1"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0, "rope_theta": 1e4}}, "give no finite angles"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, "'rope_theta': None"),
    ],
)
def test_sizes_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    save("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInstanceError, match=why):
        open_model(str(tmp_path), "cpu")


@torch.inference_mode()
def test_a_checkpoint_at_odds_with_its_config_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    """Biases that the config does not name, a head in a tied model, and an old index beside the whole file."""
    save("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors, tmp_path / "old.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "old.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    random = torch.Generator().manual_seed(0)
    tensors["lm_head.weight"] = torch.randn(VOCABULARY, 48, generator=random)
    for name, size in (("self_attn.q", 48), ("self_attn.k", 24), ("self_attn.v", 24), ("mlp.down", 48)):
        tensors[f"model.layers.0.{name}_proj.bias"] = torch.randn(size, generator=random)
    save_file(tensors, file, metadata={"format": "pt"})
    ids = torch.randint(0, VOCABULARY, (30,), generator=random)
    wanted = transformers.LlamaForCausalLM.from_pretrained(tmp_path)(ids[None]).logits[0]
    assert not torch.allclose(wanted, reference("llama")(ids[None]).logits[0], atol=1.0)
    torch.testing.assert_close(logits(open_model(str(tmp_path), "cpu"), ids, (0, 30)), wanted, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("world", [1, 2])
def test_biases_are_where_the_config_says(tmp_path: Path, world: int) -> None:
    """Of every projection of a Llama; of the outer ones, whose shares are added up, the first share alone has them."""
    config = transformers.LlamaConfig(
        **reference("llama").config.to_diff_dict() | {"attention_bias": True, "mlp_bias": True}
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()
    theirs.save_pretrained(tmp_path)
    shares = [open_model(str(tmp_path), "cpu", share=Share(rank, world)) for rank in range(world)]
    if world == 1:
        ids = torch.randint(0, VOCABULARY, (30,), generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(logits(shares[0], ids, (0, 30)), theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-4)
    layers = [share.weights.layers[0] for share in shares]
    assert all(layer.qkv.bias is not None and layer.gate_up.bias is not None for layer in layers)
    assert [layer.out.bias is not None for layer in layers] == [rank == 0 for rank in range(world)]
    assert [layer.down.bias is not None for layer in layers] == [rank == 0 for rank in range(world)]


def test_numbers_that_need_scales_are_refused(tmp_path: Path) -> None:
    """As in checkpoints whose config.json does not say that they are quantized."""
    save("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, file)
    with pytest.raises(UsageError, match=f"{name} is of torch.float8_e4m3fn: quantized weights are not covered"):
        open_model(str(tmp_path), "cpu")


def test_sliding_windows_are_refused(tmp_path: Path) -> None:
    config = transformers.MistralConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, sliding_window=128
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="sliding window of 128 tokens"):
        open_model(str(tmp_path), "cpu")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no config.json"):
        open_model(str(tmp_path), "cpu")
    with pytest.raises(UnknownNameError, match=r"'70b' is not known"):
        open_model("random:70b", "cpu")


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="device 'gpu' is not known; write cuda"):
        open_model("random:tiny", "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="'cuda:0': torch finds no GPU"):
        open_model("random:tiny", "cuda:0")


def test_the_demo_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_demo(tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert open_model(str(tmp_path / "a"), "cpu").spec.vocabulary == len(byte_tokenizer())
    with pytest.raises(UsageError, match="is not empty"):
        write_demo(tmp_path / "a")


def test_the_tokenizer_of_bytes_brings_every_text_back(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("", "plain", " two  spaces\n", "Größe 世界 \U0001f600"):
        ids = tokenizer.encode(text)
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text
