// SPDX-License-Identifier: MPL-2.0

//! Intel AMX for machines without it, so that tests run the very machine code that it is for.
//!
//! Where the instructions are missing the processor refuses them and the system sends a signal.
//! Its handler carries the refused instruction out on tiles of the thread's own and goes on behind
//! it. What the processor would refuse even with AMX ends the process, with a line that says why.
//! The arithmetic is as in Intel's manual (volume 2, `TDPBF16PS`).
//!
//! The handler allocates nothing and takes no lock.

use std::arch::asm;
use std::cell::UnsafeCell;
use std::sync::Once;

/// Bytes of a tile's row, and of the operand of `ldtilecfg`.
const ROW: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    LoadConfig { from: usize },
    StoreConfig { to: usize },
    Release,
    Zero { tile: usize },
    Load { tile: usize, from: Rows },
    Store { tile: usize, to: Rows },
    DotBf16 { sums: usize, a: usize, b: usize },
}

/// Rows in memory, `stride` bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub start: usize,
    pub stride: usize,
}

/// The instruction that begins at `byte(0)`, with the values that its operands have, and its
/// length. `register` gives the general registers by their number in instructions.
pub fn decode(
    byte: impl Fn(usize) -> u8,
    register: impl Fn(usize) -> usize,
) -> Option<(Instruction, usize)> {
    // VEX, three bytes: C4, then ~R ~X ~B and the map, then W, ~vvvv, L and the prefix.
    if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
        return None;
    }
    let (rxb, vvvv) = (!byte(1) >> 5, usize::from(!byte(2) >> 3 & 15));
    let (prefix, opcode, modrm) = (byte(2) & 3, byte(3), byte(4));
    const NONE: u8 = 0;
    const P66: u8 = 1;
    const PF3: u8 = 2;
    const PF2: u8 = 3;
    let extended = |field: u8, bit: u8| usize::from(field & 7 | (rxb >> bit & 1) << 3);
    let (mode, reg, rm) = (modrm >> 6, extended(modrm >> 3, 2), extended(modrm, 0));
    if mode == 3 {
        let instruction = match (opcode, prefix) {
            (0x49, NONE) if modrm == 0xc0 && vvvv == 0 => Instruction::Release,
            (0x49, PF2) if rm == 0 && vvvv == 0 && reg < 8 => Instruction::Zero { tile: reg },
            (0x5c, PF3) if reg < 8 && rm < 8 && vvvv < 8 => Instruction::DotBf16 {
                sums: reg,
                a: rm,
                b: vvvv,
            },
            _ => return None,
        };
        return Some((instruction, 5));
    }
    if vvvv != 0 {
        return None;
    }
    let mut length = 5;
    let bytes = |at: usize, len| {
        (0..len)
            .rev()
            .fold(0, |n, i| n << 8 | u32::from(byte(at + i)))
    };
    let (mut base, mut index) = (None, None);
    let mut wide_displacement = mode == 2;
    let has_sib = modrm & 7 == 4;
    let base_field = if has_sib {
        let sib = byte(5);
        length += 1;
        let number = extended(sib >> 3, 1);
        if number != 4 {
            index = Some(register(number) << (sib >> 6));
        }
        sib
    } else {
        modrm
    };
    if mode == 0 && base_field & 7 == 5 {
        // No base register; without a SIB byte the displacement is from the next instruction,
        // which none of these needs.
        if !has_sib {
            return None;
        }
        wide_displacement = true;
    } else {
        base = Some(register(extended(base_field, 0)));
    }
    let displacement = if wide_displacement {
        length += 4;
        bytes(length - 4, 4) as i32 as isize
    } else if mode == 1 {
        length += 1;
        bytes(length - 1, 1) as i8 as isize
    } else {
        0
    };
    let start = base.unwrap_or(0).wrapping_add_signed(displacement);
    // For a tile's rows the index register is their stride; for anything else, part of the address.
    let rows = Rows {
        start,
        stride: index.unwrap_or(0),
    };
    let address = start.wrapping_add(index.unwrap_or(0));
    let instruction = match (opcode, prefix) {
        (0x49, NONE) if reg == 0 => Instruction::LoadConfig { from: address },
        (0x49, P66) if reg == 0 => Instruction::StoreConfig { to: address },
        // With a hint that the rows will not be needed again, or without.
        (0x4b, PF2 | P66) if has_sib && reg < 8 => Instruction::Load {
            tile: reg,
            from: rows,
        },
        (0x4b, PF3) if has_sib && reg < 8 => Instruction::Store {
            tile: reg,
            to: rows,
        },
        _ => return None,
    };
    Some((instruction, length))
}

