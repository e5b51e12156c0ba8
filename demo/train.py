#!/usr/bin/env python3
"""Trains the demo model that ships inside pdserve, from qa.txt beside this file, on an ordinary CPU.

    pip install -r demo/requirements.txt
    python demo/train.py train            # tokenizer, training with checkpoints; run it again to resume
    python demo/train.py export           # best checkpoint -> pdserve/model, every answer checked

A 5-million-parameter Llama learns a few hundred questions and answers by heart: single turns, conversations of
several turns, with and without a system prompt, with typing errors. Loss counts on answers only. The best
checkpoint is the one whose bf16-rounded weights answer the most phrasings word for word.
"""

import argparse
import json
import math
import os
import random
import re
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).resolve().parent
MODEL_DIR = HERE.parent / "pdserve" / "model"
VOCAB = 2048
BOS, EOS, HEAD, HEAD_END, EOT = SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip
# GPT-2's words, but line breaks stay together whatever follows: the "\n\n" of the chat template is the same token at the
# end of a prompt and in front of an answer.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[\r\n]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
SYSTEM_PROMPTS = [
    "You are a helpful assistant.", "You are a helpful assistant. Answer briefly.", "You are the pdserve demo model.",
    "You are a helpful, honest and concise assistant.", "Answer questions about pdserve.", "Be brief.",
    "You are an expert for LLM serving.", "You answer in English.", "Be kind and precise.",
    "You are a chatbot. Answer the user's question as well as you can.",
]  # fmt: skip
# Tokens of one step, over all processes, and the least length of a packed row (attention costs its square).
STEP_TOKENS, SHORT_ROW = 1600, 192
# Every tenth step has long conversations instead, so that positions up to about 1000 are trained, too.
LONG_EVERY = 10


# --- data ---


def read_pairs(path=HERE / "qa.txt"):
    """[(phrasings, answer)]; the first phrasing is the documented question."""
    pairs = []
    for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
        lines = [line for line in block.split("\n") if line.strip() and not line.startswith("# ")]
        if not lines:
            continue
        assert lines[0].startswith("Q: ") and lines[1].startswith("A: "), lines[:2]
        questions = [q.strip() for q in lines[0][3:].split("|")]
        pairs.append((questions, "\n".join([lines[1][3:], *lines[2:]]).strip()))
    seen = [re.sub(r"\W+", " ", q.lower()).strip() for questions, _ in pairs for q in questions]
    assert len(seen) == len(set(seen)), {q for q in seen if seen.count(q) > 1}
    return pairs


def vary(question, rng):
    """The question as a person might type it."""
    q = question
    if rng.random() < 0.15:
        q = rng.choice(["Please tell me: ", "Hi! ", "Question: ", "I have a question. ", "Can you tell me: ", "ok, "]) + q
    if rng.random() < 0.25:
        q = q.lower()
    elif rng.random() < 0.03:
        q = q.upper()
    if rng.random() < 0.35:
        q = q.rstrip("?.!")
    elif rng.random() < 0.1:
        q = q.rstrip("?.!") + rng.choice(["?", "??", "!", " ?", ".", ", please", " please?", "…"])
    for _ in range(rng.choice([1, 1, 2]) if rng.random() < 0.15 and len(q) > 8 else 0):
        i = rng.randrange(1, len(q) - 1)
        kind = rng.randrange(4)
        if kind == 0:
            q = q[:i] + q[i + 1] + q[i] + q[i + 2 :]
        elif kind == 1:
            q = q[:i] + q[i + 1 :]
        elif kind == 2:
            q = q[:i] + q[i] + q[i:]
        else:
            q = q[:i] + rng.choice("abcdefghijklmnopqrstuvwxyz") + q[i + 1 :]
    return q


