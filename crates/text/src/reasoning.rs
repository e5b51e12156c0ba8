//! Parts what a model thinks, between `<think>` and `</think>`, from what it answers, whatever way the text was cut.
//!
//! Only the beginning of an answer can be thought. White space around both is the format's and is dropped.

/// How a family of models writes thoughts. Names are those of vLLM's `--reasoning-parser`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// Thoughts have both marks, unless the prompt holds the first one.
    Qwen3,
    /// The first mark may be missing: an answer begins with thoughts, unless the prompt has ended them.
    DeepseekR1,
}

impl ReasoningFormat {
    /// The format that a chat template shows.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        match source.contains(CLOSE) {
            true if source.contains("enable_thinking") => Some(Self::Qwen3),
            true => Some(Self::DeepseekR1),
            false => None,
        }
    }

    /// Tokens that mark thoughts: where they are special, they must be left in the text nevertheless.
    pub fn marks(self) -> &'static [&'static str] {
        &[OPEN, CLOSE]
    }
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Watches one choice's text. Clone it to fork a choice.
#[derive(Clone, Debug)]
pub struct ReasoningParser {
    state: State,
    /// White space: text if more text of its kind follows.
    space: String,
    /// The beginning of a mark.
    mark: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space was there.
    Start,
    /// Behind the first mark, or where it would be.
    Opened,
    Thinking,
    /// Behind the last mark.
    Closed,
    Answering,
}

/// A piece of text, parted. The reasoning comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parted {
    pub reasoning: String,
    pub content: String,
}

