#!/usr/bin/env python3
"""Writes the golden cases: tiny random models and what Hugging Face transformers says about them.

    pip install torch transformers safetensors numpy
    python tests/golden/make_goldens.py [case ...]

Each case is a model directory (config.json, model.safetensors) with a golden.json beside it. The figures
are float32 arithmetic on the weights exactly as they are stored: a bf16 or f16 case is rounded first and
computed from the rounded weights. README.md in this folder describes the format and the cases.

A case keeps the first seed whose greedy run is a fair test: every step has a clear winner, the ranks within
the printed top five are clear, the text does not fall into a short loop, and (16-bit cases) the same tokens
come out when activations are rounded to bf16 before every matrix product.
"""

import json
import math
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

HERE = Path(__file__).resolve().parent
PROMPT_LENGTHS = [1, 7, 16, 33, 90]
NEW_TOKENS = 24
TOP = 5
SEEDS = range(1, 4000)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SMALL = dict(
    vocab_size=256, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=128, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=None,
)  # fmt: skip
ROPE = {"rope_type": "default"}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


@dataclass
class Case:
    """One model directory: which family, which storage type, which style of config.json."""

    config_class: type
    dtype: str
    rope: dict
    tied: bool = False
    # "hub": rope_theta / rope_scaling / torch_dtype, as in most published models; "v5": rope_parameters / dtype.
    config_style: str = "v5"
    shards: int = 1
    more: dict = field(default_factory=dict)

    def config(self):
        options = {**SMALL, **self.more}
        return self.config_class(
            **options, rope_parameters=dict(self.rope), tie_word_embeddings=self.tied, attn_implementation="eager"
        )


CASES = {
    "llama": Case(LlamaConfig, "float32", {**ROPE, "rope_theta": 10000.0}, config_style="hub",
                  more=dict(vocab_size=128, intermediate_size=96)),
    "llama-tied": Case(LlamaConfig, "bfloat16", {**ROPE, "rope_theta": 10000.0}, tied=True),
    "llama3-rope": Case(LlamaConfig, "bfloat16", LLAMA3_ROPE, tied=True, config_style="hub"),
    "llama3-rope-v5": Case(LlamaConfig, "bfloat16", {**LLAMA3_ROPE, "factor": 4.0}, tied=True),
    "llama-f16": Case(LlamaConfig, "float16", {**ROPE, "rope_theta": 500000.0}, config_style="hub"),
    "llama-sharded": Case(LlamaConfig, "bfloat16", {**ROPE, "rope_theta": 10000.0}, shards=2,
                          more=dict(num_hidden_layers=3, intermediate_size=96)),
    "qwen2": Case(Qwen2Config, "bfloat16", {**ROPE, "rope_theta": 1000000.0}, tied=True, config_style="hub",
                  more=dict(use_sliding_window=False)),
    "qwen3": Case(Qwen3Config, "float32", {**ROPE, "rope_theta": 1000000.0},
                  more=dict(vocab_size=128, hidden_size=48, head_dim=32, intermediate_size=64)),
    "mistral": Case(MistralConfig, "float32", {**ROPE, "rope_theta": 10000.0}, config_style="hub",
                    more=dict(vocab_size=128, hidden_size=48, head_dim=16, intermediate_size=64, num_hidden_layers=3,
                              sliding_window=16)),
    "mistral-nosw": Case(MistralConfig, "bfloat16", {**ROPE, "rope_theta": 1000000.0},
                         more=dict(head_dim=16, sliding_window=None)),
}  # fmt: skip


def random_model(case, seed):
    """A float32 model with weights from `seed`, rounded to the stored type."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(case.config(), dtype=torch.float32).eval()
    tied = case.tied
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(1.0 + 0.3 * torch.randn_like(p))  # never all ones: a skipped or swapped norm must show
                if name == "model.norm.weight" and case.dtype != "float32":
                    p.mul_(0.25)  # flat logits, so that bf16 rounding stays within 2e-2 of a logprob
            elif name.endswith(".bias"):
                p.copy_(0.3 * torch.randn_like(p))
            elif "embed_tokens" in name:
                p.copy_((0.2 if tied else 0.5) * torch.randn_like(p))
            elif "lm_head" in name:
                p.copy_(0.25 * torch.randn_like(p))
            else:
                p.copy_(1.2 / math.sqrt(p.shape[1]) * torch.randn_like(p))
            p.copy_(p.to(DTYPES[case.dtype]).float())
    return model


def prompts_for(case, seed):
    """Prompts of the fixed lengths; id 0..2 stay out so that nobody's special-token handling interferes."""
    vocab = case.config().vocab_size
    g = torch.Generator().manual_seed(10_000 + seed)
    return [torch.randint(3, vocab, (n,), generator=g).tolist() for n in PROMPT_LENGTHS]


@torch.no_grad()
def greedy(model, prompt):
    """NEW_TOKENS greedy tokens, end-of-text ignored; the whole text is computed anew at every step."""
    ids = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def greedy_cached(model, prompt):
    """The same with transformers' KV cache: a fast first look, and a check of the reference itself."""
    out, past, step = [], None, list(prompt)
    for _ in range(NEW_TOKENS):
        r = model(torch.tensor([step]), past_key_values=past, use_cache=True)
        past = r.past_key_values
        step = [int(r.logits[0, -1].argmax())]
        out += step
    return out


@torch.no_grad()
def logprobs_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


