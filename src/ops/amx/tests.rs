// SPDX-License-Identifier: MPL-2.0

//! On machines with AMX these run on its tiles, on others on the emulator's.

mod instructions;

use super::super::Shared;
use super::super::reference::Array;
use super::convolution::Piece;
use super::*;
use half::bf16;
use rayon::prelude::*;

/// Random numbers that bf16 holds exactly.
fn random(len: usize, seed: u64) -> Vec<f32> {
    let values = Array::random(len, 1, 1, seed).singles().into_iter();
    values.map(|value| bf16::from_f32(value).to_f32()).collect()
}

/// A kernel `[n_out, n_in, 3, 3]`, and what it is packed from.
fn kernel(n_in: usize, n_out: usize) -> (Kernel, Vec<f32>) {
    let weights = random(9 * n_in * n_out, 1);
    let weight = |out, input, tap| weights[(out * n_in + input) * 9 + tap];
    (Kernel::new(n_in, n_out, weight), weights)
}

/// What `convolution` makes, in `pieces` on as many threads, over what is there before.
fn run(convolution: &Convolution, pieces: &[Piece], len: usize, epilogue: Epilogue) -> Vec<f32> {
    let mut values = random(len, 9);
    let output = Shared::new(&mut values);
    std::thread::scope(|scope| {
        for piece in pieces {
            // SAFETY: pieces do not overlap, and nobody else has the output.
            scope.spawn(|| unsafe { convolution.run(piece, &output, epilogue) });
        }
    });
    values
}

/// Sums `[h, w, n_out]`, and the same of absolute values, as nested loops.
fn nested_loops(
    [h, w]: [usize; 2],
    input: &[f32],
    weights: &[f32],
    n_in: usize,
    n_out: usize,
) -> Vec<(f64, f64)> {
    let mut sums = vec![(0.0, 0.0); h * w * n_out];
    for (i, sum) in sums.iter_mut().enumerate() {
        let (y, x, out) = (i / n_out / w, i / n_out % w, i % n_out);
        for tap in 0..9 {
            let (y, x) = (y + tap / 3, x + tap % 3);
            if !(1..=h).contains(&y) || !(1..=w).contains(&x) {
                continue;
            }
            let pixel = &input[((y - 1) * w + x - 1) * n_in..][..n_in];
            for (c, value) in pixel.iter().enumerate() {
                let product = f64::from(*value) * f64::from(weights[(out * n_in + c) * 9 + tap]);
                sum.0 += product;
                sum.1 += product.abs();
            }
        }
    }
    sums
}

const SIZES: [[usize; 2]; 12] = [
    [1, 1],
    [1, 40],
    [2, 2],
    [9, 16],
    [3, 14],
    [4, 15],
    [5, 17],
    [18, 32],
    [7, 33],
    [33, 47],
    [20, 20],
    [40, 1],
];

/// Sizes with few channels, and numbers of channels with few pixels: the nested loops are slow.
fn each_case(mut check: impl FnMut(&str, [usize; 2], usize, usize)) {
    let mut case = |size: [usize; 2], n_in, n_out| {
        let name = format!("{}x{}, {n_in} to {n_out}", size[0], size[1]);
        check(&name, size, n_in, n_out);
    };
    for size in SIZES {
        case(size, 32, 32);
    }
    for (n_in, n_out) in [(32, 64), (96, 32), (160, 96), (128, 160)] {
        case([3, 21], n_in, n_out);
    }
    case([9, 16], 64, 128);
}

/// The error of sums of a thousand products and more, relative to those of absolute values.
const F32_ROUNDING: f64 = 2e-6;

