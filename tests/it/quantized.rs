use engine::Quantization;
use serde_json::json;
use tests::{Oracle, ProcessCluster, demo_model};
use types::TokenId;

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");

/// The documented questions and answers of the demo model.
pub(crate) fn questions() -> Vec<(String, String)> {
    let file = std::fs::read_to_string(demo_model().join("questions.json")).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_str(&file).unwrap();
    let text = |q: &serde_json::Value, key: &str| q[key].as_str().unwrap().to_owned();
    list.iter().map(|q| (text(q, "question"), text(q, "answer"))).collect()
}

/// The token that packed weights find most probable against that of the weights as they are stored, at every place of every answer.
#[test]
fn packed_weights_mostly_choose_the_same_tokens() {
    let choices = |quantization| {
        let mut oracle = Oracle::quantized(&demo_model(), quantization);
        let answers = questions().into_iter().map(|(question, answer)| {
            let prompt = oracle.chat_prompt(&question);
            oracle.choices(&prompt, &answer)
        });
        answers.flatten().collect::<Vec<TokenId>>()
    };
    let stored = choices(None);
    for (quantization, least) in [(Quantization::Int8, 0.99), (Quantization::Int4, 0.97)] {
        let packed = choices(Some(quantization));
        assert_eq!(packed.len(), stored.len());
        let equal = packed.iter().zip(&stored).filter(|(packed, stored)| packed == stored).count();
        let share = equal as f64 / stored.len() as f64;
        println!("{quantization}: {equal} of {} tokens agree, {:.2} %", stored.len(), 100.0 * share);
        assert!(stored.len() > 5000 && share >= least, "{quantization}: {equal} of {}", stored.len());
    }
}

/// P and D pack the same weights: the text is that of one process that does so.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_packed_weights_gives_the_single_process_text() {
    for quantization in [Quantization::Int8, Quantization::Int4] {
        let cluster =
            ProcessCluster::up(PDSERVE, &["--quantization", quantization.as_str(), "--tensor-parallel-size", "2"]);
        let mut oracle = Oracle::quantized(&demo_model(), Some(quantization));
        for (question, _) in questions().iter().step_by(60) {
            let body = json!({"model": "pdserve-demo", "temperature": 0, "max_tokens": 200, "messages": [{"role": "user", "content": question}]});
            let answer = cluster.client().post("/v1/chat/completions", &body).await;
            assert_eq!(answer.text(), oracle.answer(question, 200), "{quantization}: {question}");
        }
    }
}
