//! A file in memory, laid where huge pages fit.
//!
//! A page of 4 KiB costs a fault when it is first touched, and a walk through page tables (two of them in a virtual machine) whenever the
//! processor has forgotten where it lies, as with KV it mostly has. One of 2 MiB costs as little as one of those. By itself the system
//! uses small pages for memory that processes share, so it is asked for each huge one.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

/// Bytes of a huge page.
pub(super) const HUGE: usize = 2 << 20;

/// All of a file, for every process that maps it.
#[derive(Debug)]
pub(super) struct Map {
    /// At a multiple of [`HUGE`].
    start: *mut u8,
    len: usize,
}

// SAFETY: an address and a length; whoever uses the memory sees to what he does with it.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps a file of `len` bytes, to be read or, if it is `writable`, written as well.
    pub(super) fn new(file: &File, len: usize, writable: bool) -> io::Result<Self> {
        let whole = len.checked_next_multiple_of(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let room = whole.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: addresses that the system gives us; the file goes where a part of them is, and the rest goes back.
        unsafe {
            let room_start = map(ptr::null_mut(), room, libc::PROT_NONE, nothing, -1)?;
            let before = room_start.align_offset(HUGE);
            let start = room_start.add(before);
            let mapped = map(start, len, access, libc::MAP_SHARED | libc::MAP_FIXED, file.as_raw_fd());
            libc::munmap(room_start.cast(), before);
            libc::munmap(start.add(whole).cast(), HUGE - before);
            // From here on what is left of the addresses is given back by dropping it.
            let map = Self { start, len };
            mapped.map(|_| map)
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Asks the system to make the `index`-th huge page one, with whatever was written to it. It may refuse, and small pages remain: before
    /// Linux 6.1, or where no memory of that size is free.
    pub(super) fn make_huge(&self, index: usize) {
        assert!((index + 1) * HUGE <= self.len, "huge page {index} of {} bytes", self.len);
        // SAFETY: within the map. The byte is read so that a page is there, without which the system refuses; advice changes no byte.
        unsafe {
            let start = self.start.add(index * HUGE);
            start.read_volatile();
            libc::madvise(start.cast(), HUGE, libc::MADV_COLLAPSE);
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own addresses, which nobody uses any more.
        unsafe { libc::munmap(self.start.cast(), self.len.next_multiple_of(HUGE)) };
    }
}

/// # Safety
/// With `MAP_FIXED` the addresses are the caller's own.
unsafe fn map(at: *mut u8, len: usize, access: i32, flags: i32, file: RawFd) -> io::Result<*mut u8> {
    // SAFETY: the caller grants it.
    let start = unsafe { libc::mmap(at.cast(), len, access, flags, file, 0) };
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start.cast()) }
}
