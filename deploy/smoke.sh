#!/usr/bin/env bash
# Starts the product as a new user would, asks one question over HTTP, stops it with SIGINT, and checks that all of it ends.
# usage: deploy/smoke.sh PATH/TO/pdserve
set -euo pipefail
binary=${1:?usage: deploy/smoke.sh PATH/TO/pdserve}
port=${PORT:-19000}
log=$(mktemp)
"$binary" up --port "$port" >"$log" 2>&1 &
pid=$!
trap 'kill -TERM $pid 2>/dev/null || true; wait $pid 2>/dev/null || true; rm -f "$log"' EXIT

for _ in $(seq 300); do
    grep -q 'pdserve is ready' "$log" && break
    kill -0 "$pid" 2>/dev/null || { echo 'pdserve ended before it was ready:'; cat "$log"; exit 1; }
    sleep 0.1
done
cat "$log"
answer=$(curl -sS --max-time 30 "http://127.0.0.1:$port/v1/chat/completions" -H 'Content-Type: application/json' \
    -d '{"model": "pdserve-demo", "temperature": 0, "messages": [{"role": "user", "content": "What is prefill?"}]}')
echo "$answer"
case $answer in *'"finish_reason":"stop"'*) ;; *) echo 'no complete answer'; exit 1 ;; esac

kill -INT "$pid"
wait "$pid"
echo 'smoke: ok'
