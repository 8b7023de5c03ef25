// SPDX-License-Identifier: MPL-2.0

//! Whether there are tiles, and their configuration.

use super::{Amx, values};
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Whether this processor has the instructions and the system lets this process use them, which
/// is asked for once.
///
/// Linux grants the tiles to the whole process for good, and refuses where a thread's alternate
/// signal stack could not hold them.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && permitted())
}

fn has_instructions() -> bool {
    // Each processor with AMX for bf16 has them; what surrounds the products is made of them.
    if !values::available() {
        return false;
    }
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const TILE_STATES: u32 = 1 << 17 | 1 << 18;
    // SAFETY: every x86-64 processor has `cpuid`. (Newer compilers know.)
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

/// This thread's tiles, configured as long as this lives, and then released, so that the system
/// has no 8 KiB of them to save with each switch of threads.
///
/// Both together are some hundred cycles.
pub struct Tiles(PhantomData<*mut ()>);

impl Tiles {
    /// All tiles have 16 rows of 64 bytes.
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

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: AMX is available, or there would be no `Tiles`.
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
