//! Matrices of the CPU backend, mapped or packed, and products with them.

use kernels::{
    Bits, Element, Groups, Inputs, Isa, Pool, Projection, QuantizedMatrix, QuantizedRows, Segments, WeightView,
};

use super::packs::Packs;
use crate::backend::Part;
use crate::weights::Matrix;
use crate::{Error, Quantization};

/// A matrix, and where the sums of its products are cut.
pub(crate) enum CpuMatrix {
    Mapped { matrix: Matrix, segments: Segments },
    Packed(QuantizedMatrix),
}

impl CpuMatrix {
    /// Takes a matrix as it is stored, or packs it.
    pub(crate) fn load(
        isa: Isa,
        pool: &Pool,
        matrix: Matrix,
        segments: Segments,
        bits: Option<Bits>,
        packs: &mut Packs,
    ) -> Result<Self, Error> {
        match bits {
            None => Ok(Self::Mapped { matrix, segments }),
            Some(bits) => packs.pack(isa, pool, &matrix.view(), bits, Groups::new(segments)).map(Self::Packed),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Mapped { matrix, .. } => matrix.view().rows(),
            Self::Packed(packed) => packed.rows(),
        }
    }

    fn cols(&self) -> usize {
        match self {
            Self::Mapped { matrix, .. } => matrix.view().cols(),
            Self::Packed(packed) => packed.groups().row(),
        }
    }

    /// How weights are stored; packed ones are none of these.
    fn element(&self) -> Option<Element> {
        match self {
            Self::Mapped { matrix, .. } => Some(matrix.view().element()),
            Self::Packed(_) => None,
        }
    }

    /// The rows as they are stored; tables are never packed.
    pub(crate) fn table(&self) -> Option<WeightView<'_>> {
        match self {
            Self::Mapped { matrix, .. } => Some(matrix.view()),
            Self::Packed(_) => None,
        }
    }
}

/// How many bits a matrix gets.
pub(crate) fn bits(quantization: Option<Quantization>, part: Part) -> Option<Bits> {
    match (quantization?, part) {
        (_, Part::Table) => None,
        (Quantization::Int8, _) | (_, Part::Head) => Some(Bits::Eight),
        (Quantization::Int4, Part::Outputs | Part::Inputs) => Some(Bits::Four),
    }
}

/// One product: `out = x * matrix^T (+ bias)`.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a CpuMatrix,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) out: &'a mut Vec<f32>,
}

/// The input of products, laid out for their weights. Kept from step to step, so that a warm step allocates nothing.
#[derive(Default)]
pub(crate) struct Rows {
    mapped: Inputs,
    packed: QuantizedRows,
}

impl Rows {
    /// Takes `x` for products with matrices that are stored and cut like this one.
    fn fill(&mut self, isa: Isa, pool: &Pool, matrix: &CpuMatrix, x: &[f32]) {
        match matrix {
            CpuMatrix::Mapped { matrix, segments } => {
                self.mapped.fill(isa, pool, matrix.view().element(), segments, x);
            }
            CpuMatrix::Packed(packed) => self.packed.fill(isa, pool, packed.groups(), x),
        }
    }

    /// A product of what was taken, `[count][matrix.cols]`.
    fn product(&self, isa: Isa, pool: &Pool, count: usize, Product { matrix, bias, out }: Product<'_>) {
        out.resize(count * matrix.rows(), 0.0);
        match matrix {
            CpuMatrix::Mapped { matrix, .. } => kernels::matmul(isa, pool, &self.mapped, &matrix.view(), bias, out),
            CpuMatrix::Packed(packed) => kernels::quantized_matmul(isa, pool, &self.packed, packed, bias, out),
        }
    }

    /// Fills `to` for `next` with the gated products of what was taken, if that can be done at once.
    fn gated(
        &self,
        isa: Isa,
        pool: &Pool,
        gate: &Product<'_>,
        up: &Product<'_>,
        next: &CpuMatrix,
        to: &mut Rows,
    ) -> bool {
        use CpuMatrix::{Mapped, Packed};
        let biases = [gate.bias, up.bias];
        match (gate.matrix, up.matrix, next) {
            (Mapped { matrix: gate, .. }, Mapped { matrix: up, .. }, Mapped { matrix, segments }) => {
                let projections = projections([gate.view(), up.view()], biases);
                let next = (matrix.view().element(), segments);
                kernels::gated_matmul(isa, pool, &self.mapped, projections, next, &mut to.mapped)
            }
            (Packed(gate), Packed(up), Packed(next)) => {
                let projections = projections([gate, up], biases);
                kernels::quantized_gated_matmul(isa, pool, &self.packed, projections, next.groups(), &mut to.packed)
            }
            _ => false,
        }
    }
}

fn projections<'a, W>([gate, up]: [W; 2], [of_gate, of_up]: [Option<&'a [f32]>; 2]) -> [Projection<'a, W>; 2] {
    [Projection { weights: gate, bias: of_gate }, Projection { weights: up, bias: of_up }]
}

/// Computes products of one input, whose matrices are all mapped or all packed and cut alike. `rows` is made ready once for all.
pub(crate) fn products<const N: usize>(isa: Isa, pool: &Pool, rows: &mut Rows, x: &[f32], products: [Product<'_>; N]) {
    let mut laid_out = None;
    for product in products {
        let element = product.matrix.element();
        if laid_out.replace(element) != Some(element) {
            rows.fill(isa, pool, product.matrix, x);
        }
        rows.product(isa, pool, x.len() / product.matrix.cols(), product);
    }
}

/// Computes `down.out = (silu(x * gate^T) * (x * up^T)) * down^T`; `gate.out` and `up.out` are used if they are needed. `rows` is made
/// ready for the first two products, `activated` for the last.
pub(crate) fn gated_products(
    isa: Isa,
    pool: &Pool,
    [rows, activated]: [&mut Rows; 2],
    x: &[f32],
    [gate, up]: [Product<'_>; 2],
    down: Product<'_>,
) {
    let count = x.len() / gate.matrix.cols();
    rows.fill(isa, pool, gate.matrix, x);
    if !rows.gated(isa, pool, &gate, &up, down.matrix, activated) {
        let alike = gate.matrix.element() == up.matrix.element();
        let Product { matrix, bias, out } = gate;
        rows.product(isa, pool, count, Product { matrix, bias, out: &mut *out });
        if !alike {
            rows.fill(isa, pool, up.matrix, x);
        }
        let Product { matrix, bias, out: ups } = up;
        rows.product(isa, pool, count, Product { matrix, bias, out: &mut *ups });
        kernels::silu_mul(isa, pool, out, ups);
        activated.fill(isa, pool, down.matrix, out);
    }
    activated.product(isa, pool, count, down);
}
