//! `silu(x * gate^T) * (x * up^T)`, made as the input of the product that follows.

use super::inputs::Tiles;
use super::load::F16;
use super::many::{self, Gated};
use super::{Bf16, Columns, Element, F32, Inputs, SCRATCH, Segments, WeightView, by_tiles};
use crate::Pool;
use crate::simd::{Isa, Kernel, Simd};

/// Weights and the bias of a product.
#[derive(Clone, Copy)]
pub struct Projection<'a, W> {
    pub weights: W,
    /// As many as the weights have rows.
    pub bias: Option<&'a [f32]>,
}

/// Fills `to`, as [`Inputs::fill`] does for weights of type `element` and `segments`, with `silu(x * gate^T) * (x * up^T)`, biases added
/// to both products: the bits of [`super::matmul`] and [`crate::silu_mul`]. False, and nothing is done, where that gains nothing: for few
/// rows, and if the weights are of two types. Panics if the shapes do not agree.
pub fn gated_matmul(
    isa: Isa,
    pool: &Pool,
    x: &Inputs,
    [gate, up]: [Projection<'_, WeightView<'_>>; 2],
    (element, segments): (Element, &Segments),
    to: &mut Inputs,
) -> bool {
    let (weights, tiles) = (gate.weights, Tiles::of(isa, x.rows()));
    let same = weights.element == up.weights.element;
    let tiled = [weights.element, element].map(|element| by_tiles(isa, element));
    if !same || tiled[0] != tiled[1] || !tiled[0] && !tiles.many() {
        return false;
    }
    for Projection { weights: w, bias } in [gate, up] {
        assert!(x.fit(isa, w.element, w.cols), "inputs of another product");
        assert!(w.rows == segments.len(), "{} outputs for {} inputs", w.rows, segments.len());
        assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias of another product");
    }
    if tiled[0] {
        return to.gated_by_tiles(isa, pool, x, [gate, up], segments);
    }
    let to = to.turned(isa, element, segments, x.rows());
    let (groups, share) = (many::groups(isa, x, tiles), many::share(isa, weights.rows, pool.threads(), 2));
    let shares = weights.rows.div_ceil(share);
    pool.run(groups * shares, |task| {
        let columns = |Projection { weights, bias }| Columns {
            x,
            w: weights,
            bias,
            tiles,
            down: tiles.group(task / shares, groups),
            columns: task % shares * share..(task % shares * share + share).min(weights.rows),
        };
        let gated = Gated { gate: columns(gate), up: columns(up), to: &to };
        SCRATCH.with_borrow_mut(|scratch| isa.run(Task { gated, scratch: &mut scratch.many }));
    });
    true
}

struct Task<'a> {
    gated: Gated<'a>,
    scratch: &'a mut many::Scratch,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    #[expect(unsafe_code, reason = "the signature of a kernel")]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: `gated_matmul` has checked the shapes and the type of the weights, and gives each task columns of its own.
        unsafe {
            match self.gated.gate.w.element {
                Element::F32 => self.gated.run::<S, F32>(self.scratch),
                Element::F16 => self.gated.run::<S, F16>(self.scratch),
                Element::Bf16 => self.gated.run::<S, Bf16>(self.scratch),
            }
        }
    }
}
