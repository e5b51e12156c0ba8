use engine::Quantization;
use serde_json::json;
use tests::{Oracle, ProcessCluster, demo_model};
use types::{SamplingParams, TokenId};

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");

fn questions() -> Vec<String> {
    let file = std::fs::read_to_string(demo_model().join("questions.json")).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&file).unwrap();
    list.iter().map(|q| q["question"].as_str().unwrap().to_owned()).collect()
}

/// Greedy tokens of packed weights against those of the weights as they are stored, each after the same text.
#[test]
fn packed_weights_mostly_choose_the_same_tokens() {
    let mut oracle = Oracle::load(&demo_model());
    let greedy = SamplingParams { max_tokens: 200, ..SamplingParams::default() };
    let texts: Vec<(Vec<TokenId>, Vec<TokenId>)> = questions()
        .iter()
        .step_by(EVERY)
        .map(|question| {
            let prompt = oracle.chat_prompt(question);
            let answer = oracle.generate(prompt.clone(), &greedy, 1).remove(0);
            (prompt, answer.iter().map(|token| token.id).collect())
        })
        .collect();
    for (quantization, least) in [(Quantization::Int8, 0.99), (Quantization::Int4, 0.97)] {
        let mut packed = Oracle::quantized(&demo_model(), Some(quantization));
        let counts = texts.iter().map(|(prompt, answer)| packed.agreement(prompt, answer));
        let (equal, all) = counts.fold((0, 0), |sum, counts| (sum.0 + counts.0, sum.1 + counts.1));
        let share = equal as f64 / all as f64;
        println!("{quantization}: {equal} of {all} tokens agree, {:.2} %", 100.0 * share);
        assert!(all > 500 && share >= least, "{quantization}: {equal} of {all}");
    }
}

/// Every how many of the documented questions is asked.
const EVERY: usize = 8;

/// P and D pack the same weights: the text is that of one process that does so.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_packed_weights_gives_the_single_process_text() {
    for quantization in [Quantization::Int8, Quantization::Int4] {
        let cluster =
            ProcessCluster::up(PDSERVE, &["--quantization", quantization.as_str(), "--tensor-parallel-size", "2"]);
        let mut oracle = Oracle::quantized(&demo_model(), Some(quantization));
        for question in questions().iter().step_by(60) {
            let body = json!({"model": "pdserve-demo", "temperature": 0, "max_tokens": 200, "messages": [{"role": "user", "content": question}]});
            let answer = cluster.client().post("/v1/chat/completions", &body).await;
            assert_eq!(answer.text(), oracle.answer(question, 200), "{quantization}: {question}");
        }
    }
}
