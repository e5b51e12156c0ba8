//! Between a request's task and its HTTP response: pieces that coalesce while the reader lags.
//!
//! The task never waits for the reader, so a slow client holds up no worker; the reader holds the task, so a client that leaves
//! ends it. At most one pending piece per choice, and `Bounds::unread_bytes` of them together.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};
use tokio::task::AbortHandle;
use types::TokenScore;

use crate::answer::Piece;
use crate::request::RequestError;

/// The task's end. When the last clone is dropped without [`Writer::end`], the task has panicked, and the reader is told so.
pub(crate) struct Writer(Arc<Shared>);

/// The response's end. Dropping it ends the task and with it every attempt.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    task: Option<Task>,
}

/// The work that writes.
pub(crate) enum Task {
    /// Goes on whether or not anyone reads.
    Apart(AbortHandle),
    /// Goes on while the reader waits, which it always does: for an answer that is read to its end before any of it is sent.
    Within(Pin<Box<dyn Future<Output = ()> + Send>>),
}

/// What the reader gets.
#[derive(Debug)]
pub(crate) enum Item {
    Piece(Piece),
    End(Result<(), RequestError>),
}

struct Shared {
    pending: Mutex<Pending>,
    bytes_max: usize,
}

#[derive(Default)]
struct Pending {
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// Of prompts whose scores were asked for, by the prompt's number; complete before its first piece.
    scores: HashMap<u32, Arc<[TokenScore]>>,
    /// Of prompts that were to be made vectors of, by the prompt's number.
    vectors: HashMap<u32, Vec<f32>>,
    /// Prompt tokens that were not computed anew.
    cached_tokens: u64,
    end: Option<Result<(), RequestError>>,
    /// Waits for a piece or the end.
    waiting: Option<Waker>,
}

pub(crate) fn channel(bytes_max: usize) -> (Writer, Reader) {
    let shared = Arc::new(Shared { pending: Mutex::default(), bytes_max });
    (Writer(shared.clone()), Reader { shared, task: None })
}

impl Writer {
    /// Adds to what the reader has not taken yet.
    ///
    /// # Errors
    /// The reader lags too far behind.
    pub(crate) fn push(&self, piece: Piece) -> Result<(), RequestError> {
        let mut pending = self.0.pending.lock();
        pending.bytes += piece.bytes();
        if pending.bytes > self.0.bytes_max {
            return Err(RequestError::SlowReader { unread: pending.bytes });
        }
        match pending.pieces.iter_mut().find(|waiting| waiting.index == piece.index) {
            Some(waiting) => waiting.extend(piece),
            None => pending.pieces.push_back(piece),
        }
        Pending::release(pending);
        Ok(())
    }

    /// How likely the model finds the tokens of a prompt, the first left out.
    pub(crate) fn scored(&self, prompt: u32, scores: Vec<TokenScore>) {
        self.0.pending.lock().scores.insert(prompt, scores.into());
    }

    /// The vector of a prompt.
    pub(crate) fn embedded(&self, prompt: u32, vector: Vec<f32>) {
        self.0.pending.lock().vectors.insert(prompt, vector);
    }

    pub(crate) fn add_cached_tokens(&self, tokens: u32) {
        self.0.pending.lock().cached_tokens += u64::from(tokens);
    }

    pub(crate) fn end(self, result: Result<(), RequestError>) {
        self.0.pending.lock().end = Some(result);
    }
}

impl Pending {
    fn take(&mut self) -> Option<Item> {
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.bytes();
            return Some(Item::Piece(piece));
        }
        self.end.take().map(Item::End)
    }

    fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        if let Some(item) = self.take() {
            return Poll::Ready(item);
        }
        match &mut self.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Tells the reader that something has come.
    fn release(mut pending: MutexGuard<'_, Self>) {
        let waiting = pending.waiting.take();
        drop(pending);
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut pending = self.0.pending.lock();
        pending.end.get_or_insert(Err(RequestError::Internal));
        Pending::release(pending);
    }
}

