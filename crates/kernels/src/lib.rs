//! Fast math with safe signatures; the one room that may hold unsafe code.
//!
//! Invariant: on one instruction-set level, an output element is computed in one order whatever the number of rows, threads or
//! blocks around it. Everything that promises equal text for equal prompts stands on that.
//!
//! ```text
//! Isa (what the CPU has) ─► simd::Simd (vectors) ─► matmul, attention, norm, rope, pointwise
//!                        ─► quant::Dot (integer vectors) ─► quant: products of 8-bit and 4-bit weights
//!                        ─► tiles::Tiles (tile registers, on some CPUs) ─► matmul of bf16 weights, quant
//! Pool (threads)         ─► split by output element, never by what is summed
//! KvArena, MappedFile    ─► where keys, values and weights lie; KvMemory, Checksum: how KV leaves the process
//! ```

#[cfg(target_endian = "big")]
compile_error!("weights and KV are little endian in memory");

mod arena;
mod attention;
mod checksum;
mod counting;
pub mod limits;
mod mapped;
mod matmul;
mod memory;
mod norm;
mod pointwise;
mod pool;
mod quant;
mod rope;
mod simd;
#[cfg(test)]
mod testing;
mod tiles;

pub use arena::{KvArena, KvElement, KvHalf, KvLayer, KvRow, KvRows, KvShape};
pub use attention::{AttentionShape, attention};
pub use checksum::Checksum;
pub use counting::CountingAllocator;
pub use mapped::MappedFile;
pub use matmul::{Element, Inputs, Projection, SEGMENTS, Segments, WeightView, gated_matmul, matmul, tree_sum};
pub use memory::{ForeignMemory, KvMemory};
pub use norm::{RmsNorm, add_rms_norm, rms_norm};
pub use pointwise::{argmax, log_sum_exp, silu_mul, softmax_weights};
pub use pool::Pool;
pub use quant::{Bits, Groups, PackError, QuantizedMatrix, QuantizedRows, quantized_gated_matmul, quantized_matmul};
pub use rope::{Angles, NewHeads, rope_and_store};
pub use simd::{Isa, IsaError};
