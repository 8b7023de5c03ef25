// SPDX-License-Identifier: MPL-2.0

//! Detection and configuration of the AMX tile registers.

use super::{Amx, avx512};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Whether this processor has AMX and the system permits this process to use it, which is requested
/// once.
///
/// Linux grants the permission to the whole process for its lifetime, and refuses it if a thread's
/// alternate signal stack is too small for the tile state.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && permitted())
}

fn has_instructions() -> bool {
    // The code around the tile products needs these, which every processor with AMX has.
    if !avx512::available() {
        return false;
    }
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const TILE_STATES: u32 = 1 << 17 | 1 << 18;
    // SAFETY: every x86-64 processor has `cpuid`. (Safe to call in newer compilers.)
    #[allow(unused_unsafe)]
    let (leaves, features, extended) =
        unsafe { (__cpuid(0).eax, __cpuid(1).ecx, __cpuid_count(7, 0).edx) };
    if leaves < 7 || features & OSXSAVE == 0 || extended & AMX_BF16_AND_TILE != AMX_BF16_AND_TILE {
        return false;
    }
    let enabled: u32;
    // SAFETY: OSXSAVE says that the instruction is there; it reads register XCR0.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") enabled, out("edx") _, options(nomem, nostack, preserves_flags));
    }
    enabled & TILE_STATES == TILE_STATES
}

#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call takes no pointers.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// A guard that keeps this thread's tile registers configured while it lives.
///
/// Dropping it releases them, so that the system need not save their 8 KiB at each context switch.
/// Both together take some hundred cycles.
pub struct TilesGuard(PhantomData<*mut ()>);

impl TilesGuard {
    /// Configures all eight tiles as 16 rows of 64 bytes.
    pub fn configure(_: Amx) -> Self {
        /// The operand of `ldtilecfg`.
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let eight = |value| std::array::from_fn(|tile| if tile < 8 { value } else { 0 });
        let config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: eight(64),
            rows: eight(16).map(|rows: u16| rows as u8),
        };
        // SAFETY: AMX is available, as `Amx` shows; it reads the 64 bytes of `config`.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &config,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly),
            );
        }
        Self(PhantomData)
    }
}

impl Drop for TilesGuard {
    fn drop(&mut self) {
        // SAFETY: AMX is available, as the existence of `self` shows.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags),
            );
        }
    }
}
