//! An allocator that counts: for tests and measurements of code that is to allocate nothing.

#![expect(unsafe_code, reason = "the trait is unsafe; every call is passed on to the system's allocator as it is")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// The system's allocator. Name it `#[global_allocator]` in a test's binary, and see what [`CountingAllocator::count`] says before and
/// after.
#[derive(Debug)]
pub struct CountingAllocator;

static COUNT: AtomicU64 = AtomicU64::new(0);

impl CountingAllocator {
    /// Allocations of all threads since the start; an existing one that moves or grows counts.
    pub fn count() -> u64 {
        COUNT.load(Ordering::Relaxed)
    }
}

// SAFETY: only counts; the system's allocator keeps the contract.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(at, layout) }
    }
}