impl Reader {
    /// From now on the task ends with the reader.
    pub(crate) fn hold(&mut self, task: Task) {
        self.task = Some(task);
    }

    /// The next piece; after the last one the end. Not to be called after the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Item> {
        let Some(Task::Within(work)) = &mut self.task else { return self.shared.pending.lock().poll_take(cx) };
        // Nobody else writes, so nobody needs to tell.
        let mut item = self.shared.pending.lock().take();
        if item.is_none() {
            let ended = work.as_mut().poll(cx).is_ready();
            item = self.shared.pending.lock().take();
            if ended {
                self.task = None;
            }
        }
        item.map_or(Poll::Pending, Poll::Ready)
    }

    /// See [`Writer::scored`]; none if nobody asked.
    pub(crate) fn scores(&self, prompt: u32) -> Arc<[TokenScore]> {
        self.shared.pending.lock().scores.get(&prompt).cloned().unwrap_or_default()
    }

    /// See [`Writer::embedded`].
    pub(crate) fn take_vector(&mut self, prompt: u32) -> Option<Vec<f32>> {
        self.shared.pending.lock().vectors.remove(&prompt)
    }

    pub(crate) fn cached_tokens(&self) -> u64 {
        self.shared.pending.lock().cached_tokens
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(Task::Apart(task)) = &self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use futures::FutureExt;

    fn piece(index: u32, text: &str) -> Piece {
        Piece { index, text: text.into(), tokens: 1, ..Piece::default() }
    }

    fn texts(reader: &mut Reader) -> Vec<String> {
        let next = || poll_fn(|cx| reader.poll_next(cx)).now_or_never();
        let item = |item| match item {
            Item::Piece(piece) => format!("{} {} {}", piece.index, piece.text, piece.tokens),
            Item::End(result) => format!("{result:?}"),
        };
        std::iter::from_fn(next).map(item).collect()
    }

    #[test]
    fn pieces_of_a_choice_coalesce() {
        let (writer, mut reader) = channel(100);
        for (index, text) in [(0, "a"), (1, "x"), (0, "b"), (0, "c")] {
            writer.push(piece(index, text)).unwrap();
        }
        assert_eq!(texts(&mut reader), ["0 abc 3", "1 x 1"]);
        writer.push(piece(0, "d")).unwrap();
        assert_eq!(texts(&mut reader), ["0 d 1"]);
    }

    #[test]
    fn work_within_the_reader_goes_on_while_it_waits() {
        let (writer, mut reader) = channel(100);
        let work = async move {
            writer.push(piece(0, "a")).unwrap();
            tokio::task::yield_now().await;
            writer.push(piece(0, "b")).unwrap();
            writer.end(Ok(()));
        };
        reader.hold(Task::Within(Box::pin(work)));
        assert_eq!(texts(&mut reader), ["0 a 1", "0 b 1", "Ok(())"]);
        let (writer, mut reader) = channel(100);
        reader.hold(Task::Within(Box::pin(async move { drop(writer) })));
        assert_eq!(texts(&mut reader), ["Err(Internal)"]);
    }

    #[test]
    fn a_reader_that_lags_too_far_is_an_error() {
        let (writer, mut reader) = channel(3);
        writer.push(piece(0, "abc")).unwrap();
        assert!(matches!(writer.push(piece(0, "d")), Err(RequestError::SlowReader { unread: 4 })));
        drop(writer);
        assert_eq!(texts(&mut reader)[1], "Err(Internal)");
    }

    #[test]
    fn the_end_comes_after_every_piece() {
        let (writer, mut reader) = channel(100);
        writer.push(piece(0, "a")).unwrap();
        writer.end(Ok(()));
        assert_eq!(texts(&mut reader)[..2], ["0 a 1", "Ok(())"]);
    }
}
