//! What the cluster is compared with: the same model in one process, one sequence at a time, without cluster code.

use std::path::Path;

use engine::{Engine, EngineConfig, Quantization, generate, prompt_scores};
use kernels::Isa;
use kv::BlockPool;
use text::{ChatTemplate, Message, RenderOptions, Tokenizer};
use types::{GenerateSpec, SampledToken, SamplingParams, TokenId};

/// One engine and the text around it.
pub struct Oracle {
    engine: Engine,
    pool: BlockPool,
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Oracle {
    pub fn load(model: &Path) -> Self {
        Self::quantized(model, None)
    }

    /// With packed weights.
    pub fn quantized(model: &Path, quantization: Option<Quantization>) -> Self {
        Self::new(Isa::from_env().expect("a level of this machine"), model, quantization)
    }

    /// With the arithmetic of `isa`.
    pub fn on(isa: Isa, model: &Path) -> Self {
        Self::new(isa, model, None)
    }

    fn new(isa: Isa, model: &Path, quantization: Option<Quantization>) -> Self {
        let config = EngineConfig {
            model_dir: model.to_owned(),
            tensor_parallel_size: 1,
            threads: 1,
            block_size: 16,
            quantization,
            pack_cache: None,
            kv_dtype: None,
            kv_bytes: Some(64 << 20),
            max_model_len: None,
            max_num_seqs: 16,
            max_num_batched_tokens: 4096,
        };
        let engine = Engine::load_on(isa, &config, &mut |_| {}).expect("the model loads");
        let pool = BlockPool::new(engine.limits().blocks_total, config.block_size);
        let tokenizer = Tokenizer::load(model).expect("the tokenizer loads");
        Self { engine, pool, tokenizer, template: ChatTemplate::load(model).expect("the template loads") }
    }

    /// Tokens of a conversation with one question, ready for the answer.
    pub fn chat_prompt(&self, question: &str) -> Vec<TokenId> {
        let template = self.template.as_ref().expect("a chat model");
        let message = Message { role: "user".into(), content: Some(question.into()), ..Message::default() };
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let text = template.render(&[message], &options).expect("it renders");
        self.tokenizer.encode(&text, false).expect("it tokenises")
    }

    /// Every choice's tokens, the whole prompt in one step.
    pub fn generate(&mut self, prompt: Vec<TokenId>, sampling: &SamplingParams, n: u32) -> Vec<Vec<SampledToken>> {
        let spec = GenerateSpec {
            prompt: prompt.into(),
            output: Vec::new(),
            choices: 0..n,
            sampling: sampling.clone(),
            cache_salt: Vec::new(),
        };
        generate(&mut self.engine, &self.pool, &spec, 4096).expect("the oracle generates")
    }

    /// Which token the model would choose at each place of `answer`, after what stands before it.
    pub fn choices(&mut self, prompt: &[TokenId], answer: &str) -> Vec<TokenId> {
        let answer = self.tokenizer.encode(answer, false).expect("it tokenises");
        let all = [prompt, &answer].concat();
        let scores = prompt_scores(&mut self.engine, &self.pool, &all, 1, 4096).expect("the oracle scores");
        scores[prompt.len() - 1..].iter().map(|score| score.top[0].0).collect()
    }

    /// The text of tokens, special ones left out, as a client sees it.
    pub fn text(&self, tokens: &[SampledToken]) -> String {
        let ids: Vec<_> = tokens.iter().map(|token| token.id).collect();
        self.tokenizer.decode(&ids, true)
    }

    /// The greedy answer to a question.
    pub fn answer(&mut self, question: &str, max_tokens: u32) -> String {
        let greedy = SamplingParams { max_tokens, ..SamplingParams::default() };
        let choices = self.generate(self.chat_prompt(question), &greedy, 1);
        self.text(&choices[0])
    }
}
