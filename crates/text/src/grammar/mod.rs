//! Structured output: a grammar of the client's becomes, step by step, the set of tokens that may come next.
//!
//! Invariants: what does not compile within the limits is an error, never unconstrained text; the state of a [`Matcher`] is a
//! function of the grammar and the tokens alone, so a resumed attempt goes on as the lost one would have.
//!
//! ```text
//! types::Grammar ─► Grammars (one per model: token trie, cache) ─► Matcher (one per sequence) ─► TokenSet (one per token)
//! ```
//!
//! The automata are llguidance's: a lexer of derivatives below an Earley parser, walked over a trie of the vocabulary.

mod cache;
mod compile;
mod gbnf;
mod matcher;
mod schema;
mod vocabulary;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use llguidance::ParserFactory;
use parking_lot::{Condvar, Mutex};
use types::Grammar;

use crate::Tokenizer;
use cache::Cache;

pub use matcher::Matcher;

/// Longest time that one grammar may compile. Nearly all take some milliseconds.
const COMPILE: Duration = Duration::from_secs(2);
/// Grammars that compile at once; the others wait for their turn as long as one may take.
const COMPILING_MAX: usize = 2;
/// Compilation recurses into what the client nests.
const STACK_BYTES: usize = 32 << 20;

/// Why a grammar cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The client's text is at fault.
    #[error("{0}")]
    Invalid(String),
    #[error("it did not compile within {} s", COMPILE.as_secs())]
    Slow,
    #[error("other grammars are being compiled; try again soon")]
    Busy,
    /// The model directory is at fault, or we are.
    #[error("this model takes no grammar: {0}")]
    Unavailable(String),
}

/// Compiles grammars for one model. Clones share the vocabulary and what was compiled before.
#[derive(Clone)]
pub struct Grammars(Arc<Inner>);

struct Inner {
    source: Source,
    /// Made when the first grammar is asked for: most of a second and some 100 MB for a large vocabulary.
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    cache: Mutex<Cache>,
    compiling: Mutex<usize>,
    turn: Condvar,
}

enum Source {
    Tokenizer(Tokenizer),
    ModelDir(PathBuf),
}

impl Grammars {
    /// Grammars over the vocabulary of `tokenizer`.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self::of(Source::Tokenizer(tokenizer))
    }

    /// Grammars of a model whose `tokenizer.json` is read when the first one is asked for.
    pub fn of_model(model_dir: PathBuf) -> Self {
        Self::of(Source::ModelDir(model_dir))
    }

    fn of(source: Source) -> Self {
        Self(Arc::new(Inner {
            source,
            factory: OnceLock::new(),
            cache: Mutex::default(),
            compiling: Mutex::new(0),
            turn: Condvar::new(),
        }))
    }

    /// What came of a grammar that was compiled before: at once, wherever one is.
    pub fn known(&self, grammar: &Grammar) -> Option<Result<Matcher, GrammarError>> {
        self.0.cache.lock().get(grammar)
    }

    /// A matcher at the start of its text. Blocks for some milliseconds, or seconds at most: not for an event loop.
    pub fn compile(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        if let Some(known) = self.known(grammar) {
            return known;
        }
        self.0.factory.get_or_init(|| self.0.source.factory()).as_ref().map_err(Clone::clone)?;
        let turn = self.take_turn()?;
        if let Some(known) = self.known(grammar) {
            return known;
        }
        let compiled = self.within_limits(grammar.clone(), turn);
        // How long it took is the machine's affair; everything else is the grammar's.
        if matches!(compiled, Ok(_) | Err(GrammarError::Invalid(_))) {
            self.0.cache.lock().insert(grammar.clone(), &compiled);
        }
        compiled
    }

    /// Compiles on a thread of its own, which keeps its turn until it has ended, even when nobody waits for it any more.
    fn within_limits(&self, grammar: Grammar, turn: Turn) -> Result<Matcher, GrammarError> {
        let (sender, receiver) = mpsc::channel();
        let work = move || {
            let grammars = turn.0.clone();
            if let Some(Ok(factory)) = grammars.0.factory.get() {
                let _ = sender.send(compile::compile(factory, &grammar));
            }
            drop(turn);
        };
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES).spawn(work);
        thread.map_err(|error| GrammarError::Unavailable(error.to_string()))?;
        match receiver.recv_timeout(COMPILE) {
            Ok(compiled) => compiled,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(GrammarError::Slow),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(GrammarError::Unavailable("its compiler failed".into())),
        }
    }

    fn take_turn(&self) -> Result<Turn, GrammarError> {
        let mut compiling = self.0.compiling.lock();
        let waited = self.0.turn.wait_while_for(&mut compiling, |compiling| *compiling >= COMPILING_MAX, COMPILE);
        if waited.timed_out() {
            return Err(GrammarError::Busy);
        }
        *compiling += 1;
        Ok(Turn(self.clone()))
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Grammars")
    }
}

/// One of the few compilations that may run.
struct Turn(Grammars);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.0.compiling.lock() -= 1;
        self.0.0.turn.notify_one();
    }
}

impl Source {
    fn factory(&self) -> Result<ParserFactory, GrammarError> {
        let tokenizer = match self {
            Self::Tokenizer(tokenizer) => tokenizer.clone(),
            Self::ModelDir(dir) => {
                Tokenizer::load(dir).map_err(|error| GrammarError::Unavailable(error.to_string()))?
            }
        };
        vocabulary::factory(&tokenizer)
    }
}
