//! The machine that takes an answer character by character.

use std::mem::take;
use std::sync::Arc;

use super::json::{JsonScanner, Step};
use super::parts::{Part, Parts};
use super::reader::CallReader;
use super::{Frame, ToolFormat};

/// Bytes of a plain name with its marks; a longer one is content.
const HEADER_MAX: usize = 512;

/// Watches one choice's text. Clone it to fork a choice.
#[derive(Clone, Debug)]
pub struct ToolParser {
    frame: Frame,
    /// Functions that may be called.
    names: Arc<[String]>,
    state: State,
    parts: Parts,
    /// Calls whose arguments are all there.
    whole: u32,
    /// All text of a call, with the white space in front, until it is told.
    raw: String,
    /// White space: content if content follows.
    space: String,
    /// The beginning of a mark.
    mark: String,
    /// There was content since the beginning or the last call.
    in_content: bool,
}

#[derive(Clone, Debug)]
enum State {
    Outside,
    /// A call is to begin.
    Before {
        in_list: bool,
    },
    Call {
        reader: CallReader,
        in_list: bool,
    },
    /// In a plain name.
    Header(String),
    /// In the arguments of a call that has been told.
    Arguments(JsonScanner),
    /// Behind a call.
    After {
        in_list: bool,
    },
    /// The arguments of this function are to come, and nothing else.
    Named(String),
}

impl ToolParser {
    /// For a model that may call these functions; calls beyond `calls_max` are left out.
    pub fn new(format: ToolFormat, names: Arc<[String]>, calls_max: u32) -> Self {
        Self::with(format.frame(), names, calls_max, State::Outside)
    }

    /// For a text that is a JSON list of calls.
    pub fn list(names: Arc<[String]>, calls_max: u32) -> Self {
        Self::with(Frame::LIST, names, calls_max, State::Outside)
    }

    /// For a text that is the arguments of one function.
    pub fn named(name: String) -> Self {
        Self::with(Frame::NONE, Arc::default(), 1, State::Named(name))
    }

