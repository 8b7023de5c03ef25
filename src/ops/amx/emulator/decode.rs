// SPDX-License-Identifier: MPL-2.0

//! The decoder of AMX instructions.

/// An AMX instruction with the addresses and register numbers of its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    LoadConfig { from: usize },
    StoreConfig { to: usize },
    Release,
    Zero { tile: usize },
    Load { tile: usize, from: StridedRows },
    Store { tile: usize, to: StridedRows },
    DotBf16 { sums: usize, a: usize, b: usize },
}

/// Rows in memory, `stride` bytes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StridedRows {
    pub start: usize,
    pub stride: usize,
}

/// Values of the VEX field that stands for a SIMD prefix.
mod prefix {
    pub const NONE: u8 = 0;
    pub const P66: u8 = 1;
    pub const PF3: u8 = 2;
    pub const PF2: u8 = 3;
}

/// The fields of a three-byte VEX prefix, the opcode and the ModRM byte, five bytes in all.
struct Encoding {
    /// The extension bits R, X and B, inverted back, as bits 2 to 0.
    rxb: u8,
    vvvv: usize,
    prefix: u8,
    opcode: u8,
    modrm: u8,
}

/// The memory operand of an instruction.
struct MemoryOperand {
    has_sib: bool,
    /// Base plus displacement.
    start: usize,
    /// The scaled index, which is the stride of a tile's rows.
    index: usize,
    /// Length of the instruction that ends with this operand.
    length: usize,
}

/// Decodes the instruction that begins at `byte(0)`: its value, with that of its operands, and its
/// length; None if it is none of [`Instruction`]. `register` reads a general register by its number
/// in encodings.
pub fn decode(
    byte: impl Fn(usize) -> u8,
    register: impl Fn(usize) -> usize,
) -> Option<(Instruction, usize)> {
    // C4; ~R, ~X, ~B and opcode map 2; W = 0, ~vvvv, L = 0 and the prefix.
    if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
        return None;
    }
    let encoding = Encoding {
        rxb: !byte(1) >> 5,
        vvvv: usize::from(!byte(2) >> 3 & 15),
        prefix: byte(2) & 3,
        opcode: byte(3),
        modrm: byte(4),
    };
    if encoding.mode() == 3 {
        return Some((encoding.register_form()?, 5));
    }
    if encoding.vvvv != 0 {
        return None;
    }
    let operand = encoding.memory_operand(byte, register)?;
    Some((encoding.memory_form(&operand)?, operand.length))
}

impl Encoding {
    fn mode(&self) -> u8 {
        self.modrm >> 6
    }

    /// A register number: three bits of `field`, extended by a bit of `rxb`.
    fn extended(&self, field: u8, bit: u8) -> usize {
        usize::from(field & 7 | (self.rxb >> bit & 1) << 3)
    }

    fn reg(&self) -> usize {
        self.extended(self.modrm >> 3, 2)
    }

    /// The instruction, if its operands are registers.
    fn register_form(&self) -> Option<Instruction> {
        let (reg, rm, vvvv) = (self.reg(), self.extended(self.modrm, 0), self.vvvv);
        Some(match (self.opcode, self.prefix) {
            (0x49, prefix::NONE) if self.modrm == 0xc0 && vvvv == 0 => Instruction::Release,
            (0x49, prefix::PF2) if rm == 0 && vvvv == 0 && reg < 8 => {
                Instruction::Zero { tile: reg }
            }
            (0x5c, prefix::PF3) if reg < 8 && rm < 8 && vvvv < 8 => Instruction::DotBf16 {
                sums: reg,
                a: rm,
                b: vvvv,
            },
            _ => return None,
        })
    }

    /// Decodes the SIB byte and the displacement, where there are any.
    fn memory_operand(
        &self,
        byte: impl Fn(usize) -> u8,
        register: impl Fn(usize) -> usize,
    ) -> Option<MemoryOperand> {
        let mut length = 5;
        let bytes = |at: usize, len| {
            (0..len)
                .rev()
                .fold(0, |n, i| n << 8 | u32::from(byte(at + i)))
        };
        let (mut base, mut index) = (0, 0);
        let mut wide_displacement = self.mode() == 2;
        let has_sib = self.modrm & 7 == 4;
        let base_field = if has_sib {
            let sib = byte(5);
            length += 1;
            let number = self.extended(sib >> 3, 1);
            if number != 4 {
                index = register(number) << (sib >> 6);
            }
            sib
        } else {
            self.modrm
        };
        if self.mode() == 0 && base_field & 7 == 5 {
            // No base register. Without a SIB byte this is RIP-relative, which is not emulated.
            if !has_sib {
                return None;
            }
            wide_displacement = true;
        } else {
            base = register(self.extended(base_field, 0));
        }
        let displacement = if wide_displacement {
            length += 4;
            bytes(length - 4, 4) as i32 as isize
        } else if self.mode() == 1 {
            length += 1;
            bytes(length - 1, 1) as i8 as isize
        } else {
            0
        };
        Some(MemoryOperand {
            has_sib,
            start: base.wrapping_add_signed(displacement),
            index,
            length,
        })
    }

    /// The instruction, if one of its operands is in memory.
    fn memory_form(&self, operand: &MemoryOperand) -> Option<Instruction> {
        let (reg, has_sib) = (self.reg(), operand.has_sib);
        let rows = StridedRows {
            start: operand.start,
            stride: operand.index,
        };
        let address = operand.start.wrapping_add(operand.index);
        Some(match (self.opcode, self.prefix) {
            (0x49, prefix::NONE) if reg == 0 => Instruction::LoadConfig { from: address },
            (0x49, prefix::P66) if reg == 0 => Instruction::StoreConfig { to: address },
            // tileloadd, or tileloaddt1, whose hint does not matter here.
            (0x4b, prefix::PF2 | prefix::P66) if has_sib && reg < 8 => Instruction::Load {
                tile: reg,
                from: rows,
            },
            (0x4b, prefix::PF3) if has_sib && reg < 8 => Instruction::Store {
                tile: reg,
                to: rows,
            },
            _ => return None,
        })
    }
}
