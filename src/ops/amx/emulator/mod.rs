// SPDX-License-Identifier: MPL-2.0

//! A user-space emulator of Intel AMX, so that the tests of the AMX code run on machines without
//! it.
//!
//! The kernels are inline assembly, which a machine without AMX could not test at all. The emulator
//! has the tests execute that very machine code, rather than a second implementation of it. The
//! vector code around it still needs a processor with AVX-512 and its bf16 extension.
//!
//! An AMX instruction on a processor without AMX raises SIGILL. The signal handler decodes the
//! instruction ([`decode()`]), executes it on tile registers that it keeps for the thread
//! ([`TileRegisters`]) and resumes after it. It allocates nothing and takes no lock.
//!
//! It covers what a bf16 kernel may use: `ldtilecfg`, `sttilecfg`, `tilerelease`, `tilezero`,
//! `tileloadd`, `tileloaddt1`, `tilestored` and `tdpbf16ps`, in all addressing modes but
//! RIP-relative. The arithmetic is that of Intel's manual (volume 2, `TDPBF16PS`), bit for bit.
//! What would fault even with AMX, such as operands whose shapes do not fit, aborts the process
//! with the reason, and so does a configuration with a start row, to resume an interrupted load.
//! Any other illegal instruction gets the default action.
//!
//! On a processor with AMX all tests run on the real tiles instead. Those of the emulated
//! instructions then confirm their expected results on the hardware.

mod decode;
mod tests;
mod tiles;

use decode::decode;
use std::cell::UnsafeCell;
use std::sync::Once;
use tiles::TileRegisters;

/// Installs the emulator for this process; false if the processor lacks the AVX2 and FMA that it
/// takes.
#[must_use]
pub fn install() -> bool {
    static ONCE: Once = Once::new();
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        return false;
    }
    // SAFETY: all zeros is a valid `sigaction`, and `handle_sigill` has the signature that
    // SA_SIGINFO asks for.
    ONCE.call_once(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            handle_sigill;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(
            libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()),
            0
        );
    });
    true
}

thread_local! {
    /// Constant and without a destructor, so that the first access does not allocate.
    static TILES: UnsafeCell<TileRegisters> = const { UnsafeCell::new(TileRegisters::new()) };
}

extern "C" fn handle_sigill(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// Indices into the saved general registers, by register number as encoded in instructions.
    const GENERAL_REGISTERS: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    // SAFETY: with SA_SIGINFO the context is a `ucontext_t`, this handler's alone.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let code = registers[libc::REG_RIP as usize] as *const u8;
    let decoded = decode(
        // SAFETY: `decode` reads only the bytes of one instruction, which the processor has
        // fetched.
        |at| unsafe { code.add(at).read() },
        |number| registers[GENERAL_REGISTERS[number] as usize] as usize,
    );
    let Some((instruction, length)) = decoded else {
        // Not ours: retried with the default action, it ends the process.
        // SAFETY: the default action is a valid one.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
        return;
    };
    // SAFETY: the tiles are this thread's, whose handler does not interrupt itself; the addresses
    // are those that the interrupted code was about to access.
    let result = TILES.with(|tiles| unsafe { (*tiles.get()).execute(instruction) });
    if let Err(reason) = result {
        abort_with(reason);
    }
    registers[libc::REG_RIP as usize] += length as i64;
}

fn abort_with(reason: &str) -> ! {
    for part in ["illegal instruction: ", reason, "\n"] {
        // SAFETY: it reads the bytes of `part`.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: it ends the process.
    unsafe { libc::abort() }
}
