//! Weights of 8 or 4 bits as the kernels read them, made from the model's own at load.
//!
//! ```text
//! panel of 16 columns: [unit of 8 k][half unit][16 columns][4 k] bytes        8 bits
//!                      [unit of 8 k][16 columns][4 k] bytes, the lower       4 bits
//!                      half bytes hold the first half unit, the upper the second
//! after all panels:    [panel][group][16 columns] bf16 scales
//! ```
//!
//! Every level reads this one layout.

#![expect(unsafe_code, reason = "vector loads; disjoint writes from several threads")]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use memmap2::{Mmap, MmapMut};

use super::round::{self, Columns, Values};
use super::{Bits, Groups, LANES, UNIT};
use crate::matmul::WeightView;
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, Simd};
use crate::{MappedFile, Pool};

/// A packed matrix.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    memory: Memory,
    groups: Groups,
    rows: usize,
    error: f64,
}

/// Where the bytes of a packed matrix are.
#[derive(Clone, Debug)]
enum Memory {
    Own(Arc<Mmap>),
    File { file: Arc<MappedFile>, range: Range<usize> },
}

impl Memory {
    fn bytes(&self) -> &[u8] {
        match self {
            Memory::Own(map) => map,
            Memory::File { file, range } => &file.bytes()[range.clone()],
        }
    }
}

/// Memory for packed weights cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes for packed weights: {source}")]
pub struct PackError {
    bytes: usize,
    source: io::Error,
}

impl QuantizedMatrix {
    /// Packs `w`, whose columns are as long as a row of `groups`. Panics if they are not.
    pub fn pack(isa: Isa, pool: &Pool, w: &WeightView<'_>, groups: Groups) -> Result<Self, PackError> {
        assert_eq!(w.cols(), groups.row(), "groups of another product");
        let panels = w.rows().div_ceil(LANES);
        let (panel, scales) = (panel_bytes(&groups), scale_bytes(&groups));
        let bytes = (panels * (panel + scales)).max(1);
        let mut map = MmapMut::map_anon(bytes).map_err(|source| PackError { bytes, source })?;
        // Fewer misses of the address cache; as good as nothing where the system has no large pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let (values, rest) = map.split_at_mut(panels * panel);
        let (values, rest) = (SharedMut::new(values), SharedMut::new(rest));
        let mut errors = vec![[0.0f64; 2]; panels];
        let shared_errors = SharedMut::new(&mut errors);
        let share = panels.div_ceil(pool.threads()).max(1);
        pool.run(panels.div_ceil(share), |task| {
            let mut rows = vec![0.0; LANES * w.cols()];
            for index in task * share..((task + 1) * share).min(panels) {
                // SAFETY: each panel has parts of its own.
                let (values, scales, error) = unsafe {
                    (
                        values.slice(index * panel, panel),
                        rest.slice(index * scales, scales),
                        shared_errors.slice(index, 1),
                    )
                };
                let columns = LANES.min(w.rows() - index * LANES);
                for (lane, row) in rows.chunks_exact_mut(w.cols().max(1)).enumerate() {
                    if lane < columns { w.copy_row(isa, index * LANES + lane, row) } else { row.fill(0.0) }
                }
                error[0] = isa.run(PackPanel { rows: &rows, columns, groups: &groups, values, scales });
            }
        });
        let [lost, all] = errors.iter().fold([0.0; 2], |[lost, all], error| [lost + error[0], all + error[1]]);
        let bytes = map.make_read_only().map_err(|source| PackError { bytes, source })?;
        Ok(Self {
            memory: Memory::Own(Arc::new(bytes)),
            groups,
            rows: w.rows(),
            error: if all > 0.0 { (lost / all).sqrt() } else { 0.0 },
        })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Takes what [`QuantizedMatrix::bytes`] of such a matrix was from a file; `None` if the part is not in the file or has another
    /// length.
    pub fn map(file: Arc<MappedFile>, range: Range<usize>, rows: usize, groups: Groups, error: f64) -> Option<Self> {
        let expected = rows.div_ceil(LANES) * (panel_bytes(&groups) + scale_bytes(&groups));
        let is_there = file.bytes().get(range.clone()).is_some_and(|bytes| bytes.len() == expected.max(1));
        is_there.then(|| Self { memory: Memory::File { file, range }, groups, rows, error })
    }

    /// The packed bytes.
    pub fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    /// Root mean square of what rounding changed, relative to that of the weights.
    pub fn error(&self) -> f64 {
        self.error
    }

    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// The values of a panel.
    pub(super) fn panel(&self, index: usize) -> &[u8] {
        let size = panel_bytes(&self.groups);
        &self.bytes()[index * size..(index + 1) * size]
    }

    /// The scales of a panel.
    pub(super) fn scales(&self, index: usize) -> &[u8] {
        let (start, size) = (self.panels() * panel_bytes(&self.groups), scale_bytes(&self.groups));
        &self.bytes()[start + index * size..start + (index + 1) * size]
    }
}

fn panel_bytes(groups: &Groups) -> usize {
    groups.padded_row() / UNIT * groups.bits().unit_bytes() * LANES
}

fn scale_bytes(groups: &Groups) -> usize {
    groups.len() * LANES * size_of::<bf16>()
}

/// Sixteen columns into a panel.
struct PackPanel<'a> {
    /// `[LANES][k]`, zeros after `columns`.
    rows: &'a [f32],
    columns: usize,
    groups: &'a Groups,
    values: &'a mut [u8],
    scales: &'a mut [u8],
}

