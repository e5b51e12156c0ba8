//! Memory that another process of this host may map, and copy from: where KV lies.
//!
//! It holds bytes and no Rust values, and no reference into it is ever made: every access is a raw copy whose bounds are checked here.
//! So whoever writes while another reads makes values wrong and nothing else; that nobody does is settled by who holds a block, and
//! between processes by a checksum over what was copied. Memory is zero and costs nothing until touched; once some of a huge page's place
//! is in use, it becomes one.

#![expect(unsafe_code, reason = "raw copies within a map whose bounds are checked")]

mod map;

use std::fs::File;
use std::io::{self, Error, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};

use crate::checksum::{Checksum, To};
use map::{HUGE, Map};

/// Bytes at the beginning of a huge page's place that small pages serve: who needs little takes little.
const SMALL: usize = HUGE / 8;

/// See the module's head.
#[derive(Debug)]
pub struct KvMemory {
    map: Map,
    file: Arc<File>,
    /// By huge page, of which the last bytes may not fill one: whether the system was asked for it.
    asked: Box<[AtomicBool]>,
}

/// A [`KvMemory`] of another process, to be read only.
#[derive(Debug)]
pub struct ForeignMemory {
    map: Map,
}

impl KvMemory {
    /// Reserves address space; pages become memory when they are first written.
    pub fn new(bytes: usize) -> io::Result<Self> {
        let (file, map) = sealed_file(bytes.max(1))?;
        let asked = (0..map.len() / HUGE).map(|_| AtomicBool::new(false)).collect();
        Ok(Self { map, file: Arc::new(file), asked })
    }

    /// What another process of this host needs to map it.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Panics if `at` and what follows are not inside, as all functions here.
    pub fn read(&self, at: usize, out: &mut [u8]) {
        // SAFETY: `span` has checked the source; `out` is a slice of its own.
        unsafe { std::ptr::copy_nonoverlapping(self.span(at, out.len()).cast_const(), out.as_mut_ptr(), out.len()) }
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        // SAFETY: `span` has checked the destination; `bytes` is a slice of its own.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.span_to_write(at, bytes.len()), bytes.len()) }
    }

    pub fn copy_within(&self, from: usize, to: usize, len: usize) {
        // SAFETY: `span` has checked both.
        unsafe { std::ptr::copy(self.span(from, len).cast_const(), self.span_to_write(to, len), len) }
    }

    /// Adds what lies at `at` to `checksum`.
    pub fn checksum(&self, at: usize, len: usize, checksum: &mut Checksum) {
        // SAFETY: `span` has checked it.
        unsafe { checksum.add_raw(self.span(at, len).cast_const(), To::Nowhere, len) }
    }

    /// As [`KvMemory::read`], and adds what was read to `checksum`: one pass over the bytes.
    pub fn read_adding(&self, at: usize, out: &mut [u8], checksum: &mut Checksum) {
        // SAFETY: `span` has checked the source; `out` is a slice of its own.
        unsafe { checksum.add_raw(self.span(at, out.len()).cast_const(), To::Near(out.as_mut_ptr()), out.len()) }
    }

    /// As [`KvMemory::write`], and adds what was written to `checksum`: one pass over the bytes.
    pub fn write_adding(&self, at: usize, bytes: &[u8], checksum: &mut Checksum) {
        // SAFETY: `span` has checked the destination; `bytes` is a slice of its own.
        unsafe { checksum.add_raw(bytes.as_ptr(), To::Far(self.span_to_write(at, bytes.len())), bytes.len()) }
    }

    /// Copies from another process's memory, and adds what was copied to `checksum`: one pass over the bytes.
    pub fn copy_from(&self, to: usize, from: &ForeignMemory, at: usize, len: usize, checksum: &mut Checksum) {
        let source = inside(&from.map, at, len).cast_const();
        // SAFETY: both ends are checked; they are different maps.
        unsafe { checksum.add_raw(source, To::Far(self.span_to_write(to, len)), len) }
    }

    /// Where `len` bytes from `at` on lie.
    pub(crate) fn span(&self, at: usize, len: usize) -> *mut u8 {
        inside(&self.map, at, len)
    }

    /// The same, before it is written to: for the first time behind what small pages serve, huge ones are asked for.
    pub(crate) fn span_to_write(&self, at: usize, len: usize) -> *mut u8 {
        let start = self.span(at, len);
        let pages = at / HUGE..(at + len).saturating_sub(SMALL).div_ceil(HUGE).min(self.asked.len());
        for page in pages {
            if !self.asked[page].load(Ordering::Relaxed) && !self.asked[page].swap(true, Ordering::Relaxed) {
                self.map.make_huge(page);
            }
        }
        start
    }
}

impl ForeignMemory {
    /// Maps the file of another process's [`KvMemory`] of `bytes` bytes.
    ///
    /// # Errors
    /// `InvalidInput` unless the file is exactly that long and sealed so that it can never shrink: a page that is mapped stays there.
    pub fn map(file: &File, bytes: usize) -> io::Result<Self> {
        let refuse = |reason: String| Err(Error::new(ErrorKind::InvalidInput, reason));
        let found = file.metadata()?.len();
        if found != bytes as u64 {
            return refuse(format!("a file of {found} bytes, expected {bytes}"));
        }
        if !rustix::fs::fcntl_get_seals(file)?.contains(SealFlags::SHRINK) {
            return refuse("a file that could shrink while it is mapped".to_owned());
        }
        Ok(Self { map: Map::new(file, bytes, false)? })
    }
}

