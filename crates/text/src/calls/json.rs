//! Follows one JSON value character by character, so that what has come of it can be sent on before its end is there.

use serde::de::IgnoredAny;

/// Nested arrays and objects of a value; as deep as a request may nest.
const DEPTH_MAX: usize = 64;
/// Characters of a number or of `true`, `false`, `null`.
const BARE_MAX: usize = 64;

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the value, which goes on.
    More,
    /// It is the value's last.
    Last,
    /// The value ended before it: a number only ends with what follows.
    Before,
    /// No JSON value goes on like this.
    Broken,
}

/// A value that has begun or is about to.
#[derive(Clone, Debug, Default)]
pub(super) struct JsonScanner {
    /// Open containers from the outside; true = object.
    open: Vec<bool>,
    expect: Expect,
    bare: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    Colon,
    CommaOrEnd,
    String {
        key: bool,
        escape: Escape,
    },
    /// A number or a word.
    Bare,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Began,
    /// So many hexadecimal digits are missing.
    Hex(u8),
}

/// Where the next character stands among an object's members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Inside a key's quotes, or the quote that ends them.
    Key,
    /// Where a value is to begin.
    BeforeValue,
    /// In a value.
    Value,
    Between,
}

impl JsonScanner {
    /// Among the members of the outermost object.
    pub(super) fn place(&self) -> Place {
        match (self.open.len(), self.expect) {
            (1, Expect::String { key: true, .. }) => Place::Key,
            (1, Expect::Value) => Place::BeforeValue,
            (1, Expect::String { key: false, .. } | Expect::Bare) | (2.., _) => Place::Value,
            _ => Place::Between,
        }
    }

    /// Takes the next character. Nothing is to be pushed after the end.
    pub(super) fn push(&mut self, c: char) -> Step {
        match self.expect {
            Expect::String { key, escape } => self.string(c, key, escape),
            Expect::Bare => self.bare(c),
            _ if matches!(c, ' ' | '\t' | '\n' | '\r') => Step::More,
            Expect::Value => self.value(c),
            Expect::ValueOrEnd if c == ']' => self.close(c),
            Expect::ValueOrEnd => self.value(c),
            Expect::Key | Expect::KeyOrEnd if c == '"' => self.go(Expect::String { key: true, escape: Escape::None }),
            Expect::KeyOrEnd => self.close(c),
            Expect::Colon if c == ':' => self.go(Expect::Value),
            Expect::CommaOrEnd if c == ',' && self.open.last() == Some(&true) => self.go(Expect::Key),
            Expect::CommaOrEnd if c == ',' => self.go(Expect::Value),
            Expect::CommaOrEnd => self.close(c),
            Expect::Key | Expect::Colon => Step::Broken,
        }
    }

    fn go(&mut self, expect: Expect) -> Step {
        self.expect = expect;
        Step::More
    }

    fn value(&mut self, c: char) -> Step {
        match c {
            '{' | '[' if self.open.len() >= DEPTH_MAX => Step::Broken,
            '{' => {
                self.open.push(true);
                self.go(Expect::KeyOrEnd)
            }
            '[' => {
                self.open.push(false);
                self.go(Expect::ValueOrEnd)
            }
            '"' => self.go(Expect::String { key: false, escape: Escape::None }),
            't' | 'f' | 'n' | '0'..='9' | '-' => {
                self.bare.push(c);
                self.go(Expect::Bare)
            }
            _ => Step::Broken,
        }
    }

    fn close(&mut self, c: char) -> Step {
        match (c, self.open.pop()) {
            ('}', Some(true)) | (']', Some(false)) => self.ended(),
            _ => Step::Broken,
        }
    }

    /// A value ended; it may have been the whole.
    fn ended(&mut self) -> Step {
        self.expect = Expect::CommaOrEnd;
        if self.open.is_empty() { Step::Last } else { Step::More }
    }

    fn string(&mut self, c: char, key: bool, escape: Escape) -> Step {
        let escape = match (escape, c) {
            (Escape::None, '"') if key => return self.go(Expect::Colon),
            (Escape::None, '"') => return self.ended(),
            (Escape::None, '\\') => Escape::Began,
            (Escape::None, '\0'..='\x1f') => return Step::Broken,
            (Escape::None, _) => Escape::None,
            (Escape::Began, 'u') => Escape::Hex(4),
            (Escape::Began, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => Escape::None,
            (Escape::Hex(1), _) if c.is_ascii_hexdigit() => Escape::None,
            (Escape::Hex(missing), _) if c.is_ascii_hexdigit() => Escape::Hex(missing - 1),
            (Escape::Began | Escape::Hex(_), _) => return Step::Broken,
        };
        self.go(Expect::String { key, escape })
    }

    fn bare(&mut self, c: char) -> Step {
        if c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.') {
            self.bare.push(c);
            return if self.bare.len() > BARE_MAX { Step::Broken } else { Step::More };
        }
        let whole = serde_json::from_str::<IgnoredAny>(&std::mem::take(&mut self.bare)).is_ok();
        match (whole, self.ended()) {
            (false, _) => Step::Broken,
            (true, Step::Last) => Step::Before,
            (true, _) => self.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the text is one whole object or array.
    fn whole(text: &str) -> bool {
        let (mut scanner, mut last) = (JsonScanner::default(), Step::More);
        for c in text.chars() {
            if last != Step::More {
                return false;
            }
            last = scanner.push(c);
        }
        last == Step::Last
    }

    fn check(text: &str) {
        let expected = serde_json::from_str::<IgnoredAny>(text).is_ok();
        assert_eq!(whole(text.trim_end()), expected, "{text:?}");
    }

    #[test]
    fn agrees_with_a_parser() {
        for text in [
            "{}",
            "[]",
            r#"{"a":1}"#,
            r#"{"a":-0.5e+3,"b":[true,false,null,""]}"#,
            r#"{ "a" : { "b" : [ ] } }"#,
            r#"{"a":"\"\\\/\b\n\u00e9ü"}"#,
            r#"{"a":tru}"#,
            r#"{"a":01}"#,
            r#"{"a":1 2}"#,
            r#"{"a" 1}"#,
            r#"{a:1}"#,
            r#"{"a":1,}"#,
            "[1,]",
            "[,1]",
            "[1}",
            "{]",
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":1}}"#,
            r#"{"a":nan}"#,
            r#"{"a":1"#,
        ] {
            check(text);
        }
        assert!(!whole(&"[".repeat(DEPTH_MAX + 1)));
    }

    #[test]
    fn a_number_ends_with_what_follows() {
        let mut scanner = JsonScanner::default();
        let steps: Vec<_> = "12,".chars().map(|c| scanner.push(c)).collect();
        assert_eq!(steps, [Step::More, Step::More, Step::Before]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn agrees_with_a_parser_on_anything_like_json(
            parts in prop::collection::vec(prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\"a\":", "1", "-1.5", "true", "null", " ", "\\", "\\u00", "ü",
            ]), 0..14),
        ) {
            check(&["[", &parts.concat()].concat());
            check(&["{\"k\":", &parts.concat(), "}"].concat());
        }
    }
}
