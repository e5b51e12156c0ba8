//! HTTP shapes of the OpenAI interface and their validation into types.