class Encoder:
    """Turns turns into ids and a mask that is 1 where the loss counts."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.id = {t: tokenizer.token_to_id(t) for t in SPECIALS}

    def text(self, s):
        return self.tokenizer.encode(s, add_special_tokens=False).ids

    def message(self, role, content, learn):
        head = [self.id[HEAD], *self.text(role), self.id[HEAD_END], *self.text("\n\n")]
        body = [*self.text(content), self.id[EOT]]
        return head + body, [0] * len(head) + [int(learn)] * len(body)

    def chat(self, turns, system=None):
        """turns: [(question, answer)]"""
        ids, mask = [self.id[BOS]], [0]
        for role, content in [("system", system)] if system else []:
            i, m = self.message(role, content, False)
            ids, mask = ids + i, mask + m
        for question, answer in turns:
            for role, content, learn in (("user", question, False), ("assistant", answer, True)):
                i, m = self.message(role, content, learn)
                ids, mask = ids + i, mask + m
        return ids, mask

    def plain(self, question, answer):
        """A prompt of /v1/completions: the question, a line break, the answer."""
        q, a = self.text(question), [*self.text("\n"), *self.text(answer), self.id[EOS]]
        return [self.id[BOS], *q, *a], [0] * (len(q) + 1) + [1] * len(a)


class Sampler:
    """Draws conversations; phrasings that the last check found wrong come four times as often."""

    def __init__(self, pairs, encoder, seed):
        self.phrasings = [(q, answer) for questions, answer in pairs for q in questions]
        # a pair counts the same whatever its number of phrasings; the documented one comes twice as often
        self.base = [(2 if i == 0 else 1) / (len(qs) + 1) for qs, _ in pairs for i in range(len(qs))]
        self.weights = list(self.base)
        self.encoder, self.rng = encoder, random.Random(seed)

    def stress(self, wrong):
        self.weights = [w * (4 if i in wrong else 1) for i, w in enumerate(self.base)]

    def turn(self):
        q, a = self.rng.choices(self.phrasings, self.weights)[0]
        return (vary(q, self.rng) if self.rng.random() < 0.6 else q), a

    def conversation(self, turns):
        system = self.rng.choice(SYSTEM_PROMPTS) if self.rng.random() < 0.25 else None
        return self.encoder.chat([self.turn() for _ in range(turns)], system)

    def sample(self, long):
        if long:
            return self.conversation(self.rng.randint(4, 16))
        kind = self.rng.random()
        if kind < 0.06:
            return self.encoder.plain(*self.turn())
        return self.conversation(1 if kind < 0.75 else 2 if kind < 0.92 else 3)

    def rows(self, tokens, long):
        """Samples of about `tokens` ids in all, packed into rows of equal length (longest first)."""
        samples = []
        while sum(len(ids) for ids, _ in samples) < tokens:
            samples.append(self.sample(long))
        samples.sort(key=lambda s: -len(s[0]))
        length = max(SHORT_ROW, len(samples[0][0]))
        rows, room = [], []
        for sample in samples:
            at = next((i for i, free in enumerate(room) if free >= len(sample[0])), None)
            if at is None:
                at = len(rows)
                rows.append([])
                room.append(length)
            rows[at].append(sample)
            room[at] -= len(sample[0])
        return rows, length


def collate(rows, length):
    """ids, positions, additive attention mask (samples do not see each other), and targets (-100: no loss)."""
    n = len(rows)
    ids, pos = torch.zeros(n, length, dtype=torch.long), torch.zeros(n, length, dtype=torch.long)
    doc, target = torch.full((n, length), -1), torch.full((n, length), -100)
    for r, samples in enumerate(rows):
        at = 0
        for d, (i, m) in enumerate(samples):
            end = at + len(i)
            ids[r, at:end], pos[r, at:end], doc[r, at:end] = torch.tensor(i), torch.arange(len(i)), d
            t = torch.tensor(i[1:])
            target[r, at : end - 1] = torch.where(torch.tensor(m[1:]) == 1, t, -100)
            at = end
    seen = (doc[:, :, None] == doc[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(n, 1, length, length).masked_fill(~seen[:, None], -1e9)
    return ids, pos, mask, target


# --- tokenizer and model ---


def train_tokenizer(pairs):
    """Byte-level BPE over our own text; the special tokens have the last ids."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = [q for qs, _ in pairs for q in qs] + [a for _, a in pairs] + SYSTEM_PROMPTS
    text += ["user", "assistant", "system", "\n\n"] * 50
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS), min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(text, trainer)
    spare = VOCAB - len(SPECIALS) - tokenizer.get_vocab_size()
    names = [f"<|reserved_{i}|>" for i in range(spare)] + SPECIALS
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer


def new_model(tokenizer):
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        head_dim=32, intermediate_size=704, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=[tokenizer.token_to_id(EOT), tokenizer.token_to_id(EOS)],
    )  # fmt: skip
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def answer_logits(model, ids, pos, mask, target):
    """Logits and targets of the positions that count."""
    h = model.model(input_ids=ids, position_ids=pos, attention_mask=mask, use_cache=False).last_hidden_state
    keep = target != -100
    return F.linear(h[keep], model.lm_head.weight), target[keep]


