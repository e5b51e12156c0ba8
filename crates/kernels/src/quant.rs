//! Linear products with weights of 8 or 4 bits and inputs of 8 bits.
//!
//! Weights and inputs are cut into the same groups of 128 along the inner dimension. A group of a weight column, and a group of an input
//! row, share one scale each: `y += (sum of w * x as integers) * scale of w * scale of x`. Integer sums are exact, and the scaled groups
//! are added one after the other within a segment, segments as a balanced tree. So an output has the same bits whatever the number of
//! rows, threads or ranks, and on every instruction-set level.
//!
//! Small groups keep an outlier's damage to its neighbours, which matters with 4 bits. There each quarter of a group has a step of its
//! own, a whole number from -15 to 15, as in the format Q4_K of GGUF: a weight is `(half byte - 8) * step * scale of the group`. The
//! first two make a byte, so many rows of inputs meet weights of 4 bits as they meet those of 8, and nothing is scaled per quarter; few
//! rows multiply by half bytes and then by steps, which is as exact.
//!
//! ```text
//! Groups  ─► where both sides are cut        QuantizedMatrix ─► weights, packed at load (pack.rs, round.rs)
//! Dot     ─► integer vectors of a level      QuantizedRows   ─► inputs, once for all products that share them (rows.rs)
//! gated   ─► gate and up of an MLP at once, into the inputs of what follows
//! tiles   ─► the same sums by tile registers, on some CPUs
//! ```

pub(crate) mod dot;
mod gated;
mod groups;
mod pack;
mod product;
mod round;
mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod tiles;
mod unit;

pub use gated::quantized_gated_matmul;
pub use groups::Groups;
pub use pack::{PackError, QuantizedMatrix};
pub use product::quantized_matmul;
pub use rows::QuantizedRows;

/// How many bits a weight has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bits {
    Eight,
    Four,
}

impl Bits {
    /// Bytes of [`UNIT`] values of one column.
    fn unit_bytes(self) -> usize {
        match self {
            Bits::Eight => UNIT,
            Bits::Four => UNIT / 2,
        }
    }

    /// Stored weights are this much larger than what they mean.
    fn offset(self) -> i32 {
        match self {
            Bits::Eight => OFFSET,
            Bits::Four => HALF_OFFSET,
        }
    }

    /// Bytes of a group's steps, all columns of a panel.
    fn step_bytes(self) -> usize {
        match self {
            Bits::Eight => 0,
            Bits::Four => QUARTERS * LANES,
        }
    }
}

/// Columns that lie side by side.
const LANES: usize = 16;

/// Values along the inner dimension that are stored together; groups are padded to a multiple of it.
const UNIT: usize = 8;

/// Values along the inner dimension that share a scale, at most.
const GROUP: usize = 128;

/// Steps of a group of 4 bits.
const QUARTERS: usize = 4;

/// Bytes that products work with are this much larger than what they mean, so that they are never negative.
const OFFSET: i32 = 128;

/// The same of half bytes.
const HALF_OFFSET: i32 = 8;