class RoundedActivations:
    """While active, the input of every matrix product is rounded to bf16: what a bf16 engine does at best."""

    def __init__(self, model):
        self.model = model

    def __enter__(self):
        rounded = lambda _, inputs: (inputs[0].to(torch.bfloat16).float(),)
        linears = [m for m in self.model.modules() if isinstance(m, torch.nn.Linear)]
        self.hooks = [m.register_forward_pre_hook(rounded) for m in linears]

    def __exit__(self, *_):
        for h in self.hooks:
            h.remove()


def try_seed(case, seed):
    """The golden record of this seed, or None when it would be an unfair test."""
    sixteen_bit = case.dtype != "float32"
    least_margin, least_gap = (0.003, 1e-5) if sixteen_bit else (0.01, 2e-4)
    model = random_model(case, seed)
    records, bf16_error = [], 0.0
    for prompt in prompts_for(case, seed):
        tokens = greedy_cached(model, prompt)
        if len(set(tokens)) < 6:
            return None
        ids = prompt + tokens
        lp = logprobs_of(model, ids)
        steps = lp[len(prompt) - 1 : -1]
        top = steps.topk(TOP + 1, dim=-1)
        margins = top.values[:, 0] - top.values[:, 1]
        if margins.min() < least_margin or (top.values[:, :-1] - top.values[:, 1:]).min() < least_gap:
            return None
        assert top.indices[:, 0].tolist() == tokens, "transformers disagrees with itself about the cache"
        if sixteen_bit:
            with RoundedActivations(model):
                rough = logprobs_of(model, ids)
            if rough[len(prompt) - 1 : -1].argmax(-1).tolist() != tokens:
                return None
            seen = top.indices[:, :TOP]
            bf16_error = max(bf16_error, (rough[len(prompt) - 1 : -1] - steps).gather(1, seen).abs().max().item())
        nexts = torch.tensor(prompt[1:]).unsqueeze(1)
        records.append({
            "prompt": prompt,
            "prompt_logprobs": floats(lp[: len(prompt) - 1].gather(1, nexts).squeeze(1)) if len(prompt) > 1 else [],
            "tokens": tokens,
            "logprobs": floats(top.values[:, 0]),
            "top_ids": top.indices[:, :TOP].tolist(),
            "top_logprobs": [floats(row) for row in top.values[:, :TOP]],
            "min_margin": round(margins.min().item(), 6),
        })  # fmt: skip
    if bf16_error > 1.8e-2:
        return None
    for r in records:
        assert greedy(model, r["prompt"]) == r["tokens"]
    return model, records, bf16_error


def floats(values):
    """Float32 values with enough digits to tell them apart at 1e-6."""
    return [round(v, 7) for v in values.tolist()]


def hub_style(config):
    """Rewrites a transformers 5 config dict into the style most published models have."""
    config = dict(config)
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.45.2"
    config.pop("layer_types", None)
    if config["model_type"] == "llama" and config["rope_scaling"] is None:
        del config["head_dim"]  # older Llama configs leave it to hidden_size / num_attention_heads
    if config["model_type"] == "qwen2":
        config["sliding_window"] = 64  # published Qwen2 configs name a window and switch it off beside it
    return dict(sorted(config.items()))


def write_model(case, model, folder):
    """config.json and the weights, as one file or as shards with an index."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stored = model.to(DTYPES[case.dtype])
    total = sum(p.numel() * p.element_size() for p in stored.parameters())
    stored.save_pretrained(folder, max_shard_size=total // case.shards + total // 8 if case.shards > 1 else "1GB")
    config = json.loads((folder / "config.json").read_text())
    if case.config_style == "hub":
        config = hub_style(config)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) == case.shards, shards


def check_reload(folder, records):
    """The directory, read back by transformers, says what golden.json says."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for r in records:
        lp = logprobs_of(model, r["prompt"] + r["tokens"])[len(r["prompt"]) - 1 : -1]
        worst = (lp.gather(1, torch.tensor(r["top_ids"])) - torch.tensor(r["top_logprobs"])).abs().max().item()
        assert lp.argmax(-1).tolist() == r["tokens"] and worst < 1e-5, (folder, worst)


def make(name):
    case = CASES[name]
    for seed in SEEDS:
        found = try_seed(case, seed)
        if found:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear margins")
    model, records, bf16_error = found
    folder = HERE / name
    write_model(case, model, folder)
    golden = {
        "case": name, "architecture": model.config.architectures[0], "weights": case.dtype, "arithmetic": "float32",
        "config_style": case.config_style, "seed": seed, "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0], "min_margin": min(r["min_margin"] for r in records),
        "bf16_activation_error": round(bf16_error, 6), "prompts": records,
    }  # fmt: skip
    lines = ",\n".join("  " + json.dumps(r) for r in records)
    head = json.dumps({k: v for k, v in golden.items() if k != "prompts"})
    (folder / "golden.json").write_text(head[:-1] + ', "prompts": [\n' + lines + "\n]}\n")
    json.loads((folder / "golden.json").read_text())
    check_reload(folder, records)
    size = sum(f.stat().st_size for f in folder.iterdir()) // 1024
    params = sum(p.numel() for p in model.parameters())
    print(f"{name}: seed {seed}, {params} parameters, margin {golden['min_margin']:.3f}, "
          f"bf16 error {bf16_error:.4f}, {size} KiB", flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:] or CASES:
        make(name)