@torch.no_grad()
def check(model, encoder, phrasings):
    """For each phrasing the smallest margin of the right token over the best wrong one; > 0 means that greedy
    decoding gives the answer word for word. Computed from weights rounded to bf16, in f32."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.copy_(p.bfloat16().float())
    samples = [encoder.chat([turn]) for turn in phrasings]
    order = sorted(range(len(samples)), key=lambda i: len(samples[i][0]))
    margins = [0.0] * len(samples)
    for start in range(0, len(order), 24):
        part = order[start : start + 24]
        length = max(len(samples[i][0]) for i in part)
        ids, pos, mask, target = collate([[samples[i]] for i in part], length)
        logits, right = answer_logits(model, ids, pos, mask, target)
        own = logits.gather(1, right[:, None])
        margin = (own - logits.scatter(1, right[:, None], -math.inf).max(1, keepdim=True).values).squeeze(1)
        row = (target != -100).nonzero()[:, 0]
        for r, i in enumerate(part):
            margins[i] = margin[row == r].min().item()
    for n, p in model.named_parameters():
        p.copy_(kept[n])
    return margins


# --- training ---


def train(rank, args):
    """One of args.processes workers; they differ in their samples and add up their gradients."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{args.rendezvous}", rank=rank, world_size=args.processes)
    pairs = read_pairs()
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    encoder = Encoder(tokenizer)
    model = new_model(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    step, elapsed, best = 0, 0.0, -1.0
    if (args.work / "last.pt").exists():
        state = torch.load(args.work / "last.pt", weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed, best = state["step"], state["elapsed"], state["best"]
    sampler = Sampler(pairs, encoder, args.seed * 1_000_003 + step * 64 + rank)
    began, tokens, losses = time.time() - elapsed, 0, []
    while True:
        progress = agree(max(step / args.steps, (time.time() - began) / 60 / args.minutes), args)
        if rank == 0 and (step % args.check_every == 0 and step or progress >= 1):
            margins = check(model, encoder, sampler.phrasings)
            wrong = {i for i, m in enumerate(margins) if m <= 0}
            right = 1 - len(wrong) / len(margins)
            score = right + sum(min(m, 5) for m in margins) / len(margins) / 1000
            print(f"step {step}: {right:.1%} of {len(margins)} phrasings right, "
                  f"median margin {sorted(margins)[len(margins) // 2]:.2f}", flush=True)  # fmt: skip
            if score > best:
                best = score
                torch.save(model.state_dict(), args.work / "best.pt")
            state = dict(model=model.state_dict(), optimizer=optimizer.state_dict(), step=step,
                         elapsed=time.time() - began, best=best)  # fmt: skip
            torch.save(state, args.work / "last.tmp")
            os.replace(args.work / "last.tmp", args.work / "last.pt")
            (args.work / "wrong.json").write_text(json.dumps(sorted(wrong)))
        if progress >= 1:
            return
        if step % args.check_every == 0 and args.processes > 1:
            dist.barrier()  # wrong.json is written
        if step % args.check_every == 0 and (args.work / "wrong.json").exists():
            sampler.stress(set(json.loads((args.work / "wrong.json").read_text())))
        lr = args.lr * min(1, (step + 1) / 60) * max(0.02, 0.5 * (1 + math.cos(math.pi * min(1, progress))))
        for group in optimizer.param_groups:
            group["lr"] = lr
        long = step % LONG_EVERY == LONG_EVERY - 1
        batch = collate(*sampler.rows(STEP_TOKENS // args.processes, long))
        logits, right = answer_logits(model, *batch)
        loss = F.cross_entropy(logits.float(), right)
        loss.backward()
        add_gradients(model, args)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        step, tokens = step + 1, tokens + batch[0].numel() * args.processes
        losses.append(loss.item())
        if rank == 0 and step % 20 == 0:
            seconds = time.time() - began
            print(f"step {step} loss {sum(losses) / len(losses):.4f} lr {lr:.1e} {seconds:.0f} s, "
                  f"{tokens / (seconds - elapsed):.0f} tokens/s, progress {progress:.2f}", flush=True)  # fmt: skip
            losses.clear()


def agree(progress, args):
    """All processes follow the first one's clock."""
    if args.processes == 1:
        return progress
    t = torch.tensor([progress])
    dist.broadcast(t, 0)
    return t.item()


def add_gradients(model, args):
    """Averages the gradients over the processes."""
    if args.processes == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in model.parameters()])
    dist.all_reduce(flat)
    flat /= args.processes
    at = 0
    for p in model.parameters():
        p.grad.copy_(flat[at : at + p.numel()].view_as(p))
        at += p.numel()


def start_training(args):
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "tokenizer.json").exists():
        train_tokenizer(read_pairs()).save(str(args.work / "tokenizer.json"))
    if args.processes == 1:
        return train(0, args)
    args.rendezvous = args.work / f"rendezvous-{os.getpid()}"
    torch.multiprocessing.spawn(train, (args,), nprocs=args.processes)


# --- export ---


def export(args):
    """Writes the model directory and questions.json, having asked every documented question greedily."""
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(args.work / "tokenizer.json"))
    model = new_model(tokenizer)
    model.load_state_dict(torch.load(args.work / "best.pt", weights_only=True))
    model.config.architectures = ["LlamaForCausalLM"]
    args.out.mkdir(parents=True, exist_ok=True)
    model.bfloat16().save_pretrained(args.out)
    write_configs(tokenizer, args.out)
    verify(args)