#[test]
fn results_are_the_nested_loops() {
    let Some(amx) = Amx::for_tests() else { return };
    each_case(|case, size @ [h, w], n_in, n_out| {
        let (kernel, weights) = kernel(n_in, n_out);
        let bias = random(n_out, 3);
        let (mut operand, values) = (Padded::default(), random(h * w * n_in, 2));
        let input = operand.round(size, n_in, &values, None);
        let convolution = Convolution::new(&amx, size, input, &kernel);
        let pieces: Vec<_> = convolution.pieces().collect();
        let sums = nested_loops(size, &values, &weights, n_in, n_out);
        for epilogue in [Epilogue::Sums, Epilogue::BiasRelu(&bias)] {
            let output = run(&convolution, &pieces, h * w * n_out, epilogue);
            for (i, (value, (sum, magnitude))) in output.iter().zip(&sums).enumerate() {
                let expected = match epilogue {
                    Epilogue::Sums => *sum,
                    Epilogue::BiasRelu(bias) => (sum + f64::from(bias[i % n_out])).max(0.0),
                };
                let error = (f64::from(*value) - expected).abs();
                let bound = F32_ROUNDING * (magnitude + 1.0);
                assert!(error <= bound, "{case}, {i}: {value}, {expected}");
            }
        }
    });
}

/// `<u, f(x)> = <adjoint of f(u), x>`
#[test]
fn the_adjoint_is_that_of_the_forward_kernel() {
    let Some(amx) = Amx::for_tests() else { return };
    let (size @ [h, w], n_in, n_out) = ([6, 19], 64, 96);
    let (_, weights) = kernel(n_in, n_out);
    // A bias that keeps every ReLU open.
    let conv = Conv::new(&amx, n_in, vec![1e4; n_out], |out, input, tap| {
        weights[(out * n_in + input) * 9 + tap]
    });
    let (x, u) = (random(h * w * n_in, 2), random(h * w * n_out, 3));
    let (mut output, mut gradient) = (vec![0.0; u.len()], vec![0.0; x.len()]);
    conv.forward(size, &x, &mut output);
    conv.backward(size, &u, &output, &mut gradient);
    let dot = |a: &[f32], b: &[f32], less: f64| -> f64 {
        let products = a.iter().zip(b);
        products
            .map(|(a, b)| f64::from(*a) * (f64::from(*b) - less))
            .sum()
    };
    let (forward, backward) = (dot(&u, &output, 1e4), dot(&x, &gradient, 0.0));
    // Sums beside 10,000 are rounded to 1e-3.
    let bound = 1e-3 * u.len() as f64;
    assert!((forward - backward).abs() < bound, "{forward}, {backward}");
    assert!(backward.abs() > bound, "{backward}");
}

#[test]
fn results_do_not_depend_on_the_pieces() {
    let Some(amx) = Amx::for_tests() else { return };
    for size @ [h, w] in [[7, 33], [9, 15], [11, 20], [18, 16]] {
        let (n_in, n_out) = (32, 96);
        let (kernel, _) = kernel(n_in, n_out);
        let bias = random(n_out, 3);
        let (mut operand, values) = (Padded::default(), random(h * w * n_in, 2));
        let input = operand.round(size, n_in, &values, None);
        let convolution = Convolution::new(&amx, size, input, &kernel);
        let epilogue = Epilogue::BiasRelu(&bias);
        let with = |pieces: &[Piece]| run(&convolution, pieces, h * w * n_out, epilogue);
        let whole = with(&[Piece {
            rows: 0..h,
            channels: 0..n_out,
        }]);
        let pieces: Vec<_> = convolution.pieces().collect();
        assert!(with(&pieces) == whole, "{h}x{w}");
        let mut computed = vec![0.0; whole.len()];
        convolution.compute(&mut computed, epilogue);
        assert!(computed == whole, "{h}x{w}");
        for (rows, channels) in [(1, n_out), (2, 32), (5, 64)] {
            let pieces: Vec<_> = (0..h)
                .step_by(rows)
                .flat_map(|y| {
                    (0..n_out).step_by(channels).map(move |start| Piece {
                        rows: y..(y + rows).min(h),
                        channels: start..(start + channels).min(n_out),
                    })
                })
                .collect();
            assert!(with(&pieces) == whole, "{h}x{w} by {rows} and {channels}");
        }
    }
}

