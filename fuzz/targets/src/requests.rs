//! Bodies of HTTP requests.

use openai::{
    Bounds, ChatRequest, CompletionRequest, DetokenizeRequest, GenerateRequest, ResponsesRequest, TokenizeRequest,
};

/// The same bytes as the body of every route.
pub(crate) fn request(bytes: &[u8]) -> bool {
    let bounds = &Bounds::default();
    let taken = [
        CompletionRequest::parse(bytes, bounds).and_then(|request| request.validate(bounds)).is_ok(),
        ChatRequest::parse(bytes, bounds).and_then(|request| request.validate(bounds)).is_ok(),
        ResponsesRequest::read(bytes, bounds).is_ok(),
        GenerateRequest::read(bytes, bounds).is_ok(),
        TokenizeRequest::read(bytes, bounds).is_ok(),
        DetokenizeRequest::read(bytes, bounds).is_ok(),
    ];
    taken.contains(&true)
}

pub(crate) fn examples() -> Vec<Vec<u8>> {
    let bodies = [
        r#"{"model":"m","prompt":"hello","max_tokens":5,"n":2,"temperature":0.5,"stop":["a","b"],"seed":1,"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"prompt":[[1,2,3],[4]],"logprobs":2,"logit_bias":{"5":-1.5},"top_p":0.9,"top_k":5,"min_p":0.1,"presence_penalty":1,"frequency_penalty":-1,"best_of":3}"#,
        r#"{"model":"m","messages":[{"role":"system","content":"x"},{"role":"user","content":[{"type":"text","text":"\u00e9"}]}],"top_logprobs":3,"logprobs":true}"#,
        r#"{"input":"hello","max_output_tokens":4,"instructions":"short"}"#,
        r#"{"prompt":"text","max_tokens":3,"stream":false,"ignore_eos":true}"#,
        r#"{"tokens":[1,2,3]}"#,
    ];
    bodies.iter().map(|body| body.as_bytes().to_vec()).collect()
}
