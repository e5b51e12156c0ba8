# The short loop. `just` lists the recipes.

default:
    @just --list

# Everything that a change must pass.
check: fmt clippy test docs

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets -- -D warnings

test:
    cargo test --workspace

docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Start the demo cluster.
up *ARGS:
    cargo run --release -- up {{ARGS}}

# Thousands of simulated seconds under seeded faults; `just simulate --seed N` runs one seed again.
simulate *ARGS:
    cargo run --release -p simulation -- {{ARGS}}

# Licences, advisories, duplicate versions (needs cargo-deny).
deny:
    cargo deny check

# What CI runs.
ci:
    bash .ci/run
