//! Weights of 8 or 4 bits as the kernels read them, made from the model's own at load.
//!
//! ```text
//! panel of 16 columns: [unit of 8 k][half unit][16 columns][4 k] bytes        8 bits
//!                      [unit of 8 k][16 columns][4 k] bytes, the lower       4 bits
//!                      half bytes hold the first half unit, the upper the second
//! after all panels:    [panel][group][16 columns] bf16 scales
//! after all scales:    [panel][group][quarter][16 columns] bytes          4 bits
//!                      steps
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
use super::{Bits, GROUP, Groups, LANES, QUARTERS, UNIT};
use crate::matmul::WeightView;
use crate::pool::SharedMut;
use crate::simd::{Isa, Kernel, Simd};
use crate::{MappedFile, Pool};

/// A packed matrix.
#[derive(Clone, Debug)]
pub struct QuantizedMatrix {
    memory: Memory,
    bits: Bits,
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
    pub fn pack(isa: Isa, pool: &Pool, w: &WeightView<'_>, bits: Bits, groups: Groups) -> Result<Self, PackError> {
        assert_eq!(w.cols(), groups.row(), "groups of another product");
        let panels = w.rows().div_ceil(LANES);
        let Sizes { values: panel, scales: panel_scales, steps: panel_steps } = Sizes::of(bits, &groups);
        let bytes = (panels * (panel + panel_scales + panel_steps)).max(1);
        let mut map = MmapMut::map_anon(bytes).map_err(|source| PackError { bytes, source })?;
        // Fewer misses of the address cache; as good as nothing where the system has no large pages.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let (values, rest) = map.split_at_mut(panels * panel);
        let (scales, steps) = rest.split_at_mut(panels * panel_scales);
        let (values, scales, steps) = (SharedMut::new(values), SharedMut::new(scales), SharedMut::new(steps));
        let mut errors = vec![[0.0f64; 2]; panels];
        let shared_errors = SharedMut::new(&mut errors);
        let share = panels.div_ceil(pool.threads()).max(1);
        pool.run(panels.div_ceil(share), |task| {
            let mut rows = vec![0.0; LANES * w.cols()];
            for index in task * share..((task + 1) * share).min(panels) {
                // SAFETY: each panel has parts of its own.
                let (values, scales, steps, error) = unsafe {
                    (
                        values.slice(index * panel, panel),
                        scales.slice(index * panel_scales, panel_scales),
                        steps.slice(index * panel_steps, panel_steps),
                        shared_errors.slice(index, 1),
                    )
                };
                let columns = LANES.min(w.rows() - index * LANES);
                for (lane, row) in rows.chunks_exact_mut(w.cols().max(1)).enumerate() {
                    if lane < columns { w.copy_row(isa, index * LANES + lane, row) } else { row.fill(0.0) }
                }
                error[0] = isa.run(PackPanel { rows: &rows, columns, bits, groups: &groups, values, scales, steps });
            }
        });
        let [lost, all] = errors.iter().fold([0.0; 2], |[lost, all], error| [lost + error[0], all + error[1]]);
        let bytes = map.make_read_only().map_err(|source| PackError { bytes, source })?;
        Ok(Self {
            memory: Memory::Own(Arc::new(bytes)),
            bits,
            groups,
            rows: w.rows(),
            error: if all > 0.0 { (lost / all).sqrt() } else { 0.0 },
        })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn bits(&self) -> Bits {
        self.bits
    }

    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Takes what [`QuantizedMatrix::bytes`] of such a matrix was from a file; `None` if the part is not in the file or has another
    /// length.
    pub fn map(
        file: Arc<MappedFile>,
        range: Range<usize>,
        rows: usize,
        (bits, groups): (Bits, Groups),
        error: f64,
    ) -> Option<Self> {
        let Sizes { values, scales, steps } = Sizes::of(bits, &groups);
        let expected = rows.div_ceil(LANES) * (values + scales + steps);
        let is_there = file.bytes().get(range.clone()).is_some_and(|bytes| bytes.len() == expected.max(1));
        is_there.then(|| Self { memory: Memory::File { file, range }, bits, groups, rows, error })
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
        let Sizes { values, .. } = self.sizes();
        &self.bytes()[index * values..(index + 1) * values]
    }

    /// The scales of a panel.
    pub(super) fn scales(&self, index: usize) -> &[u8] {
        let Sizes { values, scales, .. } = self.sizes();
        let start = self.panels() * values + index * scales;
        &self.bytes()[start..start + scales]
    }

    /// The steps of a panel from a group on.
    pub(super) fn steps(&self, index: usize, group: usize) -> &[u8] {
        let Sizes { values, scales, steps } = self.sizes();
        let start = self.panels() * (values + scales) + index * steps;
        &self.bytes()[start + group * self.bits.step_bytes()..start + steps]
    }

    fn sizes(&self) -> Sizes {
        Sizes::of(self.bits, &self.groups)
    }
}

/// Bytes of a panel.
struct Sizes {
    values: usize,
    scales: usize,
    steps: usize,
}

impl Sizes {
    fn of(bits: Bits, groups: &Groups) -> Self {
        Self {
            values: groups.padded_row() / UNIT * bits.unit_bytes() * LANES,
            scales: groups.len() * LANES * size_of::<bf16>(),
            steps: groups.len() * bits.step_bytes(),
        }
    }
}

/// Sixteen columns into a panel.
struct PackPanel<'a> {
    /// `[LANES][k]`, zeros after `columns`.
    rows: &'a [f32],
    columns: usize,
    bits: Bits,
    groups: &'a Groups,
    values: &'a mut [u8],
    scales: &'a mut [u8],
    steps: &'a mut [u8],
}

impl Kernel for PackPanel<'_> {
    /// Sums of squares: of what rounding changed, and of the weights.
    type Output = [f64; 2];

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> [f64; 2] {
        let (bits, stride) = (self.bits, self.groups.row());
        let mut weights = Columns::new();
        let mut errors = [[0.0f64; LANES]; 2];
        let mut values = self.values.chunks_exact_mut(bits.unit_bytes() * LANES);
        let mut steps = self.steps.chunks_exact_mut(QUARTERS * LANES);
        for (index, scales) in self.scales.chunks_exact_mut(LANES * size_of::<bf16>()).enumerate() {
            let group = self.groups.plain(index);
            // SAFETY: the group lies in each of the rows. The CPU has `S`.
            let grids = unsafe {
                weights.take::<S>(self.rows.as_ptr().add(group.start), stride, group.len());
                weights.grids::<S>(bits)
            };
            let used = grids.scales.iter().take(self.columns);
            scales.as_chunks_mut().0.iter_mut().zip(used).for_each(|(stored, scale)| *stored = scale.to_le_bytes());
            if let Some(steps) = steps.next() {
                let bytes = grids.steps.as_flattened().iter().map(|step| *step as u8);
                steps.iter_mut().zip(bytes).for_each(|(stored, step)| *stored = step);
            }
            let mut sums = [[0.0f32; LANES]; 2];
            for (unit, (weights, stored)) in weights.units().iter().zip(&mut values).enumerate() {
                let scales = &grids.quarters[unit * UNIT * QUARTERS / GROUP];
                // SAFETY: the CPU has `S`.
                let codes = unsafe { round::codes::<S>(bits, weights, scales, &mut sums) };
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
