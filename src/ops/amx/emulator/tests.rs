// SPDX-License-Identifier: MPL-2.0

//! Tests of the emulated instructions, against results worked out by hand. Where the processor has
//! AMX they check that instead, and so the expected results.

use super::super::Amx;
use super::decode::{Instruction, StridedRows, decode};
use super::tiles::TileRegisters;
use half::bf16;
use std::arch::asm;

/// The operand of `ldtilecfg` for tiles of the given rows and bytes per row.
fn config(shapes: [(u8, u16); 8]) -> [u8; 64] {
    let mut config = [0; 64];
    config[0] = 1;
    for (tile, (rows, columns)) in shapes.into_iter().enumerate() {
        config[16 + 2 * tile..][..2].copy_from_slice(&columns.to_le_bytes());
        config[48 + tile] = rows;
    }
    config
}

/// `sums += a b` by the instructions, for `sums` `[rows, 16]`, `a` `[rows, 32]` and `b` `[16, 16,
/// 2]`.
fn product(sums: &mut [[f32; 16]], a: &[[f32; 32]], b: &[[[f32; 2]; 16]; 16]) {
    let rows = a.len() as u8;
    let config = config([
        (rows, 64),
        (rows, 64),
        (16, 64),
        (0, 0),
        (0, 0),
        (0, 0),
        (0, 0),
        (0, 0),
    ]);
    let a: Vec<_> = a.iter().map(|row| row.map(bf16::from_f32)).collect();
    let b = b.map(|row| row.map(|pair| pair.map(bf16::from_f32)));
    // SAFETY: the instructions are there; the operands have the sizes that `config` says.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "tileloadd tmm0, [{sums} + {line}]",
            "tileloadd tmm1, [{a} + {line}]",
            "tileloadd tmm2, [{b} + {line}]",
            "tdpbf16ps tmm0, tmm1, tmm2",
            "tilestored [{sums} + {line}], tmm0",
            "tilerelease",
            config = in(reg) &config,
            sums = in(reg) sums.as_mut_ptr(),
            a = in(reg) a.as_ptr(),
            b = in(reg) &b,
            line = in(reg) 64usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _,
            options(nostack),
        );
    }
}

/// One element of a product: `sum` plus the dot products of pairs, the rest being zeros.
fn pairs(sum: f32, products: &[([f32; 2], [f32; 2])]) -> f32 {
    let mut sums = [[sum; 16]; 3];
    let (mut a, mut b) = ([[0.0; 32]; 3], [[[0.0; 2]; 16]; 16]);
    for (k, (x, y)) in products.iter().enumerate() {
        a[1][2 * k..][..2].copy_from_slice(x);
        b[k][5] = *y;
    }
    product(&mut sums, &a, &b);
    sums[1][5]
}

fn two_to(power: i32) -> f32 {
    2f32.powi(power)
}

#[test]
fn a_product_of_whole_numbers() {
    if Amx::for_tests().is_none() {
        return;
    }
    // Integers up to 2^24, so that the order of additions does not matter.
    let a: [[f32; 32]; 7] =
        std::array::from_fn(|m| std::array::from_fn(|k| (3 * m + k % 11) as f32));
    let b: [[[f32; 2]; 16]; 16] = std::array::from_fn(|k| {
        std::array::from_fn(|n| std::array::from_fn(|i| (2 * k + i) as f32 - 7.0 * n as f32))
    });
    let mut sums: [[f32; 16]; 7] = std::array::from_fn(|m| std::array::from_fn(|n| (m * n) as f32));
    product(&mut sums, &a, &b);
    for m in 0..7 {
        for n in 0..16 {
            let products = (0..32).map(|k| a[m][k] * b[k / 2][n][k % 2]);
            assert_eq!(sums[m][n], products.sum::<f32>() + (m * n) as f32);
        }
    }
    // 3 + (1 * 2 + 3 * 4) + (5 * 6 + 7 * 8)
    assert_eq!(
        pairs(3.0, &[([1.0, 3.0], [2.0, 4.0]), ([5.0, 7.0], [6.0, 8.0])]),
        103.0
    );
}