impl Kernel for PackPanel<'_> {
    /// Sums of squares: of what rounding changed, and of the weights.
    type Output = [f64; 2];

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f64; 2] {
        let (bits, stride) = (self.groups.bits(), self.groups.row());
        let mut weights = Columns::new();
        let mut errors = [[0.0f64; LANES]; 2];
        let mut values = self.values.chunks_exact_mut(bits.unit_bytes() * LANES);
        for (index, stored) in self.scales.chunks_exact_mut(LANES * size_of::<bf16>()).enumerate() {
            let group = self.groups.plain(index);
            // SAFETY: the group lies in each of the rows. The CPU has `S`.
            let scales = unsafe {
                weights.take::<S>(self.rows.as_ptr().add(group.start), stride, group.len());
                weights.scales::<S>(bits)
            };
            let used = scales.iter().take(self.columns);
            stored.as_chunks_mut().0.iter_mut().zip(used).for_each(|(stored, scale)| *stored = scale.to_le_bytes());
            let scales = round::widened(&scales);
            let mut sums = [[0.0f32; LANES]; 2];
            for (unit, (weights, stored)) in weights.units().iter().zip(&mut values).enumerate() {
                // SAFETY: the CPU has `S`.
                let codes = unsafe { round::codes::<S>(bits, weights, &scales, &mut sums) };
                store(stored, &codes[..UNIT.min(group.len() - unit * UNIT)], self.columns, bits);
            }
            for (errors, sums) in errors.iter_mut().zip(sums) {
                errors.iter_mut().zip(sums).for_each(|(error, sum)| *error += f64::from(sum));
            }
        }
        errors.map(|errors| errors.iter().sum())
    }
}

/// Writes a unit: `codes` without those that pad its group, of so many columns.
#[inline(always)]
fn store(to: &mut [u8], codes: &[Values], columns: usize, bits: Bits) {
    let mut halves = codes.chunks(UNIT / 2).map(|codes| words(codes, columns, bits.offset()));
    let (low, high) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    let (first, second) = to.split_at_mut(size_of_val(&low));
    let words = match bits {
        Bits::Eight => low,
        Bits::Four => std::array::from_fn(|lane| low[lane] | high[lane] << 4),
    };
    for (to, words) in [(first, words), (second, high)] {
        to.as_chunks_mut().0.iter_mut().zip(words).for_each(|(to, word)| *to = word.to_le_bytes());
    }
}

/// The bytes of up to four values of each column.
#[inline(always)]
fn words(codes: &[Values], columns: usize, offset: i32) -> [u32; LANES] {
    let mut words = [0; LANES];
    for (within, codes) in codes.iter().enumerate() {
        for (word, code) in words.iter_mut().zip(codes) {
            // Added to a small integer, it leaves that in the lowest bits.
            let shifted = (code + (3u32 << 22) as f32).to_bits();
            // What is not a number stands for nothing.
            let code = if code.is_nan() { 0 } else { shifted };
            *word |= (code.wrapping_add_signed(offset) & 0xFF) << (8 * within);
        }
    }
    words[columns..].fill(0);
    words
}
