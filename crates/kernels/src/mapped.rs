//! Read-only files in memory. A page is read from disk when it is first touched.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// A whole file, mapped. The file must not be truncated while it is mapped: touching a lost page ends the process.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps `path` and asks the system to read ahead.
    #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this value. Model files are not modified while served; that is the documented
        // duty of whoever runs the process, as with every mapped file.
        let map = unsafe { Mmap::map(&file)? };
        // A hint only: a system that does not know it serves the same bytes.
        let _ = map.advise(Advice::WillNeed);
        Ok(Self { map })
    }

    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Lets go of the pages in memory; touching one reads it again.
    #[expect(unsafe_code, reason = "for other kinds of map, this advice would lose data")]
    pub fn release(&self) {
        // SAFETY: the map is of a file and read-only, so that its pages come back as they were. A hint only: errors change nothing.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }
}