#[test]
fn pieces_cover_the_output_once() {
    let Some(amx) = Amx::for_tests() else { return };
    for size @ [h, w] in [[1, 1], [7, 33], [40, 40], [256, 256], [90, 640], [16, 3000]] {
        for (n_in, n_out) in [(32, 32), (64, 64), (64, 160), (32, 512)] {
            let kernel = Kernel::new(n_in, n_out, |_, _, _| 0.0);
            let input = vec![bf16::ZERO; (h + 2) * (w + 2) * n_in];
            let convolution = Convolution::new(&amx, size, &input, &kernel);
            let mut seen = vec![false; h * n_out / 32];
            for piece in convolution.pieces().collect::<Vec<_>>() {
                assert!(!piece.rows.is_empty() && !piece.channels.is_empty());
                for y in piece.rows.clone() {
                    for channel in piece.channels.clone().step_by(32) {
                        let seen = &mut seen[(y * n_out + channel) / 32];
                        assert!(!std::mem::replace(seen, true));
                    }
                }
            }
            let all = seen.into_iter().all(|seen| seen);
            assert!(all, "{h}x{w}, {n_in} to {n_out}");
        }
    }
}

/// Operands of several convolutions at a time are in memory of their own, which is used again.
#[test]
fn memory_of_operands_is_used_again() {
    let Some(amx) = Amx::for_tests() else { return };
    let conv = Conv::new(&amx, 32, vec![0.0; 32], |_, _, tap| tap as f32);
    let input = random(5 * 7 * 32, 1);
    let compute = |_| {
        let mut output = vec![0.0; input.len()];
        conv.forward([5, 7], &input, &mut output);
        output
    };
    let alone = compute(0);
    for _ in 0..3 {
        compute(0);
    }
    assert_eq!(amx.free().len(), 1);
    let together: Vec<_> = (0..64).into_par_iter().map(compute).collect();
    assert!(together.iter().all(|output| *output == alone));
}

/// Memory with pages before and behind it that nobody may touch.
struct Guarded {
    start: *mut libc::c_void,
    len: usize,
}

impl Guarded {
    const PAGE: usize = 4096;

    fn new(bytes: usize) -> Self {
        let len = bytes.next_multiple_of(Self::PAGE) + 2 * Self::PAGE;
        let (read, anonymous) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: it takes new memory, of which it closes the first and the last page.
        unsafe {
            let start = libc::mmap(std::ptr::null_mut(), len, read, anonymous, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            for page in [start, start.add(len - Self::PAGE)] {
                assert_eq!(libc::mprotect(page, Self::PAGE, libc::PROT_NONE), 0);
            }
            Self { start, len }
        }
    }

    /// `values` at the very beginning, or the very end.
    fn filled(&mut self, values: &[bf16], at_end: bool) -> &[bf16] {
        let skipped = match at_end {
            true => self.len - Self::PAGE - size_of_val(values),
            false => Self::PAGE,
        };
        // SAFETY: the memory is between the pages, and `self` is borrowed as long.
        unsafe {
            let to: *mut bf16 = self.start.add(skipped).cast();
            to.copy_from_nonoverlapping(values.as_ptr(), values.len());
            std::slice::from_raw_parts(to, values.len())
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to it any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

#[test]
fn nothing_beyond_the_input_is_read() {
    let Some(amx) = Amx::for_tests() else { return };
    for size @ [h, w] in SIZES {
        let (n_in, n_out) = (32, 32);
        let (kernel, _) = kernel(n_in, n_out);
        let (mut operand, values) = (Padded::default(), random(h * w * n_in, 2));
        let input = operand.round(size, n_in, &values, None);
        let mut memory = Guarded::new(size_of_val(input));
        for at_end in [false, true] {
            let input = memory.filled(input, at_end);
            let convolution = Convolution::new(&amx, size, input, &kernel);
            let pieces: Vec<_> = convolution.pieces().collect();
            run(&convolution, &pieces, h * w * n_out, Epilogue::Sums);
        }
    }
}
