//! Linear products with weights of 8 or 4 bits and inputs of 8 bits.
//!
//! Weights and inputs are cut into the same groups along the inner dimension. A group of a weight column, and a group of an input row,
//! share one scale each: `y += (sum of w * x as integers) * scale of w * scale of x`. Integer sums are exact, and the scaled groups are
//! added one after the other within a segment, segments as a balanced tree. So an output has the same bits whatever the number of
//! rows, threads or ranks, and on every instruction-set level.
//!
//! Small groups keep an outlier's damage to its neighbours. 8 bits: 128 values; 4 bits: 32 (as in the formats Q8_0 and Q4_0 of GGUF,
//! whose 32 values per group and choice of the 4-bit scale this follows).
//!
//! ```text
//! Groups  ─► where both sides are cut        QuantizedMatrix ─► weights, packed at load (pack.rs, round.rs)
//! Dot     ─► integer vectors of a level      QuantizedRows   ─► inputs, once for all products that share them (rows.rs)
//! tiles   ─► the same sums by tile registers, on some CPUs
//! ```

pub(crate) mod dot;
mod groups;
mod pack;
mod product;
mod round;
mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod tiles;
mod unit;

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
    /// Values that share a scale.
    pub fn group(self) -> usize {
        match self {
            Bits::Eight => 128,
            Bits::Four => 32,
        }
    }

    /// Stored weights are this much larger than what they mean, so that they are never negative.
    fn offset(self) -> i32 {
        match self {
            Bits::Eight => 128,
            Bits::Four => 8,
        }
    }

    /// Bytes of [`UNIT`] values of one column.
    fn unit_bytes(self) -> usize {
        match self {
            Bits::Eight => UNIT,
            Bits::Four => UNIT / 2,
        }
    }
}

/// Columns that lie side by side.
const LANES: usize = 16;

/// Values along the inner dimension that are stored together; groups are padded to a multiple of it.
const UNIT: usize = 8;
