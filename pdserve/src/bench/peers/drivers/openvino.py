# OpenVINO GenAI's continuous batching: steps as long as the longest prompt, no prefix cache.
import random
import time

VOCAB = 20000


def start(setting):
    import openvino_genai as g

    scheduler = g.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_batched_tokens = max(setting["batch_tokens_max"], 256)
    scheduler.max_num_seqs = max(setting["rows_max"], 1)
    scheduler.enable_prefix_caching = False
    scheduler.dynamic_split_fuse = True
    pipeline = g.ContinuousBatchingPipeline(
        setting["model"], scheduler, "CPU", {"INFERENCE_NUM_THREADS": setting["threads"]}
    )
    return f"OpenVINO GenAI {g.__version__}", [g, pipeline, 0]


def step(engine, rows, before, new):
    import numpy
    import openvino

    g, pipeline, _ = engine
    config = g.GenerationConfig()
    config.max_new_tokens = 34 if before else 1
    config.ignore_eos = True
    handles = []
    for _ in range(rows):
        ids = numpy.array([[random.randrange(100, VOCAB) for _ in range(before or new)]], dtype=numpy.int64)
        engine[2] += 1
        handles.append(pipeline.add_request(engine[2], openvino.Tensor(ids), config))
    # The first step computes the prompts; with a context before the token it is not what is measured.
    begun = time.perf_counter()
    pipeline.step()
    prompt = time.perf_counter() - begun
    spent = []
    while pipeline.has_non_finished_requests():
        begun = time.perf_counter()
        pipeline.step()
        spent.append(time.perf_counter() - begun)
    if not before:
        assert not spent, f"the prompt took {len(spent) + 1} steps"
        return prompt
    return sum(spent[:32]) / len(spent[:32])
