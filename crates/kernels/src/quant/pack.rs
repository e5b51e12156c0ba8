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

#![expect(unsafe_code, reason = "disjoint writes from several threads")]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::bf16;
use memmap2::{Mmap, MmapMut};

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
        pool.run(panels, |index| {
            // SAFETY: each panel has parts of its own.
            let (values, scales, error) = unsafe {
                (values.slice(index * panel, panel), rest.slice(index * scales, scales), shared_errors.slice(index, 1))
            };
            let mut column = vec![0.0; w.cols()];
            for lane in 0..LANES.min(w.rows() - index * LANES) {
                w.copy_row(isa, index * LANES + lane, &mut column);
                isa.run(PackColumn { column: &column, groups: &groups, lane, values, scales, error: &mut error[0] });
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

/// One column into its lane of a panel.
struct PackColumn<'a> {
    column: &'a [f32],
    groups: &'a Groups,
    lane: usize,
    values: &'a mut [u8],
    scales: &'a mut [u8],
    /// Sums of squares: of what rounding changed, and of the weights.
    error: &'a mut [f64; 2],
}

impl Kernel for PackColumn<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let bits = self.groups.bits();
        for index in 0..self.groups.len() {
            let weights = &self.column[self.groups.plain(index)];
            let scale = scale(weights, bits);
            let at = (index * LANES + self.lane) * size_of::<bf16>();
            self.scales[at..at + size_of::<bf16>()].copy_from_slice(&scale.to_le_bytes());
            let (scale, start) = (scale.to_f32(), self.groups.padded(index).start);
            for (k, weight) in weights.iter().enumerate() {
                let code = code(*weight, scale, bits);
                self.error[0] += f64::from(weight - code * scale).powi(2);
                self.error[1] += f64::from(*weight).powi(2);
                let byte = (code as i32 + bits.offset()) as u8;
                put(self.values, bits, self.lane, start + k, byte);
            }
        }
    }
}

/// Writes value `k` of a column.
#[inline(always)]
fn put(values: &mut [u8], bits: Bits, lane: usize, k: usize, byte: u8) {
    let (unit, half, within) = (k / UNIT, k % UNIT / 4, k % 4);
    match bits {
        Bits::Eight => values[((unit * 2 + half) * LANES + lane) * 4 + within] = byte,
        Bits::Four => values[(unit * LANES + lane) * 4 + within] |= byte << (4 * half),
    }
}

/// The integer that stands for `weight`.
#[inline(always)]
pub(super) fn code(weight: f32, scale: f32, bits: Bits) -> f32 {
    let (low, high) = match bits {
        Bits::Eight => (-127.0, 127.0),
        Bits::Four => (-8.0, 7.0),
    };
    if scale == 0.0 { 0.0 } else { (weight / scale).round_ties_even().clamp(low, high) }
}

/// The scale that a group gets.
#[inline(always)]
pub(super) fn scale(weights: &[f32], bits: Bits) -> bf16 {
    match bits {
        Bits::Eight => scale8(weights),
        Bits::Four => scale4(weights),
    }
}

/// The largest weight becomes 127.
#[inline(always)]
fn scale8(weights: &[f32]) -> bf16 {
    let largest = weights.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
    bf16::from_f32(largest / 127.0)
}

/// Of some scales that map the largest weight near the end of the range, the one with the least squared error.
#[inline(always)]
fn scale4(weights: &[f32]) -> bf16 {
    /// What the largest weight (by magnitude) becomes: -8 uses the whole range; a smaller number clips less, a larger one is finer.
    const ENDS: [f32; 7] = [-8.0, -7.5, -7.0, -8.5, -9.0, -9.75, 7.0];
    let largest =
        weights.iter().fold(0.0f32, |largest, weight| if weight.abs() > largest.abs() { *weight } else { largest });
    let mut best = (f32::INFINITY, bf16::ZERO);
    for end in ENDS {
        let scale = bf16::from_f32(largest / end);
        let error = squared_error(weights, scale.to_f32());
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

#[inline(always)]
fn squared_error(weights: &[f32], scale: f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    for weights in weights.chunks(lanes.len()) {
        for (lane, weight) in lanes.iter_mut().zip(weights) {
            let lost = weight - code(*weight, scale, Bits::Four) * scale;
            *lane += lost * lost;
        }
    }
    lanes.iter().sum()
}
