//! The CPU-only api-server: OpenAI in, a prefill and a decode chosen, text streamed out.
