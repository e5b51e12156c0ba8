use kernels::Isa;
use serde_json::json;
use tests::{Oracle, ProcessCluster, demo_model};
use types::TokenId;

use crate::quantized::questions;

const PDSERVE: &str = env!("CARGO_BIN_EXE_pdserve-under-test");

/// The token that is found most probable with inputs rounded to bf16 against that with inputs in f32, at every place of every answer.
#[test]
fn rounded_inputs_mostly_choose_the_same_tokens() {
    let choices = |isa| {
        let mut oracle = Oracle::on(isa, &demo_model());
        let answers = questions().into_iter().map(|(question, answer)| {
            let prompt = oracle.chat_prompt(&question);
            oracle.choices(&prompt, &answer)
        });
        answers.flatten().collect::<Vec<TokenId>>()
    };
    let vectors = *Isa::available().iter().rfind(|isa| !isa.as_str().starts_with("amx")).unwrap();
    let (exact, rounded) = (choices(vectors), choices(Isa::emulated()));
    let equal = rounded.iter().zip(&exact).filter(|(rounded, exact)| rounded == exact).count();
    println!("{equal} of {} tokens agree, {:.2} %", exact.len(), 100.0 * equal as f64 / exact.len() as f64);
    assert!(exact.len() > 5000 && rounded.len() == exact.len());
    assert!(equal as f64 / exact.len() as f64 >= 0.99, "{equal} of {}", exact.len());
}

/// P and D on emulated tiles, with two ranks each: the text is that of one process of one rank on them.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_on_tiles_gives_the_single_process_text() {
    let level = [("PDSERVE_ISA", "amx-emulated".to_owned())];
    let cluster = ProcessCluster::up_with(PDSERVE, &["--tensor-parallel-size", "2"], &level);
    let ready = cluster.client().get("/ready").await.body.to_string();
    assert_eq!(ready.matches(r#""instructions":"amx-emulated""#).count(), 2, "{ready}");
    let mut oracle = Oracle::on(Isa::emulated(), &demo_model());
    for (question, _) in questions().iter().step_by(40) {
        let body = json!({"model": "pdserve-demo", "temperature": 0, "max_tokens": 200, "messages": [{"role": "user", "content": question}]});
        let answer = cluster.client().post("/v1/chat/completions", &body).await;
        assert_eq!(answer.text(), oracle.answer(question, 200), "{question}");
    }
}
