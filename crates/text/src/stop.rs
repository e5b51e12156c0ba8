//! Finds stop strings in a stream of text pieces, whatever way the text was cut.
//!
//! The stop string that is complete first wins (of several that end together, the longest). Text is held back only while it can
//! still become a stop string.

/// Watches one choice's text. Clone it to fork a choice.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    _stops: Vec<String>,
    _include: bool,
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
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        Self { _stops: stops, _include: include }
    }
    /// Takes the next piece. After a hit every further piece is dropped.
    pub fn push(&mut self, _piece: &str) -> Stopped {
        unimplemented!()
    }
    /// The text still held back, when generation ended for another reason.
    pub fn finish(&mut self) -> String {
        unimplemented!()
    }
}
