# vLLM on CPU, engine in this process, steps as long as the longest prompt, no prefix cache, no compilation of graphs.
import os
import random
import time


def start(setting):
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{setting['threads'] - 1}")
    import vllm

    llm = vllm.LLM(
        model=setting["model"],
        dtype="bfloat16",
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=setting["tokens_max"] + 40,
        max_num_batched_tokens=max(setting["batch_tokens_max"], setting["tokens_max"] + 40),
        max_num_seqs=max(setting["rows_max"], 1),
        async_scheduling=False,
        disable_log_stats=True,
    )
    return f"vLLM {vllm.__version__}", [vllm, llm, llm.llm_engine.model_config.get_vocab_size(), 0]


def step(engine, rows, before, new):
    vllm, llm, vocab, _ = engine
    params = vllm.SamplingParams(temperature=0, max_tokens=34 if before else 1, ignore_eos=True, detokenize=False)
    for _ in range(rows):
        ids = [random.randrange(100, vocab // 2) for _ in range(before or new)]
        engine[3] += 1
        llm.llm_engine.add_request(str(engine[3]), {"prompt_token_ids": ids}, params)
    # The first step computes the prompts; with a context before the token it is not what is measured.
    begun = time.perf_counter()
    llm.llm_engine.step()
    prompt = time.perf_counter() - begun
    spent = []
    while llm.llm_engine.has_unfinished_requests():
        begun = time.perf_counter()
        llm.llm_engine.step()
        spent.append(time.perf_counter() - begun)
    if not before:
        assert not spent, f"the prompt took {len(spent) + 1} steps"
        return prompt
    return sum(spent[:32]) / len(spent[:32])
