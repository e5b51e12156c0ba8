//! Sixteen rows at once by tiles. The sums of a group are the same whole numbers, and are scaled as everywhere.

#![expect(unsafe_code, reason = "tiles and vector loads; contracts stand at each function")]

use super::super::dot::Dot;
use super::super::tiles::{self, DEPTH};
use super::super::unit::{EightBits, Unit};
use super::super::{GROUP, LANES, UNIT};
use super::{PANELS, Panels, Part};
use crate::tiles::{SIDE, Tiles};

/// Rows that go by vectors at once where groups do not fill tiles.
const ROWS: usize = SIDE / 2;

const _: () = assert!(SIDE == LANES, "a tile is a panel wide");

impl Panels<'_> {
    /// Adds a part to the sums of sixteen rows: groups that fill tiles by tiles, what is left by vectors.
    ///
    /// # Safety
    /// As [`Panels::part`]; there are two panels of whole bytes, and rows `row..row + SIDE`.
    #[inline(always)]
    pub(super) unsafe fn tiled<D: Dot, T: Tiles, const P: usize>(
        &self,
        row: usize,
        part: &Part<P>,
        tiles: &mut T,
        to: *mut f32,
    ) {
        let padded = self.w.groups().padded_row();
        let x = self.x.values[row * padded + part.units.start * UNIT..].as_ptr();
        let mut ints = [0; PANELS * SIDE * SIDE];
        for (index, group) in part.groups.clone().enumerate() {
            let first = index * GROUP / UNIT;
            let (values, fresh) = ((part.units.len() - first).min(GROUP / UNIT) * UNIT, part.fresh && index == 0);
            // SAFETY: the group lies within the rows and panels; what has no whole tiles goes the way of all other rows.
            unsafe {
                let w = part.w.map(|w| w.add(first * EightBits::BYTES));
                if values.is_multiple_of(DEPTH) {
                    tiles::product(
                        tiles,
                        values / DEPTH,
                        x.add(first * UNIT),
                        padded,
                        [w[0], w[P - 1]],
                        ints.as_mut_ptr(),
                    );
                    self.scale::<D, P>(row, group, part, &ints, fresh, to);
                } else {
                    let start = part.units.start + first;
                    let units = start..start + values / UNIT;
                    let rest = Part { groups: group..group + 1, units, w, fresh, ..*part };
                    for m in (0..SIDE).step_by(ROWS) {
                        self.tile::<D, EightBits, ROWS, P>(row + m, &rest, to.add(m * P * LANES));
                    }
                }
            }
        }
    }

    /// Scales the integer sums of a group, `[panel][row][column]`, and adds them.
    ///
    /// # Safety
    /// As [`Panels::tiled`].
    #[inline(always)]
    unsafe fn scale<D: Dot, const P: usize>(
        &self,
        row: usize,
        group: usize,
        part: &Part<P>,
        ints: &[i32; PANELS * SIDE * SIDE],
        fresh: bool,
        to: *mut f32,
    ) {
        let count = self.w.groups().len();
        for (p, scales) in part.scales.into_iter().enumerate() {
            // SAFETY: scales and starts exist for every group and row; `to` has room for a vector per row and panel.
            unsafe {
                let w = D::scales(scales.add(group * 2 * LANES));
                for m in 0..SIDE {
                    let (at, to) = ((row + m) * count + group, to.add((m * P + p) * LANES));
                    let start = *self.x.starts.as_ptr().add(at);
                    let ints = D::ints_plus(ints.as_ptr().add((p * SIDE + m) * SIDE), start);
                    let sum = if fresh { D::zero() } else { D::floats(to) };
                    D::store(to, D::add_scaled(sum, D::converted(ints), w, *self.x.scales.as_ptr().add(at)));
                }
            }
        }
    }
}
