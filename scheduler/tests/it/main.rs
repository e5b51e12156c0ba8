//! The scheduler in front of fake workers that speak the real protocol over loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

mod abuse; // what hostile clients do, by the ids of our scenarios
mod api; // what clients send and get
mod bounds; // clients that send or read too slowly
mod cancel; // clients that leave, streams that stay
mod failover; // workers that die, freeze, refuse
mod faulty; // workers that fail, are slow, or come and go
mod fuzz; // bodies made from /openapi.json
mod keys; // API keys and their limits
mod plain; // USE_OPENAI=0
mod readiness; // who is taken into the cluster, and what /ready says
mod responses; // /v1/responses with items, calls and stored answers
mod table; // a rank table that changes
mod tls; // HTTPS, and certificates that change
mod tools; // calls and thoughts in chat answers