#[test]
fn both_halves_of_pairs_have_their_own_accumulator() {
    if Amx::for_tests().is_none() {
        return;
    }
    // Adding 1 to 2^24 changes nothing, as it is half a unit in the last place. So the first halves
    // add up to 2^24 and the second to 2, which does count. In a single sum none of them would.
    let one = [1.0, 1.0];
    let products = [
        ([two_to(24), 0.0], one),
        ([1.0, 1.0], one),
        ([1.0, 1.0], one),
    ];
    assert_eq!(pairs(0.0, &products), two_to(24) + 2.0);
    // The old sum is added last: -2^24 + (2^24 + 1 = 2^24) is 0, where left to right it would be 1.
    assert_eq!(
        pairs(-two_to(24), &[([two_to(24), 0.0], one), ([1.0, 0.0], one)]),
        0.0
    );
    // The sum of both accumulators is rounded before: 1 + 2^-24 is 1.
    assert_eq!(pairs(-1.0, &[([1.0, two_to(-24)], one)]), 0.0);
}

#[test]
fn products_are_fused_and_round_to_even() {
    if Amx::for_tests().is_none() {
        return;
    }
    let one = [1.0, 0.0];
    // The product 2^128 alone would be infinite.
    let products = [
        ([-two_to(127), 0.0], one),
        ([two_to(64), 0.0], [two_to(64), 0.0]),
    ];
    assert_eq!(pairs(0.0, &products), two_to(127));
    assert_eq!(pairs(0.0, &products[1..]), f32::INFINITY);
    // Half a unit in the last place, added to an even and to an odd number, and slightly more.
    let half = two_to(-12) * two_to(-12);
    let sum = |start: f32, half: f32| pairs(start, &[([half, 0.0], one)]);
    assert_eq!(sum(1.0, half), 1.0);
    assert_eq!(sum(1.0 + two_to(-23), half), 1.0 + two_to(-22));
    assert_eq!(sum(1.0, half * (1.0 + two_to(-7))), 1.0 + two_to(-23));
}

#[test]
fn denormals_are_zero() {
    if Amx::for_tests().is_none() {
        return;
    }
    let least = f32::MIN_POSITIVE;
    let denormal = f32::from_bits(0x0040_0000);
    // Of an operand.
    assert_eq!(pairs(0.0, &[([denormal, 0.0], [two_to(100), 0.0])]), 0.0);
    // Of the old sum.
    assert_eq!(pairs(denormal, &[([least, 0.0], [1.0, 0.0])]), least);
    // Of a result: of a product, of the sum of both accumulators, and of the final sum.
    assert_eq!(
        pairs(0.0, &[([two_to(-100), 0.0], [two_to(-100), 0.0])]),
        0.0
    );
    assert_eq!(pairs(0.0, &[([1.5 * least, -least], [1.0, 1.0])]), 0.0);
    assert_eq!(
        pairs(-least, &[([1.5 * least, 0.0], [1.0, 0.0])]).to_bits(),
        0
    );
    // But not a product inside a fused multiply-add with a normal result: 1.5 * 2^-126 - 2^-127.
    let products = [
        ([1.5 * least, 0.0], [1.0, 0.0]),
        ([two_to(-64), 0.0], [-two_to(-63), 0.0]),
    ];
    assert_eq!(pairs(0.0, &products), least);
}

