#!/bin/sh
# Starts one instance of a cluster: whichever role its rank table names (scheduler, prefill or decode).
# All flags go to that role unchanged; everything else comes from the environment:
#
#   GLOBAL_RANK_TABLE_FILE_PATH   the cluster's table, the same for every instance
#   RANK_TABLE_FILE_PATH          this instance's own table
#   NODE_PORTS                    ports of all prefill, then all decode instances (unless the tables say them)
#   PDSERVE_CLUSTER_SECRET        the same for every instance; needed unless --host is a loopback address
#   USE_OPENAI                    scheduler: 1 = OpenAI API
#
# Example: start_servers.sh --model=/models/llama --tensor-parallel-size=2 --host=0.0.0.0 --port=8088
set -eu

: "${GLOBAL_RANK_TABLE_FILE_PATH:?set it to the global_ranktable_*.json that ranktable-tool wrote}"
: "${RANK_TABLE_FILE_PATH:?set it to the local_ranktable_*.json of this instance}"

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# Beside this script, then in PATH, then in a source tree that was built.
find_pdserve() {
    if [ -x "$here/pdserve" ]; then
        echo "$here/pdserve"
    elif command -v pdserve; then
        :
    elif [ -x "$here/../target/release/pdserve" ]; then
        echo "$here/../target/release/pdserve"
    else
        echo "start_servers.sh: no pdserve beside this script, in PATH or in target/release; fix: cargo build --release" >&2
        return 1
    fi
}

pdserve=$(find_pdserve)
role=$("$pdserve" ranktable role)

case $role in
    scheduler) exec "$pdserve" scheduler "$@" ;;
    prefill) exec "$pdserve" prefill-worker "$@" ;;
    decode) exec "$pdserve" decode-worker "$@" ;;
    *)
        echo "start_servers.sh: unknown role \"$role\"; fix: use the start_servers.sh that belongs to $pdserve" >&2
        exit 1
        ;;
esac
