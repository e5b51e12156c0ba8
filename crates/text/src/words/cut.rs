//! Where a tokenizer's regular expression cuts an ASCII text.

use serde_json::Value;

/// The expressions whose cuts are known, as they stand in published files.
pub(super) const PATTERNS: &[(&str, Cut)] = &[
    // GPT-2 and its relatives, which is also what a byte-level pre-tokenizer does by itself.
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", Cut::Gpt2 { lines_apart: false }),
    (
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[\r\n]+|\s+(?!\S)|\s+",
        Cut::Gpt2 { lines_apart: true },
    ),
    // Llama 3.
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Cut::Gpt4 { digits: 3 },
    ),
    // Qwen 2 and later.
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        Cut::Gpt4 { digits: 1 },
    ),
];

/// A kind of expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Gpt2 {
        /// Line ends are words of their own.
        lines_apart: bool,
    },
    Gpt4 {
        /// Of one word at most.
        digits: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Digit,
    Space,
    Other,
}

fn class(byte: u8) -> Class {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' => Class::Letter,
        b'0'..=b'9' => Class::Digit,
        b' ' | 0x09..=0x0d => Class::Space,
        _ => Class::Other,
    }
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

impl Cut {
    /// Of a pre-tokenizer as it stands in `tokenizer.json`.
    pub(super) fn of(pre_tokenizer: &Value) -> Option<Self> {
        let bytes = |value: &Value, use_regex: bool| {
            value["type"] == "ByteLevel" && value["add_prefix_space"] == false && value["use_regex"] == use_regex
        };
        if bytes(pre_tokenizer, true) {
            return Some(Self::Gpt2 { lines_apart: false });
        }
        let parts = pre_tokenizer["pretokenizers"].as_array().filter(|_| pre_tokenizer["type"] == "Sequence")?;
        let [split, last] = parts.as_slice() else { return None };
        let isolated = split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] == false;
        let pattern = split["pattern"]["Regex"].as_str().filter(|_| isolated && bytes(last, false))?;
        PATTERNS.iter().find(|(known, _)| *known == pattern).map(|(_, cut)| *cut)
    }

    /// Where the word ends that begins at `from`, which is within the text.
    pub(super) fn end(self, text: &[u8], from: usize) -> usize {
        match self {
            Self::Gpt2 { lines_apart } => gpt2(text, from, lines_apart),
            Self::Gpt4 { digits } => gpt4(text, from, digits),
        }
    }
}

fn gpt2(text: &[u8], from: usize, lines_apart: bool) -> usize {
    if let Some(end) = contraction(text, from, u8::clone) {
        return end;
    }
    // A space belongs to what follows it.
    let start = from + usize::from(text[from] == b' ');
    match text.get(start).map(|&byte| class(byte)) {
        Some(kind) if kind != Class::Space => run(text, start, |byte| class(byte) == kind),
        _ if lines_apart && is_line_end(text[from]) => run(text, from, is_line_end),
        _ => spaces(text, from),
    }
}

fn gpt4(text: &[u8], from: usize, digits: usize) -> usize {
    if let Some(end) = contraction(text, from, u8::to_ascii_lowercase) {
        return end;
    }
    let (first, second) = (class(text[from]), text.get(from + 1).map(|&byte| class(byte)));
    match first {
        Class::Letter => return run(text, from, |byte| class(byte) == Class::Letter),
        Class::Digit => {
            let longest = &text[..text.len().min(from + digits)];
            return run(longest, from, |byte| class(byte) == Class::Digit);
        }
        // Any one character but a line end belongs to the letters that follow it.
        _ if !is_line_end(text[from]) && second == Some(Class::Letter) => {
            return run(text, from + 1, |byte| class(byte) == Class::Letter);
        }
        _ => {}
    }
    if first == Class::Other || text[from] == b' ' && second == Some(Class::Other) {
        let end = run(text, from + 1, |byte| class(byte) == Class::Other);
        return run(text, end, is_line_end);
    }
    let end = run(text, from, |byte| class(byte) == Class::Space);
    match text[from..end].iter().rposition(|&byte| is_line_end(byte)) {
        Some(last) => from + last + 1,
        None => spaces(text, from),
    }
}

/// The end of the bytes from here on of which `is` holds.
fn run(text: &[u8], from: usize, is: impl Fn(u8) -> bool) -> usize {
    text[from..].iter().position(|&byte| !is(byte)).map_or(text.len(), |len| from + len)
}

/// Space up to the text's end, or all but the last of it, which belongs to what follows; but at least one.
fn spaces(text: &[u8], from: usize) -> usize {
    let end = run(text, from, |byte| class(byte) == Class::Space);
    if end == text.len() { end } else { (end - 1).max(from + 1) }
}

/// The end of `'s` and its like, if they stand here.
fn contraction(text: &[u8], from: usize, fold: impl Fn(&u8) -> u8) -> Option<usize> {
    if text[from] != b'\'' {
        return None;
    }
    match (text.get(from + 1).map(&fold)?, text.get(from + 2).map(&fold)) {
        (b's' | b't' | b'm' | b'd', _) => Some(from + 2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(from + 3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cut: Cut, text: &str, expected: &[&str]) {
        let (mut from, mut words) = (0, Vec::new());
        while from < text.len() {
            let end = cut.end(text.as_bytes(), from);
            words.push(&text[from..end]);
            from = end;
        }
        assert_eq!(words, expected, "{cut:?}");
    }

    #[test]
    fn words_of_each_kind() {
        let text = "I'll  (try) 1234\tit's\n\n OK.\n";
        let gpt2 = ["I", "'ll", " ", " (", "try", ")", " 1234", "\t", "it", "'s", "\n\n", " OK", ".", "\n"];
        check(Cut::Gpt2 { lines_apart: true }, text, &gpt2);
        check(Cut::Gpt2 { lines_apart: false }, text, &gpt2);
        check(Cut::Gpt2 { lines_apart: false }, "a\n\nb", &["a", "\n", "\n", "b"]);
        check(Cut::Gpt2 { lines_apart: true }, "a\n\nb", &["a", "\n\n", "b"]);
        let gpt4 = ["I", "'ll", " ", " (", "try", ")", " ", "123", "4", "\tit", "'s", "\n\n", " OK", ".\n"];
        check(Cut::Gpt4 { digits: 3 }, text, &gpt4);
        check(Cut::Gpt4 { digits: 1 }, "'LL12 \n x", &["'LL", "1", "2", " \n", " x"]);
    }
}
