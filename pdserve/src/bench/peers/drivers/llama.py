# llama.cpp through the llama_cpp package: its own batch interface, flash attention on, KV in f16.
import random
import time


def start(setting):
    import llama_cpp as l

    l.llama_backend_init()
    model = l.llama_model_load_from_file(setting["model"].encode(), l.llama_model_default_params())
    assert model, f"cannot load {setting['model']}"
    params = l.llama_context_default_params()
    params.n_ctx = setting["rows_max"] * (setting["tokens_max"] + 40)
    params.n_batch = max(2048, setting["tokens_max"])
    params.n_seq_max = setting["rows_max"]
    params.n_threads = params.n_threads_batch = setting["threads"]
    context = l.llama_init_from_model(model, params)
    assert context, "cannot make a context"
    vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))
    return f"llama.cpp (llama_cpp {l.__version__})", (l, context, vocab)


def decode(l, context, vocab, rows, position, count):
    batch = l.llama_batch_init(rows * count, 0, 1)
    batch.n_tokens = rows * count
    for row in range(rows):
        for index in range(count):
            at = row * count + index
            batch.token[at] = random.randrange(100, vocab // 2)
            batch.pos[at] = position + index
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = row
            batch.logits[at] = index == count - 1
    result = l.llama_decode(context, batch)
    l.llama_synchronize(context)
    l.llama_batch_free(batch)
    assert result == 0, f"llama_decode returned {result}"


def step(engine, rows, before, new):
    l, context, vocab = engine
    memory = l.llama_get_memory(context)
    l.llama_memory_clear(memory, True)
    for row in range(rows if before else 0):
        batch = l.llama_batch_init(before, 0, 1)
        batch.n_tokens = before
        for index in range(before):
            batch.token[index] = random.randrange(100, vocab // 2)
            batch.pos[index] = index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row
            batch.logits[index] = index == before - 1
        assert l.llama_decode(context, batch) == 0
        l.llama_batch_free(batch)
    spent, count = 0.0, 0
    while count == 0 or (spent < 0.5 and before and count < 32):
        begun = time.perf_counter()
        decode(l, context, vocab, rows, before + count, new)
        spent, count = spent + time.perf_counter() - begun, count + 1
    return spent / count
