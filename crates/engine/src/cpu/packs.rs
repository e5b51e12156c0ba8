//! Packed matrices of one rank: made at load, or mapped from a file that instances of one host share.
//!
//! The file's name is a hash of the model, the packing and the rank. It appears whole, and is believed only if its header and the hash
//! of its content agree; any other file of that name is replaced.
//!
//! ```text
//! magic 16 | key 32 | hash of what follows the header 32 | number of matrices 8 | zeros to 128
//! for each matrix, in load order: bytes 8 | rounding error 8      (little endian), zeros to a multiple of 64
//! the matrices, each followed by zeros to a multiple of 64
//! ```

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kernels::{Bits, Groups, Isa, MappedFile, Pool, QuantizedMatrix, WeightView};

use crate::Error;

const MAGIC: &[u8; 16] = b"pdserve packed 1";
const HEADER: usize = 128;
const ALIGNMENT: usize = 64;

/// Where a rank's file is.
#[derive(Clone, Debug)]
pub(crate) struct PackPlace {
    path: PathBuf,
    key: [u8; 32],
}

/// What a rank packs, and what that comes to.
#[derive(Debug, Default)]
pub(crate) struct Packs {
    place: Option<PackPlace>,
    /// The file, and the matrices in it that were not yet asked for, last first.
    file: Option<(Arc<MappedFile>, Vec<Record>)>,
    all: Vec<QuantizedMatrix>,
    /// Not all came from the file.
    fresh: bool,
    pub(crate) so_far: PackedSoFar,
    /// Why the file could not be written.
    pub(crate) unsaved: Option<String>,
}

/// Sums over matrices.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackedSoFar {
    pub(crate) bytes: u64,
    /// Sum of bytes times squared relative error, to take the mean of.
    weighted_error: f64,
}

/// A matrix in the file.
#[derive(Clone, Copy, Debug)]
struct Record {
    start: usize,
    bytes: usize,
    error: f64,
}

impl PackPlace {
    /// The file below `dir` for what `facts` name: everything that the packed bytes depend on.
    pub(crate) fn new(dir: &Path, facts: &str) -> Self {
        let key = *blake3::Hasher::new_derive_key("pdserve packed weights, version 2")
            .update(facts.as_bytes())
            .finalize()
            .as_bytes();
        let name: String = key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { path: dir.join(format!("{name}.pack")), key }
    }
}

impl PackedSoFar {
    fn add(&mut self, matrix: &QuantizedMatrix) {
        let bytes = matrix.bytes().len();
        self.bytes += bytes as u64;
        self.weighted_error += bytes as f64 * matrix.error().powi(2);
    }

    /// What two ranks packed.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, weighted_error: self.weighted_error + other.weighted_error }
    }

    /// Root mean square of what rounding changed, relative to the weights.
    pub(crate) fn error(self) -> f64 {
        if self.bytes == 0 { 0.0 } else { (self.weighted_error / self.bytes as f64).sqrt() }
    }
}

impl Packs {
    /// Uses the file at `place` if it is there and sound.
    pub(crate) fn new(place: Option<PackPlace>) -> Self {
        let file = place.as_ref().and_then(|place| {
            let file = Arc::new(MappedFile::open(&place.path).ok()?);
            let mut records = records(file.bytes(), &place.key)?;
            records.reverse();
            Some((file, records))
        });
        Self { place, file, ..Self::default() }
    }

    /// The next matrix, from the file or made of `w`.
    pub(crate) fn pack(
        &mut self,
        isa: Isa,
        pool: &Pool,
        w: &WeightView<'_>,
        bits: Bits,
        groups: Groups,
    ) -> Result<QuantizedMatrix, Error> {
        let mapped = self.file.as_mut().and_then(|(file, records)| {
            let Record { start, bytes, error } = records.pop()?;
            QuantizedMatrix::map(Arc::clone(file), start..start + bytes, w.rows(), (bits, groups.clone()), error)
        });
        let matrix = match mapped {
            Some(matrix) => matrix,
            None => {
                self.fresh = true;
                QuantizedMatrix::pack(isa, pool, w, bits, groups)?
            }
        };
        self.so_far.add(&matrix);
        self.all.push(matrix.clone());
        Ok(matrix)
    }