#[test]
fn infinities_and_nans() {
    if Amx::for_tests().is_none() {
        return;
    }
    let infinity = f32::INFINITY;
    assert_eq!(pairs(1.0, &[([infinity, 1.0], [2.0, 1.0])]), infinity);
    assert!(pairs(1.0, &[([infinity, 0.0], [0.0, 0.0])]).is_nan());
    assert!(pairs(1.0, &[([infinity, infinity], [1.0, -1.0])]).is_nan());
    assert!(pairs(-infinity, &[([infinity, 0.0], [1.0, 0.0])]).is_nan());
    assert!(pairs(1.0, &[([f32::NAN, 0.0], [1.0, 0.0])]).is_nan());
}

#[test]
fn tiles_are_loaded_and_stored_by_their_shape() {
    if Amx::for_tests().is_none() {
        return;
    }
    let shapes = [
        (5, 64),
        (3, 12),
        (16, 64),
        (1, 4),
        (2, 8),
        (2, 8),
        (2, 8),
        (16, 64),
    ];
    let wanted = config(shapes);
    let from: Vec<u8> = (0..4096).map(|i| (i % 251) as u8 + 1).collect();
    let (mut stored, mut seen) = ([0u8; 4096], [0u8; 64]);
    // SAFETY: the instructions are there; rows are 100 bytes apart, forwards or backwards, and all
    // within 4096.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            "sttilecfg [{seen}]",
            "tileloadd tmm0, [{from} + {stride}*2]",
            "tileloaddt1 tmm1, [{from} + {stride}*1 + 17]",
            "tileloadd tmm3, [{from} + 300]",
            "mov {back}, -25",
            "tileloadd tmm4, [{from} + {back}*4 + 1000]",
            "tilestored [{to} + {stride}*2], tmm0",
            "tilestored [{to} + {stride}*2 + 1000], tmm1",
            "tilestored [{to} + {stride}*8 + 2000], tmm3",
            "tilestored [{to} + {stride}*2 + 3000], tmm4",
            "tilezero tmm0",
            "tilestored [{to} + {stride}*1 + 3500], tmm0",
            "tilerelease",
            config = in(reg) &wanted,
            seen = in(reg) &mut seen,
            from = in(reg) from.as_ptr(),
            to = in(reg) stored.as_mut_ptr(),
            stride = in(reg) 50usize,
            back = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm3") _, out("tmm4") _,
            options(nostack),
        );
    }
    assert_eq!(seen, wanted);
    let mut expected = [0; 4096];
    for row in 0..5 {
        expected[100 * row..][..64].copy_from_slice(&from[100 * row..][..64]);
    }
    for row in 0..3 {
        expected[1000 + 100 * row..][..12].copy_from_slice(&from[50 * row + 17..][..12]);
    }
    expected[2000..2004].copy_from_slice(&from[300..304]);
    for row in 0..2 {
        expected[3000 + 100 * row..][..8].copy_from_slice(&from[1000 - 100 * row..][..8]);
    }
    assert_eq!(stored, expected);
}

