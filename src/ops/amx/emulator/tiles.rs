// SPDX-License-Identifier: MPL-2.0

//! The tile registers and the execution of instructions on them.

use super::decode::Instruction;
use std::arch::asm;

/// Bytes of a tile's row, and of the operand of `ldtilecfg`.
const ROW: usize = 64;

/// The tile registers of a thread, and their configuration.
#[repr(C, align(64))]
pub struct TileRegisters {
    /// The operand of `ldtilecfg`; all zeros while tiles are not configured.
    config: [u8; ROW],
    tiles: [[[u8; ROW]; 16]; 8],
}

impl TileRegisters {
    pub const fn new() -> Self {
        Self {
            config: [0; ROW],
            tiles: [[[0; ROW]; 16]; 8],
        }
    }

    /// # Safety
    /// The addresses that `instruction` reads or writes are valid for that.
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
                self.configured_shape(tile)?;
                self.tiles[tile] = [[0; ROW]; 16];
            }
            Instruction::Load { tile, from } => {
                let (rows, columns) = self.configured_shape(tile)?;
                self.tiles[tile] = [[0; ROW]; 16];
                for (row, to) in self.tiles[tile][..rows].iter_mut().enumerate() {
                    let from = from.start.wrapping_add(row.wrapping_mul(from.stride));
                    // SAFETY: the caller's promise.
                    unsafe { to.as_mut_ptr().copy_from(from as *const u8, columns) };
                }
            }
            Instruction::Store { tile, to } => {
                let (rows, columns) = self.configured_shape(tile)?;
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

    /// Rows of a tile, and bytes per row.
    fn shape(&self, tile: usize) -> (usize, usize) {
        let columns = &self.config[16 + 2 * tile..][..2];
        (
            self.config[48 + tile].into(),
            u16::from_le_bytes([columns[0], columns[1]]).into(),
        )
    }

    /// [`Self::shape`] of a tile that must be configured.
    fn configured_shape(&self, tile: usize) -> Result<(usize, usize), &'static str> {
        match self.shape(tile) {
            (0, _) | (_, 0) => Err("the tile is not configured"),
            shape => Ok(shape),
        }
    }

    fn dot_bf16(&mut self, sums: usize, a: usize, b: usize) -> Result<(), &'static str> {
        let (shape, shape_a, shape_b) = (
            self.configured_shape(sums)?,
            self.configured_shape(a)?,
            self.configured_shape(b)?,
        );
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

/// Adds to 16 f32 `sums` the dot products of `pairs` bf16 pairs of `a` with those of `b` `[pairs,
/// 16, 2]`, rounded as `tdpbf16ps` rounds.
///
/// The first elements of the pairs and the second have separate accumulators, which start at zero.
/// These are added to each other, and the result to `sums`. Each step is a fused multiply-add or an
/// addition that rounds to nearest, ties to even, with denormal inputs and outputs taken as zero.
fn dot_row(sums: &mut [u8; ROW], a: &[u8; ROW], b: &[[u8; ROW]; 16], pairs: usize) {
    const DENORMALS_ARE_ZERO_NO_TRAPS: u32 = 0x9fc0;
    let mut control = 0u32;
    assert!((1..=16).contains(&pairs));
    // SAFETY: it reads `pairs` pairs of `a` and rows of `b` and writes the 64 bytes of `sums`;
    // `install` made sure of AVX2 and FMA; the control register is restored.
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