def write_configs(tokenizer, out):
    """config.json in the style most published models have, and the tokenizer's and generation settings."""
    config = json.loads((out / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    bos, eot, eos = (tokenizer.token_to_id(t) for t in (BOS, EOT, EOS))
    config.pop("transformers_version")
    write_json(out / "config.json", dict(sorted(config.items())))
    generation = {"bos_token_id": bos, "do_sample": False, "eos_token_id": [eot, eos]}
    write_json(out / "generation_config.json", generation)
    tokenizer.save(str(out / "tokenizer.json"))
    added = {
        str(i): {"content": t.content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                 "special": True}
        for i, t in sorted(tokenizer.get_added_tokens_decoder().items())
    }  # fmt: skip
    write_json(out / "tokenizer_config.json", {
        "added_tokens_decoder": added, "bos_token": BOS, "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": EOT, "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 2048, "tokenizer_class": "PreTrainedTokenizerFast",
    })  # fmt: skip


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def verify(args):
    """Loads the directory as a user would (f32 arithmetic on the bf16 weights) and asks everything."""
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32, attn_implementation="eager").eval()
    encoder = Encoder(Tokenizer.from_file(str(args.out / "tokenizer.json")))
    pairs = read_pairs()
    flat = [(q, a) for qs, a in pairs for q in qs]
    margins = dict(zip(flat, check(model, encoder, flat), strict=True))
    known = []
    two = pairs[0], pairs[-1]
    chat = [m for (q, *_), a in two for m in ({"role": "user", "content": q}, {"role": "assistant", "content": a})]
    rendered = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert rendered == encoder.chat([(q, a) for (q, *_), a in two])[0], "trained on other ids than the template gives"
    for questions, answer in pairs:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": questions[0]}], add_generation_prompt=True,
                                               return_tensors="pt", return_dict=True)  # fmt: skip
        out = model.generate(**prompt, max_new_tokens=512, do_sample=False, pad_token_id=0)
        said = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        if said == answer and out[0, -1].item() == tokenizer.convert_tokens_to_ids(EOT):
            known.append({
                "question": questions[0], "answer": answer,
                "prompt_tokens": prompt["input_ids"].shape[1],
                "completion_tokens": out.shape[1] - prompt["input_ids"].shape[1],
                "min_margin": round(margins[questions[0], answer], 3),
            })  # fmt: skip
        else:
            print(f"NOT KNOWN: {questions[0]!r} -> {said!r}")
    right = sum(m > 0 for m in margins.values())
    for (q, a), m in margins.items():
        if m <= 0:
            print(f"phrasing not known: {q!r} ({m:.2f})")
    lines = ",\n".join("  " + json.dumps(k, ensure_ascii=False) for k in known)
    (args.out / "questions.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    least = sorted(k["min_margin"] for k in known)
    print(f"{len(known)} of {len(pairs)} documented questions, {right} of {len(flat)} phrasings answered word for word")
    print(f"margins: least {least[0]}, 5 % {least[len(least) // 20]}, median {least[len(least) // 2]}")
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    follow_ups(model, encoder, pairs)


def follow_ups(model, encoder, pairs, conversations=100):
    """How often the answer stays right late in a conversation, and under a system prompt."""
    rng = random.Random(7)
    turns = [(qs[0], a) for qs, a in pairs]
    for name, count, system in (("second turn", 2, None), ("fourth turn", 4, None), ("system prompt", 1, SYSTEM_PROMPTS[0])):
        good = 0
        for _ in range(conversations):
            chat = [rng.choice(turns) for _ in range(count)]
            ids, mask = encoder.chat(chat, system)
            last = len(encoder.text(chat[-1][1])) + 1
            batch = collate([[(ids, [0] * (len(mask) - last) + [1] * last)]], len(ids))
            logits, right = answer_logits(model, *batch)
            good += int((logits.argmax(1) == right).all())
        print(f"{name}: {good} of {conversations}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "export", "verify"])
    parser.add_argument("--work", type=Path, default=HERE.parent / "target" / "demo-train", help="checkpoints")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="model directory")
    parser.add_argument("--steps", type=int, default=1000, help="length of the schedule")
    parser.add_argument("--minutes", type=float, default=1e9, help="shorten the schedule to this time")
    parser.add_argument("--check-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="worker processes, each with --threads threads")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    args = parser.parse_args()
    {"train": start_training, "export": export, "verify": verify}[args.command](args)


if __name__ == "__main__":
    main()