impl ReasoningParser {
    /// For the answer to a prompt.
    pub fn new(format: ReasoningFormat, prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        let state = match format {
            _ if prompt.ends_with(OPEN) => State::Opened,
            _ if prompt.ends_with(CLOSE) => State::Closed,
            ReasoningFormat::Qwen3 => State::Start,
            ReasoningFormat::DeepseekR1 => State::Opened,
        };
        Self { state, space: String::new(), mark: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Parted {
        let mut parted = Parted::default();
        text.chars().for_each(|c| self.take(c, &mut parted));
        parted
    }

    /// What was still held back; the text is over.
    pub fn finish(&mut self) -> Parted {
        let (mut parted, mark) = (Parted::default(), std::mem::take(&mut self.mark));
        if !mark.is_empty() || matches!(self.state, State::Start | State::Thinking) {
            self.text(&mark, &mut parted);
        }
        parted
    }

    /// Whether what comes next is thought.
    pub fn is_thinking(&self) -> bool {
        matches!(self.state, State::Opened | State::Thinking)
    }

    fn take(&mut self, c: char, parted: &mut Parted) {
        self.mark.push(c);
        if let Some(state) = self.reached() {
            self.state = state;
            self.space.clear();
            self.mark.clear();
            return;
        }
        if self.marks().iter().any(|mark| mark.starts_with(&self.mark)) {
            return;
        }
        self.mark.pop();
        if !self.mark.is_empty() {
            let mark = std::mem::take(&mut self.mark);
            self.text(&mark, parted);
            // It may begin a mark itself.
            return self.take(c, parted);
        }
        match c.is_whitespace() && self.state != State::Answering {
            true => self.space.push(c),
            false => self.text(c.encode_utf8(&mut [0; 4]), parted),
        }
    }

    /// Marks that mean something here.
    fn marks(&self) -> &'static [&'static str] {
        match self.state {
            State::Start => &[OPEN],
            State::Opened => &[OPEN, CLOSE],
            State::Thinking => &[CLOSE],
            State::Closed | State::Answering => &[],
        }
    }

    /// Where a whole mark leads.
    fn reached(&self) -> Option<State> {
        let mark = self.marks().iter().find(|mark| **mark == self.mark)?;
        Some(if *mark == OPEN { State::Opened } else { State::Closed })
    }

    /// Text of the kind that is due; white space in front belongs to it, unless it stands behind a mark.
    fn text(&mut self, text: &str, parted: &mut Parted) {
        let behind_mark = matches!(self.state, State::Opened | State::Closed);
        let space = std::mem::take(&mut self.space);
        self.state = if self.is_thinking() { State::Thinking } else { State::Answering };
        let target = if self.is_thinking() { &mut parted.reasoning } else { &mut parted.content };
        target.push_str(if behind_mark { "" } else { &space });
        target.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parted(format: ReasoningFormat, prompt: &str, pieces: &[&str]) -> (String, String) {
        let mut parser = ReasoningParser::new(format, prompt);
        let mut all: Vec<Parted> = pieces.iter().map(|piece| parser.push(piece)).collect();
        all.push(parser.finish());
        (all.iter().map(|p| p.reasoning.as_str()).collect(), all.iter().map(|p| p.content.as_str()).collect())
    }

    fn check(format: ReasoningFormat, prompt: &str, text: &str, reasoning: &str, content: &str) {
        let expected = (reasoning.to_owned(), content.to_owned());
        assert_eq!(parted(format, prompt, &[text]), expected, "{format:?} {prompt:?} {text:?}");
    }

    #[test]
    fn examples() {
        use ReasoningFormat::{DeepseekR1, Qwen3};
        check(Qwen3, "", "<think>\nHm. <b>\n</think>\n\nFour.\n", "Hm. <b>", "Four.\n");
        check(Qwen3, "", " <think></think>4", "", "4");
        check(Qwen3, "", " Four. <think>x</think>", "", " Four. <think>x</think>");
        check(Qwen3, "", "<think>cut </thi", "cut </thi", "");
        check(Qwen3, "", "<thin", "", "<thin");
        check(Qwen3, "", "<think>\n", "", "");
        check(Qwen3, "", " \n", "", " \n");
        check(Qwen3, "<think>\n", "Hm.</think>4 </think>", "Hm.", "4 </think>");
        check(Qwen3, "<think>\n\n</think>\n\n", "Four.", "", "Four.");
        check(DeepseekR1, "", "Hm.\n</think>\n\n4", "Hm.", "4");
        check(DeepseekR1, "", "<think>\nHm.</think>4", "Hm.", "4");
        check(DeepseekR1, "</think>\n\n", "Four.", "", "Four.");
        check(DeepseekR1, "", "never << ends\n", "never << ends\n", "");
    }

    #[test]
    fn templates_name_their_format() {
        assert_eq!(ReasoningFormat::of_template("{{ enable_thinking }} </think>"), Some(ReasoningFormat::Qwen3));
        assert_eq!(ReasoningFormat::of_template("split('</think>')"), Some(ReasoningFormat::DeepseekR1));
        assert_eq!(ReasoningFormat::of_template("{{ messages }}"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn any_split_gives_the_parts_of_the_whole_text(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "<think>", "</think>", "<th", "ink>", "</", "think", "<", " ", "\n", "a", "ü😀",
            ]), 0..12),
            prompt in prop::sample::select(vec!["", "<think>", "</think>\n"]),
        ) {
            let whole = pieces.concat();
            let single: Vec<String> = whole.chars().map(String::from).collect();
            let single: Vec<&str> = single.iter().map(String::as_str).collect();
            for format in [ReasoningFormat::Qwen3, ReasoningFormat::DeepseekR1] {
                let (reasoning, content) = parted(format, prompt, &[&whole]);
                prop_assert_eq!(&parted(format, prompt, &pieces), &(reasoning.clone(), content.clone()));
                prop_assert_eq!(&parted(format, prompt, &single), &(reasoning.clone(), content.clone()));
                // Nothing but marks and white space is lost.
                let letters = |text: &str| text.matches(['a', 'ü', '😀']).count();
                prop_assert_eq!(letters(&reasoning) + letters(&content), letters(&whole));
            }
        }
    }
}