    fn with(frame: Frame, names: Arc<[String]>, calls_max: u32, state: State) -> Self {
        Self {
            frame,
            names,
            state,
            parts: Parts::new(calls_max),
            whole: 0,
            raw: String::new(),
            space: String::new(),
            mark: String::new(),
            in_content: false,
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        for c in text.chars() {
            // What does not fit where a call was is taken outside of it.
            while !self.took(c) {}
        }
        self.parts.take()
    }

    /// What was still held back; the text is over.
    pub fn finish(&mut self) -> Vec<Part> {
        let behind_call = self.parts.calls() > 0 && !self.in_content && self.mark.is_empty();
        match std::mem::replace(&mut self.state, State::Outside) {
            State::After { .. } => {}
            State::Outside if behind_call => {}
            _ => {
                let rest = [take(&mut self.raw), take(&mut self.space), take(&mut self.mark)].concat();
                self.parts.content(&rest);
            }
        }
        self.parts.take()
    }

    /// Whether there is a call that can be made.
    pub fn has_called(&self) -> bool {
        self.whole > 0
    }

    /// False: the character ended what was there and is to be taken again.
    fn took(&mut self, c: char) -> bool {
        match std::mem::replace(&mut self.state, State::Outside) {
            State::Outside => self.outside(c),
            State::Before { in_list } => self.before(c, in_list),
            State::Call { reader, in_list } => self.call(c, reader, in_list),
            State::Header(header) => self.header(c, header),
            State::Arguments(scanner) => self.arguments(c, scanner),
            State::After { in_list } => self.after(c, in_list),
            State::Named(name) => self.argument(c, name),
        }
    }

    fn outside(&mut self, c: char) -> bool {
        let nothing_yet = !self.in_content && self.parts.calls() == 0 && self.mark.is_empty();
        if nothing_yet && self.frame.bare == Some(c) {
            self.raw = take(&mut self.space);
            self.state = State::Before { in_list: false };
            return false;
        }
        if self.continues_mark(self.frame.open, c) {
            if self.mark == self.frame.open {
                self.raw = [take(&mut self.space), take(&mut self.mark)].concat();
                self.state = State::Before { in_list: false };
            }
            return true;
        }
        if !self.mark.is_empty() {
            let mark = take(&mut self.mark);
            self.content(&mark);
            return false;
        }
        match c.is_whitespace() {
            true => self.space.push(c),
            false => self.content(c.encode_utf8(&mut [0; 4])),
        }
        true
    }

    fn before(&mut self, c: char, in_list: bool) -> bool {
        let name = |c: char| c.is_alphanumeric() || c == '_';
        match c {
            '{' => return self.call(c, CallReader::new(self.names.clone()), in_list),
            '[' if self.frame.list && !in_list => self.state = State::Before { in_list: true },
            _ if c.is_whitespace() => self.state = State::Before { in_list },
            _ if self.frame.plain_names && !in_list && name(c) => self.state = State::Header(c.to_string()),
            _ => return self.no_call(),
        }
        self.raw.push(c);
        true
    }

    fn call(&mut self, c: char, mut reader: CallReader, in_list: bool) -> bool {
        match reader.push(c, &mut self.parts) {
            Step::More => {
                match reader.has_begun() {
                    true => self.raw.clear(),
                    false => self.raw.push(c),
                }
                self.state = State::Call { reader, in_list };
                true
            }
            Step::Last => self.called(in_list),
            Step::Before | Step::Broken if reader.is_whole() => {
                self.called(in_list);
                false
            }
            Step::Before | Step::Broken => self.no_call(),
        }
    }

    /// `name`, `name[ARGS]` or `name[CALL_ID]id[ARGS]` in front of the arguments.
    fn header(&mut self, c: char, mut header: String) -> bool {
        let name = header.split('[').next().unwrap_or_default().trim();
        if c == '{' && self.names.iter().any(|known| known == name) {
            self.raw.clear();
            return self.argument(c, name.to_owned());
        }
        if c == '{' || header.len() >= HEADER_MAX {
            return self.no_call();
        }
        self.raw.push(c);
        header.push(c);
        self.state = State::Header(header);
        true
    }

    /// The first character of arguments whose function is known.
    fn argument(&mut self, c: char, name: String) -> bool {
        match c {
            '{' => {
                self.parts.call(name);
                self.in_content = false;
                self.space.clear();
                return self.arguments(c, JsonScanner::default());
            }
            _ if c.is_whitespace() => {
                self.space.push(c);
                self.state = State::Named(name);
            }
            _ => return self.no_call(),
        }
        true
    }

    fn arguments(&mut self, c: char, mut scanner: JsonScanner) -> bool {
        let step = scanner.push(c);
        if matches!(step, Step::More | Step::Last) {
            self.parts.arguments(c.encode_utf8(&mut [0; 4]));
        }
        match step {
            Step::More => self.state = State::Arguments(scanner),
            Step::Last => return self.called(false),
            Step::Before | Step::Broken => return self.no_call(),
        }
        true
    }

    fn after(&mut self, c: char, in_list: bool) -> bool {
        let (close, separator) = if in_list { ("]", Some(',')) } else { (self.frame.close, self.frame.separator) };
        if self.continues_mark(close, c) {
            if self.mark == close {
                self.mark.clear();
                self.space.clear();
            } else {
                self.state = State::After { in_list };
            }
            return true;
        }
        if !self.mark.is_empty() {
            // It may be the beginning of the other mark.
            take(&mut self.mark).chars().for_each(|c| while !self.took(c) {});
            return false;
        }
        match c {
            _ if separator == Some(c) => {
                self.raw = take(&mut self.space);
                self.raw.push(c);
                self.state = State::Before { in_list };
            }
            _ if c.is_whitespace() => {
                self.space.push(c);
                self.state = State::After { in_list };
            }
            _ => return false,
        }
        true
    }

    /// A call that can be made is over.
    fn called(&mut self, in_list: bool) -> bool {
        self.whole += 1;
        self.in_content = false;
        self.raw.clear();
        self.state = State::After { in_list };
        true
    }

    /// What looked like a call is content, unless it was told already; the character goes on outside.
    fn no_call(&mut self) -> bool {
        let raw = take(&mut self.raw);
        self.content(&raw);
        false
    }

    fn continues_mark(&mut self, whole: &str, c: char) -> bool {
        let next = whole.get(self.mark.len()..).is_some_and(|rest| rest.starts_with(c));
        if next {
            self.mark.push(c);
        }
        next
    }

    /// Text for the reader; white space in front belongs to it.
    fn content(&mut self, text: &str) {
        if !text.is_empty() {
            let space = take(&mut self.space);
            self.parts.content(&space);
            self.parts.content(text);
            self.in_content = true;
        }
    }
}
