//! A fixed group of named threads that work on one job at a time.
//!
//! Each thread begins with the task of its own number, the caller with task 0; what is left goes to whoever is free, since cores that
//! are shared with others are not equally fast. A waiting thread spins briefly, since the next
//! job of a step mostly follows at once; then it offers its core to others for a while, since waking a thread takes longer than most
//! waits; then it parks, so that an idle instance costs nothing.

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Looks at the flag without leaving the core: some 20 microseconds, a few times what lies between two operations of a step.
const SPINS: u32 = 500;

/// Looks at the flag after others were let onto the core: about a millisecond, longer than threads of one product lie apart.
const YIELDS: u32 = 2000;

/// Threads that run jobs together with their caller.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: one at a time.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Shared {
    threads: usize,
    /// Written by the caller before `epoch` moves, read by workers after.
    job: UnsafeCell<Option<Job>>,
    /// Counts jobs.
    epoch: AtomicUsize,
    /// The first task of the current job that no thread has taken.
    next: AtomicUsize,
    /// Workers that have not finished the current job.
    pending: AtomicUsize,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    caller: Thread,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Job").field("tasks", &self.tasks).finish_non_exhaustive()
    }
}

#[expect(unsafe_code, reason = "a job borrows from its caller's stack")]
// SAFETY: `job` is written only by the holder of `turn` while no worker reads it (`pending` is 0), and `task` points to a `Sync`
// closure that `Pool::run` keeps alive until `pending` is 0 again.
unsafe impl Sync for Shared {}
#[expect(unsafe_code, reason = "a job borrows from its caller's stack")]
// SAFETY: as above; nothing in it belongs to one thread.
unsafe impl Send for Shared {}

impl Pool {
    /// Starts `threads - 1` threads named `name-1`, `name-2`, ... (the caller of [`Pool::run`] is the first one).
    pub fn new(name: &str, threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            threads,
            job: UnsafeCell::new(None),
            epoch: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::with_capacity(threads - 1), turn: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new().name(format!("{name}-{index}")).spawn(move || work(&shared, index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub fn threads(&self) -> usize {
        self.shared.threads
    }

    /// Runs `task(0) .. task(tasks - 1)` and returns when all are done. With as many tasks as threads, all run at the same time.
    /// A task must not call `run` on the same pool. A panic in a task is passed on when the others have ended.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(task);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.start(tasks, &task);
        let own = catch_unwind(AssertUnwindSafe(|| run_tasks(&task, tasks, 0, &self.shared.next)));
        wait_while(|| self.shared.pending.load(Ordering::Acquire) != 0);
        let theirs = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    #[expect(unsafe_code, reason = "a job borrows from its caller's stack")]
    fn start(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        // SAFETY: only the lifetime is changed. `run` does not return, and does not unwind, before `pending` is 0, after which no
        // worker uses the pointer.
        let task: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(task) };
        // SAFETY: `turn` is held and `pending` is 0, so nobody else looks at `job`.
        unsafe { *self.shared.job.get() = Some(Job { task, tasks, caller: thread::current() }) };
        self.shared.next.store(self.threads(), Ordering::Relaxed);
        self.shared.pending.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.workers.iter().for_each(|worker| worker.thread().unpark());
    }
}

impl Pool {
    /// Cuts `data` into runs of neighbouring rows of `width`, for each of which `task(first row, rows)` is called, on any thread. Few rows
    /// stay on the caller's. A last incomplete row counts as one.
    pub fn run_rows(&self, data: &mut [f32], width: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        /// With fewer floats than this, handing a task to another thread costs more than it helps.
        const WORTH_SHARING: usize = 8 * 1024;
        /// Tasks of each thread at most: enough for one to make up for a slower one.
        const TASKS: usize = 4;
        let rows = data.len().div_ceil(width.max(1));
        let share = rows.div_ceil((data.len() / WORTH_SHARING).clamp(1, self.threads() * TASKS));
        if share == 0 {
            return;
        }
        let (len, data) = (data.len(), SharedMut::new(data));
        self.run(rows.div_ceil(share), |index| {
            let (start, end) = (index * share * width, ((index + 1) * share * width).min(len));
            // SAFETY: each task has a range of its own.
            #[expect(unsafe_code, reason = "disjoint parts of one slice")]
            let part = unsafe { data.slice(start, end - start) };
            task(index * share, part);
        });
    }
}

/// A slice of which the tasks of a job write disjoint parts.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

#[expect(unsafe_code, reason = "disjoint parts of one slice")]
// SAFETY: `slice` is the only access, and its callers keep their parts disjoint.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrowed: PhantomData }
    }

    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "disjoint parts of one slice")]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "{start} + {len} of {}", self.len);
        // SAFETY: within the slice borrowed in `new`; disjoint from other parts as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panics are caught and handed to the caller of `run`.
            let _ = worker.join();
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        wait_while(|| shared.epoch.load(Ordering::Acquire) == seen && !shared.stop.load(Ordering::Acquire));
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        seen = shared.epoch.load(Ordering::Acquire);
        work_once(shared, index);
    }
}

#[expect(unsafe_code, reason = "a job borrows from its caller's stack")]
fn work_once(shared: &Shared, index: usize) {
    // SAFETY: the epoch moved after `job` was written, and it is not written again before this thread counts `pending` down.
    let Some(job) = (unsafe { (*shared.job.get()).clone() }) else { return };
    // SAFETY: the caller of `run` keeps the closure alive until `pending` is 0.
    let task = unsafe { &*job.task };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run_tasks(task, job.tasks, index, &shared.next))) {
        *shared.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
    }
    if shared.pending.fetch_sub(1, Ordering::Release) == 1 {
        job.caller.unpark();
    }
}

/// Runs the first task, and then others as long as there are any.
fn run_tasks(task: &(dyn Fn(usize) + Sync), tasks: usize, first: usize, next: &AtomicUsize) {
    let mut index = first;
    while index < tasks {
        task(index);
        index = next.fetch_add(1, Ordering::Relaxed);
    }
}

/// Spins, then yields, then parks until an `unpark` makes `waiting` false.
fn wait_while(waiting: impl Fn() -> bool) {
    for look in 0..SPINS + YIELDS {
        if !waiting() {
            return;
        }
        if look < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
    }
    while waiting() {
        thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3] {
            let pool = Pool::new("test", threads).unwrap();
            for tasks in [0, 1, 2, 7, 100] {
                let runs: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |index| {
                    runs[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn as_many_tasks_as_threads_run_together() {
        let pool = Pool::new("test", 3).unwrap();
        let barrier = std::sync::Barrier::new(3);
        pool.run(3, |_| {
            barrier.wait();
        });
    }

    /// One thread waits in its task until the other has run all that are left.
    #[test]
    fn a_free_thread_takes_what_is_left() {
        let (pool, done) = (Pool::new("test", 2).unwrap(), AtomicUsize::new(0));
        for slow in [0, 1] {
            done.store(0, Ordering::Relaxed);
            pool.run(9, |index| {
                while index == slow && done.load(Ordering::Relaxed) < 8 {
                    thread::yield_now();
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.load(Ordering::Relaxed), 9);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new("test", 2).unwrap();
        for bad in [0, 1] {
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.run(4, |index| assert_ne!(index, bad))));
            assert!(outcome.is_err());
        }
        let ran = AtomicUsize::new(0);
        pool.run(4, |_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 4);
    }
}
