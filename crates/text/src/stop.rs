//! Finds stop strings in a stream of text pieces, whatever way the text was cut.
//!
//! The stop string that is complete first wins; of several that end together, the longest. Text is held back only while it can still
//! become a stop string.

/// Watches one choice's text. Clone it to fork a choice.
///
/// While `min_tokens` holds, do not push: such text cannot stop and goes to the client as it is.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    /// The longest end of the text that is the beginning of a stop string.
    held: String,
    done: bool,
}

/// What one piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stopped {
    /// Text to send on; with a hit, the last of it.
    pub emit: String,
    /// The stop string found. Everything after it is dropped.
    pub hit: Option<String>,
}

impl StopMatcher {
    /// `include`: a found stop string is part of the text. Empty stop strings are ignored.
    pub fn new(mut stops: Vec<String>, include: bool) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, include, held: String::new(), done: false }
    }

    /// Takes the next piece. After a hit every further piece is dropped.
    pub fn push(&mut self, piece: &str) -> Stopped {
        if self.done {
            return Stopped::default();
        }
        self.held.push_str(piece);
        let mut text = std::mem::take(&mut self.held);
        if let Some((start, stop)) = first_complete(&text, &self.stops) {
            let hit = Some(stop.clone());
            text.truncate(if self.include { start + stop.len() } else { start });
            self.done = true;
            return Stopped { emit: text, hit };
        }
        self.held = text.split_off(held_from(&text, &self.stops));
        Stopped { emit: text, hit: None }
    }

    /// The text still held back, when generation ended for another reason.
    pub fn finish(&mut self) -> String {
        self.done = true;
        std::mem::take(&mut self.held)
    }
}

/// The stop string that ends first, and where it begins.
fn first_complete<'a>(text: &str, stops: &'a [String]) -> Option<(usize, &'a String)> {
    let found = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start, stop)));
    found.min_by_key(|(start, stop)| (start + stop.len(), *start))
}

/// Where the longest end of `text` starts that is a proper beginning of a stop string.
fn held_from(text: &str, stops: &[String]) -> usize {
    let longest = stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0);
    let from = text.len().saturating_sub(longest);
    let could_become = |at: &usize| stops.iter().any(|stop| stop.starts_with(&text[*at..]));
    (from..text.len()).filter(|at| text.is_char_boundary(*at)).find(could_become).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reference: looks at every end position of the whole text in turn.
    fn naive(text: &str, stops: &[String], include: bool) -> (String, Option<String>) {
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let ending = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(stop.as_str()));
            if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
                let kept = if include { end } else { end - stop.len() };
                return (text[..kept].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn streamed(pieces: &[String], stops: &[String], include: bool) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec(), include);
        let (mut text, mut hit) = (String::new(), None);
        for piece in pieces {
            let stopped = matcher.push(piece);
            text.push_str(&stopped.emit);
            hit = hit.or(stopped.hit);
        }
        text.push_str(&matcher.finish());
        (text, hit)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn any_split_finds_what_the_whole_text_holds(
            pieces in prop::collection::vec("[abä😀]{0,4}", 0..12),
            stops in prop::collection::vec("[abä😀]{0,4}", 0..5),
            include: bool,
        ) {
            prop_assert_eq!(streamed(&pieces, &stops, include), naive(&pieces.concat(), &stops, include));
        }

        #[test]
        fn only_what_can_still_stop_is_held_back(
            pieces in prop::collection::vec("[ab]{0,4}", 0..12),
            stops in prop::collection::vec("[ab]{1,4}", 1..4),
        ) {
            let mut matcher = StopMatcher::new(stops.clone(), false);
            let (mut seen, mut emitted) = (String::new(), String::new());
            for piece in &pieces {
                let stopped = matcher.push(piece);
                if stopped.hit.is_some() {
                    break;
                }
                seen.push_str(piece);
                emitted.push_str(&stopped.emit);
                let held = &seen[emitted.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
            }
        }
    }

    fn check(stops: &[&str], pieces: &[&str], expected: &[&str], hit: Option<&str>) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), false);
        let found: Vec<_> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        let emitted: Vec<_> = found.iter().map(|stopped| stopped.emit.as_str()).collect();
        assert_eq!(emitted, expected, "{stops:?} {pieces:?}");
        assert_eq!(found.iter().find_map(|stopped| stopped.hit.as_deref()), hit, "{stops:?} {pieces:?}");
    }

    #[test]
    fn examples() {
        check(&[], &["abc"], &["abc"], None);
        check(&["\n\n"], &["one\n", "two", "\n\nthree", "x"], &["one", "\ntwo", "", ""], Some("\n\n"));
        check(&["STOP"], &["S", "T", "A", "STO", "P!"], &["", "", "STA", "", ""], Some("STOP"));
        check(&["abc", "b"], &["a", "bc"], &["", "a"], Some("b"));
        check(&["b", "ab"], &["xab"], &["x"], Some("ab"));
        check(&["aab"], &["aa", "a", "b"], &["", "a", ""], Some("aab"));
    }

    #[test]
    fn included_and_unfinished() {
        let mut matcher = StopMatcher::new(vec!["END".into()], true);
        assert_eq!(matcher.push("the EN"), Stopped { emit: "the ".into(), hit: None });
        assert_eq!(matcher.push("D."), Stopped { emit: "END".into(), hit: Some("END".into()) });
        let mut matcher = StopMatcher::new(vec!["END".into()], true);
        matcher.push("the EN");
        assert_eq!(matcher.finish(), "EN");
    }
}