/// A file without a name that keeps its size, and that nobody else can write to.
fn sealed_file(bytes: usize) -> io::Result<(File, Map)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("pdserve-kv", flags)?);
    file.set_len(bytes as u64)?;
    let map = Map::new(&file, bytes, true)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
    // Kernels before 5.1 do not know it; there, a peer of our own user could write.
    let _ = rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE);
    Ok((file, map))
}

fn inside(map: &Map, at: usize, len: usize) -> *mut u8 {
    assert!(at <= map.len() && len <= map.len() - at, "{len} bytes at {at} of {}", map.len());
    // SAFETY: within the map.
    unsafe { map.start().add(at) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::{Isa, Pool};

    #[test]
    fn another_map_sees_what_is_written_and_copies_it_with_its_checksum() {
        let (ours, theirs) = (KvMemory::new(10_000).unwrap(), KvMemory::new(9_000).unwrap());
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 31 % 251) as u8).collect();
        theirs.write(100, &bytes);
        let foreign = ForeignMemory::map(theirs.file(), 9_000).unwrap();
        let [mut copied, mut stored] = [(); 2].map(|()| Checksum::new(Isa::from_env().unwrap(), 9));
        ours.copy_from(7, &foreign, 100, 5000, &mut copied);
        theirs.checksum(100, 5000, &mut stored);
        let mut found = vec![0; 5000];
        ours.read(7, &mut found);
        assert_eq!(found, bytes);
        assert_eq!(copied.finish(), stored.finish());
        let [mut read, mut written] = [(); 2].map(|()| Checksum::new(Isa::from_env().unwrap(), 9));
        found.fill(0);
        theirs.read_adding(100, &mut found, &mut read);
        assert_eq!(found, bytes);
        ours.write_adding(64, &bytes, &mut written);
        ours.read(64, &mut found);
        assert_eq!(found, bytes);
        assert_eq!([read.finish(), written.finish()], [stored.finish(); 2]);
    }

    #[test]
    fn huge_pages_are_asked_for_where_more_than_a_little_is_used() {
        let memory = KvMemory::new(3 * HUGE + SMALL + 2).unwrap();
        let asked = || memory.asked.iter().map(|asked| asked.load(Ordering::Relaxed)).collect::<Vec<_>>();
        memory.write(0, &[1; SMALL]);
        memory.write(3 * HUGE, &[2; SMALL + 2]);
        assert_eq!(asked(), [false; 3]);
        memory.write(HUGE + SMALL, &[3]);
        assert_eq!(asked(), [false, true, false]);
        memory.write(SMALL - 1, &vec![4; 2 * HUGE]);
        assert_eq!(asked(), [true, true, false]);
        memory.copy_within(0, 2 * HUGE, SMALL + 1);
        assert_eq!(asked(), [true; 3]);
    }

    /// Whoever comes first asks for the huge page, while the others write to it; the last bytes fill none.
    #[test]
    fn threads_that_touch_memory_for_the_first_time_keep_their_bytes() {
        const THREADS: usize = 4;
        let bytes: Vec<u8> = (0..3 * HUGE + 5000).map(|i| (i * 31 % 251) as u8).collect();
        let memory = KvMemory::new(bytes.len()).unwrap();
        Pool::new("test", THREADS).unwrap().run(THREADS, |thread| {
            for (index, part) in bytes.chunks(1000).enumerate().skip(thread).step_by(THREADS) {
                memory.write(index * 1000, part);
            }
        });
        assert!(memory.asked.iter().all(|asked| asked.load(Ordering::Relaxed)));
        let (mut ours, mut theirs) = (vec![0; bytes.len()], vec![0; bytes.len()]);
        memory.read(0, &mut ours);
        let foreign = ForeignMemory::map(memory.file(), bytes.len()).unwrap();
        let copy = KvMemory::new(bytes.len()).unwrap();
        copy.copy_from(0, &foreign, 0, bytes.len(), &mut Checksum::new(Isa::from_env().unwrap(), 0));
        copy.read(0, &mut theirs);
        assert!(ours == bytes && theirs == bytes);
    }

    #[test]
    fn a_file_that_may_shrink_or_has_another_size_is_refused() {
        let memory = KvMemory::new(4096).unwrap();
        let file = memory.file();
        assert!(ForeignMemory::map(file, 4095).unwrap_err().to_string().contains("expected 4095"));
        assert!(file.set_len(0).is_err(), "sealed");
        assert!(file.write_at(&[1], 0).is_err(), "sealed against writing other than by the map");
        let open = File::from(rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap());
        open.set_len(4096).unwrap();
        assert!(ForeignMemory::map(&open, 4096).unwrap_err().to_string().contains("shrink"));
    }

    #[test]
    #[should_panic(expected = "2 bytes at 4095 of 4096")]
    fn nothing_is_read_behind_the_end() {
        KvMemory::new(4096).unwrap().read(4095, &mut [0; 2]);
    }
}
