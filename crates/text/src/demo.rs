//! The whole room on the demo model's own files.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use crate::{ChatTemplate, Detokenizer, Message, RenderOptions, Tokenizer};

static MODEL: LazyLock<PathBuf> = LazyLock::new(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pdserve/model"));
static OURS: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::load(&MODEL).unwrap());
static THEIRS: LazyLock<tokenizers::Tokenizer> =
    LazyLock::new(|| tokenizers::Tokenizer::from_file(MODEL.join("tokenizer.json")).unwrap());

#[test]
fn text_goes_through_the_tokenizer_and_back() {
    for text in ["What is pdserve?", " leading and trailing ", "äöü 你好 😀\n\ttabs", "a\u{0}b", ""] {
        let ids = OURS.encode(text, false).unwrap();
        assert_eq!(OURS.decode(&ids, false), text);
        assert_eq!(ids, THEIRS.encode(text, false).unwrap().get_ids());
        assert_eq!(ids.iter().flat_map(|id| OURS.token_bytes(*id)).collect::<Vec<_>>(), text.as_bytes());
    }
}

/// `questions.json` says how many tokens each prompt has according to transformers.
#[test]
fn documented_questions_become_the_prompts_of_transformers() {
    let template = ChatTemplate::load(&MODEL).unwrap().expect("the demo model chats");
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let json = std::fs::read_to_string(MODEL.join("questions.json")).unwrap();
    let questions: Vec<serde_json::Value> = serde_json::from_str(&json).unwrap();
    assert!(!questions.is_empty());
    for entry in questions {
        let content = entry["question"].as_str().map(str::to_owned);
        let message = Message { role: "user".into(), content, ..Message::default() };
        let ids = OURS.encode(&template.render(&[message], &options).unwrap(), false).unwrap();
        assert_eq!(Some(ids.len() as u64), entry["prompt_tokens"].as_u64(), "{entry}");
        assert!(OURS.is_special(ids[0]), "{entry}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn pieces_join_to_the_whole_decoding(
        ids in prop::collection::vec(0..OURS.vocab_size() as u32 + 2, 0..60),
        skip_special: bool,
    ) {
        let mut detokenizer = Detokenizer::new(OURS.clone(), skip_special);
        let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        text.push_str(&detokenizer.finish());
        prop_assert_eq!(&text, &OURS.decode(&ids, skip_special));
        prop_assert_eq!(text, THEIRS.decode(&ids, skip_special).unwrap());
    }
}
