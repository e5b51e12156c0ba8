# OpenVINO GenAI's continuous batching behind just enough of OpenAI's HTTP for `bench serve --url`: its package has no server.
# Run by hand: python openvino_http.py MODEL-DIR --port 8001 --threads 2
import argparse
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy
import openvino
import openvino_genai as g


class Engine:
    """One thread steps the pipeline; a request is a queue of lists of token ids that ends with None."""

    def __init__(self, args):
        scheduler = g.SchedulerConfig()
        scheduler.cache_size = args.cache_gib
        scheduler.max_num_batched_tokens = args.batch_tokens
        scheduler.max_num_seqs = 256
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = True
        self.pipeline = g.ContinuousBatchingPipeline(
            args.model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": args.threads}
        )
        self.waiting = queue.Queue()
        self.running = {}
        threading.Thread(target=self.run, daemon=True).start()

    def ask(self, ids, new):
        tokens = queue.Queue()
        self.waiting.put((ids, new, tokens))
        return tokens

    def run(self):
        number = 0
        while True:
            while not self.waiting.empty() or not self.running:
                ids, new, tokens = self.waiting.get()
                config = g.GenerationConfig(max_new_tokens=new, ignore_eos=True, do_sample=False)
                prompt = openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
                number += 1
                self.running[number] = (self.pipeline.add_request(number, prompt, config), [new], tokens)
            self.pipeline.step()
            for handle, left, tokens in list(self.running.values()):
                while handle.can_read():
                    for output in handle.read().values():
                        tokens.put(output.generated_ids)
                        left[0] -= len(output.generated_ids)
            for number_of, (_, left, tokens) in list(self.running.items()):
                if left[0] <= 0:
                    tokens.put(None)
                    del self.running[number_of]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        card = {"id": "openvino", "object": "model", "max_model_len": 32768}
        body = json.dumps({"object": "list", "data": [card]}).encode()
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tokens = self.server.engine.ask(body["prompt"], body["max_tokens"])
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        sent = 0
        while (ids := tokens.get()) is not None:
            sent += len(ids)
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": sent}
            text = self.server.tokenizer.decode(ids)
            self.event(json.dumps({"choices": [{"index": 0, "text": text}], "usage": usage}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data):
        line = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))

    def log_message(self, *_):
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--cache-gib", type=int, default=2)
    args = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    server.daemon_threads = True
    server.engine = Engine(args)
    server.tokenizer = server.engine.pipeline.get_tokenizer()
    print(f"OpenVINO GenAI {g.__version__} on http://127.0.0.1:{args.port}", flush=True)
    server.serve_forever()


main()