    /// Writes the file, if there is to be one and it did not hold everything; true if it is worth to load again, from the file. One
    /// that cannot be written (no room, read-only) is done without.
    pub(crate) fn save(&mut self) -> bool {
        let Some(place) = self.place.as_ref().filter(|_| self.fresh) else { return false };
        let written = write(place, &self.all);
        self.unsaved = written.as_ref().err().map(|error| format!("{}: {error}", place.path.display()));
        written.is_ok()
    }
}

/// The matrices of a sound file.
fn records(bytes: &[u8], key: &[u8; 32]) -> Option<Vec<Record>> {
    let (header, content) = bytes.split_at_checked(HEADER)?;
    let sound = header[..16] == *MAGIC && header[16..48] == *key && header[48..80] == *blake3::hash(content).as_bytes();
    let count = usize::try_from(u64::from_le_bytes(header[80..88].try_into().ok()?)).ok()?;
    if !sound || count > content.len() / 16 {
        return None;
    }
    let mut start = HEADER + (16 * count).next_multiple_of(ALIGNMENT);
    let record = |record: &[u8]| {
        let bytes = usize::try_from(u64::from_le_bytes(record[..8].try_into().ok()?)).ok()?;
        let error = f64::from_le_bytes(record[8..].try_into().ok()?);
        let this = Record { start, bytes, error };
        start = start.checked_add(bytes)?.checked_next_multiple_of(ALIGNMENT)?;
        Some(this)
    };
    content[..16 * count].chunks_exact(16).map(record).collect()
}

/// Writes beside the place and links there, so that a reader never meets half a file and two writers end up with one.
fn write(place: &PackPlace, matrices: &[QuantizedMatrix]) -> io::Result<()> {
    if let Some(dir) = place.path.parent() {
        fs::create_dir_all(dir)?;
    }
    let parts = parts(matrices);
    let mut hasher = blake3::Hasher::new();
    for part in &parts {
        hasher.update(part);
    }
    let staging = place.path.with_extension(format!("{}.tmp", std::process::id()));
    let mut file = BufWriter::new(File::create(&staging)?);
    let header =
        [&MAGIC[..], &place.key, hasher.finalize().as_bytes(), &(matrices.len() as u64).to_le_bytes()].concat();
    let written = file.write_all(&header).and_then(|()| file.write_all(&[0; HEADER][header.len()..]));
    let written = parts.iter().fold(written, |written, part| written.and_then(|()| file.write_all(part)));
    let linked = written.and_then(|()| file.flush()).and_then(|()| link(&staging, place));
    fs::remove_file(&staging).ok();
    linked
}

/// What follows the header.
fn parts(matrices: &[QuantizedMatrix]) -> Vec<Cow<'_, [u8]>> {
    let record =
        |matrix: &QuantizedMatrix| [(matrix.bytes().len() as u64).to_le_bytes(), matrix.error().to_le_bytes()].concat();
    let mut records: Vec<u8> = matrices.iter().flat_map(record).collect();
    records.resize(records.len().next_multiple_of(ALIGNMENT), 0);
    let mut parts = vec![Cow::from(records)];
    for matrix in matrices {
        let bytes = matrix.bytes();
        parts.extend([bytes.into(), vec![0; bytes.len().next_multiple_of(ALIGNMENT) - bytes.len()].into()]);
    }
    parts
}

/// Puts the file in its place, unless a sound one has got there meanwhile.
fn link(staging: &Path, place: &PackPlace) -> io::Result<()> {
    match fs::hard_link(staging, &place.path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let theirs = MappedFile::open(&place.path)?;
            if records(theirs.bytes(), &place.key).is_some() {
                return Ok(());
            }
            fs::rename(staging, &place.path)
        }
        outcome => outcome,
    }
}
