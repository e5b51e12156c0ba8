//! The tile instructions of x86-64 (AMX-TILE, AMX-INT8, AMX-BF16), as inline assembly: stable Rust has no intrinsics for them.
//!
//! Tile numbers are part of an instruction's text. Nothing but this file touches tile registers, and the compiler keeps nothing of its
//! own there, so they hold their values from one block of assembly to the next.

#![expect(unsafe_code, reason = "instructions without intrinsics, and a system call without a wrapper")]

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::fmt;
use std::sync::OnceLock;

use super::{ROW_BYTES, Shapes, Tiles};
use crate::{matmul, quant};

/// What became of the machine's tile instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Support {
    /// The CPU has them, the system granted them, and their sums are right.
    Works,
    Absent,
    /// The operating system keeps them from this process.
    Refused,
    /// They gave other sums than their emulation: they are not used.
    Wrong,
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Support::Works => "in use",
            Support::Absent => "absent",
            Support::Refused => "refused by the operating system",
            Support::Wrong => "wrong: they gave other sums than their emulation, and are not used",
        })
    }
}

/// Looks once per process.
pub(crate) fn support() -> Support {
    static SUPPORT: OnceLock<Support> = OnceLock::new();
    *SUPPORT.get_or_init(|| {
        if !cpu_has_tiles() {
            Support::Absent
        } else if !system_grants_tiles() {
            Support::Refused
        } else if !(quant::tiles::sums_are_right::<Amx>() && matmul::sums_are_right::<Amx>()) {
            Support::Wrong
        } else {
            Support::Works
        }
    })
}

/// Bits of CPUID leaf 7, EDX.
const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
const AMX_INT8: u32 = 1 << 25;

/// The instructions are there, with tiles of the shape that [`Shapes`] speaks of.
fn cpu_has_tiles() -> bool {
    const PALETTES: u32 = 0x1D;
    const ALL: u32 = AMX_BF16 | AMX_TILE | AMX_INT8;
    if __cpuid(0).eax < PALETTES || __cpuid_count(7, 0).edx & ALL != ALL {
        return false;
    }
    let palette = __cpuid_count(PALETTES, 1);
    let (bytes_per_tile, row_bytes) = (palette.eax >> 16, palette.ebx & 0xFFFF);
    let (tiles, rows) = (palette.ebx >> 16, palette.ecx & 0xFFFF);
    (bytes_per_tile, row_bytes, tiles, rows) == (1024, 64, 8, 16)
}

/// The system saves tile registers when it switches threads, and lets this process use them.
fn system_grants_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_STATE: u64 = 0b11 << 17;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    #[target_feature(enable = "xsave")]
    fn enabled_state() -> u64 {
        // SAFETY: register 0 exists wherever the instruction does.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: the system has enabled XSAVE, so the CPU has it.
    let enabled = unsafe { enabled_state() };
    enabled & TILE_STATE == TILE_STATE && permission()
}

/// Linux hands out tile data only to a process that asks, once and for all its threads.
#[cfg(target_os = "linux")]
fn permission() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call reads no memory of ours; a system call destroys rcx and r11 and nothing else.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permission() -> bool {
    false
}

/// The machine's own tile registers.
pub(crate) struct Amx(());

// SAFETY (all functions): see `Tiles`. Assembly is not marked `nomem`, so that writes to what it reads come before it.
impl Tiles for Amx {
    #[inline(always)]
    unsafe fn configure(shapes: &Shapes) -> Option<Self> {
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const *shapes, options(nostack, preserves_flags)) };
        Some(Self(()))
    }
    #[inline(always)]
    unsafe fn zero<const TILE: usize>(&mut self) {
        unsafe { asm!("tilezero tmm{}", const TILE, options(nostack, preserves_flags)) };
    }
    #[inline(always)]
    unsafe fn load<const TILE: usize>(&mut self, from: *const u8, stride: usize) {
        unsafe {
            asm!(
                "tileloadd tmm{}, [{} + {}*1]", const TILE, in(reg) from, in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
        unsafe {
            asm!("tdpbsud tmm{}, tmm{}, tmm{}", const C, const A, const B, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
        unsafe {
            asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const C, const A, const B, options(nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn store<const TILE: usize>(&self, to: *mut u8) {
        unsafe {
            asm!(
                "tilestored [{} + {}*1], tmm{}", in(reg) to, in(reg) ROW_BYTES, const TILE,
                options(nostack, preserves_flags),
            );
        }
    }
}

impl Drop for Amx {
    /// Tiles in use make switching threads dearer and keep the core from sleeping deeply.
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: they are this thread's and nobody needs them any more.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
    }
}