/// The tiles of a thread.
#[repr(C, align(64))]
pub struct Tiles {
    /// The operand of `ldtilecfg`; zeros where nothing is configured.
    config: [u8; ROW],
    tiles: [[[u8; ROW]; 16]; 8],
}

impl Tiles {
    pub const fn new() -> Self {
        Self {
            config: [0; ROW],
            tiles: [[[0; ROW]; 16]; 8],
        }
    }

    /// # Safety
    /// The addresses that `instruction` names can be read, or written.
    pub unsafe fn execute(&mut self, instruction: Instruction) -> Result<(), &'static str> {
        match instruction {
            Instruction::LoadConfig { from } => {
                // SAFETY: the caller's promise.
                self.config = unsafe { (from as *const [u8; ROW]).read_unaligned() };
                self.tiles = [[[0; ROW]; 16]; 8];
                return self.check_config();
            }
            Instruction::StoreConfig { to } => {
                // SAFETY: the caller's promise.
                unsafe { (to as *mut [u8; ROW]).write_unaligned(self.config) };
                return Ok(());
            }
            Instruction::Release => {
                *self = Self::new();
                return Ok(());
            }
            _ if self.config[0] == 0 => return Err("tiles are not configured"),
            Instruction::Zero { tile } => {
                self.size(tile)?;
                self.tiles[tile] = [[0; ROW]; 16];
            }
            Instruction::Load { tile, from } => {
                let (rows, columns) = self.size(tile)?;
                self.tiles[tile] = [[0; ROW]; 16];
                for (row, to) in self.tiles[tile][..rows].iter_mut().enumerate() {
                    let from = from.start.wrapping_add(row.wrapping_mul(from.stride));
                    // SAFETY: the caller's promise.
                    unsafe { to.as_mut_ptr().copy_from(from as *const u8, columns) };
                }
            }
            Instruction::Store { tile, to } => {
                let (rows, columns) = self.size(tile)?;
                for (row, from) in self.tiles[tile][..rows].iter().enumerate() {
                    let to = to.start.wrapping_add(row.wrapping_mul(to.stride));
                    // SAFETY: the caller's promise.
                    unsafe { from.as_ptr().copy_to(to as *mut u8, columns) };
                }
            }
            Instruction::DotBf16 { sums, a, b } => self.dot_bf16(sums, a, b)?,
        }
        Ok(())
    }

    fn check_config(&self) -> Result<(), &'static str> {
        let (mut tiles, mut beyond) = (0..8, 8..16);
        match self.config[0] {
            _ if self.config[2..16].iter().any(|byte| *byte != 0) => Err("reserved bytes are set"),
            0 => Ok(()),
            _ if self.config[1] != 0 => Err("loads that go on at a row are not emulated"),
            1 if beyond.any(|tile| self.shape(tile) != (0, 0)) => {
                Err("more than 8 tiles are configured")
            }
            1 if tiles.any(|tile| {
                let (rows, columns) = self.shape(tile);
                rows > 16 || columns > ROW || (rows == 0) != (columns == 0)
            }) =>
            {
                Err("a tile has a shape that there is not")
            }
            1 => Ok(()),
            _ => Err("there is no such palette"),
        }
    }

    /// Rows of a tile, and their bytes.
    fn shape(&self, tile: usize) -> (usize, usize) {
        let columns = &self.config[16 + 2 * tile..][..2];
        (
            self.config[48 + tile].into(),
            u16::from_le_bytes([columns[0], columns[1]]).into(),
        )
    }

    /// The shape of a tile that is configured.
    fn size(&self, tile: usize) -> Result<(usize, usize), &'static str> {
        match self.shape(tile) {
            (0, _) | (_, 0) => Err("the tile is not configured"),
            shape => Ok(shape),
        }
    }

    fn dot_bf16(&mut self, sums: usize, a: usize, b: usize) -> Result<(), &'static str> {
        let (shape, shape_a, shape_b) = (self.size(sums)?, self.size(a)?, self.size(b)?);
        if sums == a || sums == b || a == b {
            return Err("an operand is named twice");
        }
        if shape.0 != shape_a.0 || shape.1 != shape_b.1 || shape_a.1 != 4 * shape_b.0 {
            return Err("the shapes of the operands do not fit");
        }
        if [shape.1, shape_a.1, shape_b.1]
            .iter()
            .any(|bytes| bytes % 4 != 0)
        {
            return Err("rows are not of whole pairs");
        }
        for row in 0..shape.0 {
            let a = self.tiles[a][row];
            let b = self.tiles[b];
            let row = &mut self.tiles[sums][row];
            dot_row(row, &a, &b, shape_b.0);
            row[shape.1..].fill(0);
        }
        Ok(())
    }
}

