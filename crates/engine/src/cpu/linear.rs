//! Matrices of the CPU backend, mapped or packed, and products with them.

use kernels::{Bits, Element, Groups, Inputs, Isa, Pool, QuantizedMatrix, QuantizedRows, Segments, WeightView};

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
            Some(bits) => packs.pack(isa, pool, &matrix.view(), Groups::new(bits, segments)).map(Self::Packed),
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

/// Computes products of one input, whose matrices are all mapped or all packed and cut alike. `rows` is made ready once for all.
pub(crate) fn products<const N: usize>(isa: Isa, pool: &Pool, rows: &mut Rows, x: &[f32], products: [Product<'_>; N]) {
    let mut laid_out = None;
    for Product { matrix, bias, out } in products {
        out.resize(x.len() / matrix.cols() * matrix.rows(), 0.0);
        let element = matrix.element();
        let again = laid_out.replace(element) != Some(element);
        match matrix {
            CpuMatrix::Mapped { matrix, segments } => {
                let view = matrix.view();
                if again {
                    rows.mapped.fill(isa, pool, view.element(), segments, x);
                }
                kernels::matmul(isa, pool, &rows.mapped, &view, bias, out);
            }
            CpuMatrix::Packed(packed) => {
                if again {
                    rows.packed.fill(isa, pool, packed.groups(), x);
                }
                kernels::quantized_matmul(isa, pool, &rows.packed, packed, bias, out);
            }
        }
    }
}