/// The encodings are those of an assembler.
#[test]
fn instructions_are_decoded() {
    let check = |bytes: &[u8], expected: Instruction| {
        // Register n has the value 1000 (n + 1).
        let decoded = decode(|at| bytes[at], |number| 1000 * (number + 1));
        assert_eq!(decoded, Some((expected, bytes.len())), "{bytes:x?}");
    };
    let rows = |start, stride| StridedRows { start, stride };
    // tilerelease; tilezero tmm5; tdpbf16ps tmm1, tmm2, tmm7
    check(&[0xc4, 0xe2, 0x78, 0x49, 0xc0], Instruction::Release);
    check(
        &[0xc4, 0xe2, 0x7b, 0x49, 0xe8],
        Instruction::Zero { tile: 5 },
    );
    let dot = Instruction::DotBf16 {
        sums: 1,
        a: 2,
        b: 7,
    };
    check(&[0xc4, 0xe2, 0x42, 0x5c, 0xca], dot);
    // ldtilecfg [rdi]; ldtilecfg [rax + 4*rcx + 8]; ldtilecfg [r13]; sttilecfg [rsp - 64]
    check(
        &[0xc4, 0xe2, 0x78, 0x49, 0x07],
        Instruction::LoadConfig { from: 8000 },
    );
    let loaded = Instruction::LoadConfig {
        from: 1000 + 8000 + 8,
    };
    check(&[0xc4, 0xe2, 0x78, 0x49, 0x44, 0x88, 0x08], loaded);
    check(
        &[0xc4, 0xc2, 0x78, 0x49, 0x45, 0x00],
        Instruction::LoadConfig { from: 14000 },
    );
    check(
        &[0xc4, 0xe2, 0x79, 0x49, 0x44, 0x24, 0xc0],
        Instruction::StoreConfig { to: 5000 - 64 },
    );
    // tileloadd tmm3, [rsi + rdx]; tileloaddt1 tmm3, [r12 + 2*r9 - 128]
    let load = |start, stride| Instruction::Load {
        tile: 3,
        from: rows(start, stride),
    };
    check(&[0xc4, 0xe2, 0x7b, 0x4b, 0x1c, 0x16], load(7000, 3000));
    check(
        &[0xc4, 0x82, 0x79, 0x4b, 0x5c, 0x4c, 0x80],
        load(13000 - 128, 20000),
    );
    // tileloadd tmm3, [rsi]: no index; [4*r12 + 0x12345678]: no base
    check(&[0xc4, 0xe2, 0x7b, 0x4b, 0x1c, 0x26], load(7000, 0));
    let absolute = [0xc4, 0xa2, 0x7b, 0x4b, 0x1c, 0xa5, 0x78, 0x56, 0x34, 0x12];
    check(&absolute, load(0x1234_5678, 52000));
    // tilestored [r15 + 8*rax + 0x400], tmm7
    let store = Instruction::Store {
        tile: 7,
        to: rows(16000 + 0x400, 8000),
    };
    check(
        &[0xc4, 0xc2, 0x7a, 0x4b, 0xbc, 0xc7, 0x00, 0x04, 0x00, 0x00],
        store,
    );
    // vfmadd231ps ymm0, ymm4, ymm6 and ud2 are none of these.
    for bytes in [[0xc4, 0xe2, 0x5d, 0xb8, 0xc6], [0x0f, 0x0b, 0, 0, 0]] {
        assert_eq!(decode(|at| bytes[at], |_| 0), None);
    }
}

/// What faults on a processor is an error.
#[test]
fn invalid_configurations_and_operands_are_errors() {
    let fails = |config: &[u8; 64], instruction| {
        let mut tiles = TileRegisters::new();
        let from = config.as_ptr() as usize;
        // SAFETY: the address is that of `config`; the others have no address.
        unsafe {
            let loaded = tiles.execute(Instruction::LoadConfig { from });
            loaded.and_then(|()| tiles.execute(instruction)).is_err()
        }
    };
    let dot = |sums, a, b| Instruction::DotBf16 { sums, a, b };
    let good = config([
        (7, 64),
        (7, 64),
        (16, 64),
        (8, 64),
        (16, 64),
        (7, 64),
        (7, 12),
        (0, 0),
    ]);
    assert!(!fails(&good, dot(0, 1, 2)));
    for (sums, a, b) in [
        (0, 0, 2),
        (0, 1, 1),
        (0, 3, 2),
        (0, 1, 3),
        (6, 1, 2),
        (0, 1, 7),
    ] {
        assert!(fails(&good, dot(sums, a, b)), "{sums}, {a}, {b}");
    }
    assert!(fails(&good, Instruction::Zero { tile: 7 }));
    assert!(fails(&[0; 64], Instruction::Zero { tile: 0 }));
    for (at, value) in [
        (0, 2),
        (5, 1),
        (16, 65),
        (48, 17),
        (48, 0),
        (32, 4),
        (56, 1),
    ] {
        let mut bad = good;
        bad[at] = value;
        assert!(fails(&bad, Instruction::Release), "{at}, {value}");
    }
}