/// Adds to 16 sums the products of `pairs` pairs of `a` with those of `b` `[pairs, 16, 2]`: first
/// of a pair and second of a pair in sums of their own that begin with zero, then one plus the
/// other, then that onto `sums`. Multiplications and additions are fused, each rounds to the
/// nearest, ties to even, and numbers below the normal ones count as zero before and after.
fn dot_row(sums: &mut [u8; ROW], a: &[u8; ROW], b: &[[u8; ROW]; 16], pairs: usize) {
    const DENORMALS_ARE_ZERO_NO_TRAPS: u32 = 0x9fc0;
    let mut control = 0u32;
    assert!((1..=16).contains(&pairs));
    // SAFETY: it reads `pairs` pairs of `a` and rows of `b` and writes the 64 bytes of `sums`;
    // `install` made sure of AVX2 and FMA, and the control register is put back.
    unsafe {
        asm!(
            "stmxcsr [{control}]",
            "ldmxcsr [{wanted}]",
            "vxorps ymm0, ymm0, ymm0",
            "vxorps ymm1, ymm1, ymm1",
            "vxorps ymm2, ymm2, ymm2",
            "vxorps ymm3, ymm3, ymm3",
            "vpcmpeqd ymm8, ymm8, ymm8",
            "vpslld ymm8, ymm8, 16",
            "2:",
            "vpbroadcastd ymm4, [{a}]",
            "vpand ymm5, ymm4, ymm8",
            "vpslld ymm4, ymm4, 16",
            "vmovdqu ymm6, [{b}]",
            "vpand ymm7, ymm6, ymm8",
            "vpslld ymm6, ymm6, 16",
            "vfmadd231ps ymm0, ymm4, ymm6",
            "vfmadd231ps ymm1, ymm5, ymm7",
            "vmovdqu ymm6, [{b} + 32]",
            "vpand ymm7, ymm6, ymm8",
            "vpslld ymm6, ymm6, 16",
            "vfmadd231ps ymm2, ymm4, ymm6",
            "vfmadd231ps ymm3, ymm5, ymm7",
            "add {a}, 4",
            "add {b}, 64",
            "dec {pairs}",
            "jnz 2b",
            "vaddps ymm0, ymm0, ymm1",
            "vaddps ymm2, ymm2, ymm3",
            "vmovups ymm4, [{sums}]",
            "vmovups ymm5, [{sums} + 32]",
            "vaddps ymm0, ymm4, ymm0",
            "vaddps ymm2, ymm5, ymm2",
            "vmovups [{sums}], ymm0",
            "vmovups [{sums} + 32], ymm2",
            "ldmxcsr [{control}]",
            control = in(reg) &mut control,
            wanted = in(reg) &DENORMALS_ARE_ZERO_NO_TRAPS,
            sums = in(reg) sums,
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            pairs = inout(reg) pairs => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _,
            out("ymm5") _, out("ymm6") _, out("ymm7") _, out("ymm8") _,
            options(nostack),
        );
    }
}

/// Has the process emulate what the processor lacks from now on; false where it lacks what that
/// takes.
#[must_use]
pub fn install() -> bool {
    static ONCE: Once = Once::new();
    if !is_x86_feature_detected!("avx2") || !is_x86_feature_detected!("fma") {
        return false;
    }
    // SAFETY: zeros are a `sigaction`, and `handle` is a handler of the kind that the flag says.
    ONCE.call_once(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = handle;
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
    /// Constant and without a destructor, so that to use it takes no allocation.
    static TILES: UnsafeCell<Tiles> = const { UnsafeCell::new(Tiles::new()) };
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    /// Where the context has the general registers, by their number in instructions.
    const NUMBERS: [libc::c_int; 16] = [
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
        // SAFETY: `decode` reads the bytes of one instruction, each known to be there by those
        // before it; the processor has read them too.
        |at| unsafe { code.add(at).read() },
        |number| registers[NUMBERS[number] as usize] as usize,
    );
    let Some((instruction, length)) = decoded else {
        // Somebody else's: it happens again, and then as if nothing were emulated.
        // SAFETY: the default action is a valid one.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
        return;
    };
    // SAFETY: the tiles are this thread's, whose handler does not interrupt itself, and addresses
    // are what the interrupted code would have used.
    let result = TILES.with(|tiles| unsafe { (*tiles.get()).execute(instruction) });
    if let Err(reason) = result {
        die(reason);
    }
    registers[libc::REG_RIP as usize] += length as i64;
}

fn die(reason: &str) -> ! {
    for part in ["illegal instruction: ", reason, "\n"] {
        // SAFETY: it reads the bytes of `part`.
        unsafe { libc::write(2, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: the signal is unblocked by nobody else; the process ends here.
    unsafe { libc::abort() }
}
