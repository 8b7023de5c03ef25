// SPDX-License-Identifier: MPL-2.0

//! On machines with AMX these run on the processor's tiles, elsewhere on those of the [`emulator`].

use super::super::conv::Border;
use super::super::reference::{self, Array};
use super::convolution::Piece;
use super::*;
use rayon::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bound on the rounding of f32 sums of over a thousand products, relative to the sum of their
/// magnitudes.
const F32_ROUNDING: f64 = 2e-6;

/// Half a unit in the last place of bf16, relative.
const BF16_ROUNDING: f64 = 1.0 / 256.0;

fn random(h: usize, w: usize, n: usize, seed: u64) -> Array {
    let mut array = Array::random(h, w, n, seed);
    for value in &mut array.values {
        *value = bf16::from_f64(*value).to_f64();
    }
    array
}

fn to_bf16(array: &Array) -> Vec<bf16> {
    array
        .values
        .iter()
        .map(|value| bf16::from_f64(*value))
        .collect()
}

/// Random weights that bf16 represents exactly.
fn kernel(n_out: usize, n_in: usize) -> reference::ReferenceKernel {
    let mut kernel = reference::ReferenceKernel::random(n_out, n_in, 1);
    for weight in &mut kernel.weights {
        *weight = bf16::from_f64(*weight).to_f64();
    }
    kernel
}

fn weight(kernel: &reference::ReferenceKernel) -> impl Fn(usize, usize, usize) -> f32 + Sync {
    |out, input, tap| kernel.weights[(out * kernel.n_in + input) * 9 + tap] as f32
}

fn bias(kernel: &reference::ReferenceKernel) -> Vec<f32> {
    kernel.bias.iter().map(|value| *value as f32).collect()
}

/// Checks sums that were rounded to bf16, the magnitudes of whose terms add up to `magnitude` at
/// most.
fn check(case: &str, results: &[bf16], expected: &[f64], magnitude: f64) {
    assert_eq!(results.len(), expected.len());
    for (i, (result, expected)) in results.iter().zip(expected).enumerate() {
        let error = (result.to_f64() - expected).abs();
        let bound = BF16_ROUNDING * expected.abs() + F32_ROUNDING * magnitude;
        assert!(error <= bound, "{case}, {i}: {result}, {expected}");
    }
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

/// Many sizes with few channels, and many channel counts with few pixels, as the reference is slow.
fn each_case(mut case: impl FnMut(&str, [usize; 2], usize, usize)) {
    let mut case = |size: [usize; 2], n_in, n_out| {
        let name = format!("{}x{}, {n_in} to {n_out}", size[0], size[1]);
        case(&name, size, n_in, n_out);
    };
    for size in SIZES {
        case(size, 32, 32);
    }
    for (n_in, n_out) in [(32, 64), (96, 32), (160, 96), (128, 160)] {
        case([3, 21], n_in, n_out);
    }
    case([9, 16], 64, 128);
}

#[test]
fn convolutions_match_the_reference() {
    let Some(amx) = Amx::for_tests() else { return };
    each_case(|case, size @ [h, w], n_in, n_out| {
        let kernel = kernel(n_out, n_in);
        let conv = AmxConv::new(amx, n_in, bias(&kernel), weight(&kernel));
        let input = random(h, w, n_in, 2);
        // What is there before is overwritten.
        let mut output = to_bf16(&random(h, w, n_out, 3));
        conv.forward(size, &to_bf16(&input), &mut output);
        let expected = kernel.forward(&input, Border::Zeros);
        check(case, &output, &expected.values, 9.0 * n_in as f64);

        let upstream = random(h, w, n_out, 4);
        let mut gradient = to_bf16(&random(h, w, n_in, 5));
        let features = to_bf16(&expected);
        conv.backward(size, &to_bf16(&upstream), &features, &mut gradient);
        let expected = kernel.backward(&upstream, &expected, Border::Zeros);
        let case = format!("{case}, backward");
        check(&case, &gradient, &expected.values, 9.0 * n_out as f64);
    });
}

#[test]
fn an_images_convolution_matches_the_reference() {
    let Some(amx) = Amx::for_tests() else { return };
    for size @ [h, w] in SIZES {
        for n_out in [32, 64] {
            let case = format!("{h}x{w} to {n_out}");
            // Neither weights nor pixels are exact in bf16; 16 of their 24 bits count.
            let kernel = reference::ReferenceKernel::random(n_out, 3, 1);
            let conv = AmxImageConv::new(amx, bias(&kernel), weight(&kernel));
            let image = Array::random(h, w, 3, 2);
            let mut output = to_bf16(&random(h, w, n_out, 3));
            conv.forward(size, &image.to_f32(), &mut output);
            let expected = kernel.forward(&image, Border::Replicate);
            let rounding = 2f64.powi(-17) / F32_ROUNDING;
            check(&case, &output, &expected.values, 27.0 * rounding);

            let upstream = random(h, w, n_out, 4);
            let mut gradient = Array::random(h, w, 3, 5).to_f32();
            let features = to_bf16(&expected);
            conv.backward(size, &to_bf16(&upstream), &features, &mut gradient);
            let expected = kernel.backward(&upstream, &expected, Border::Replicate);
            for (value, expected) in gradient.iter().zip(&expected.values) {
                let bound = 2f64.powi(-17) * 9.0 * n_out as f64;
                let error = (f64::from(*value) - expected).abs();
                assert!(error <= bound, "{case}: {value}, {expected}");
            }
        }
    }
}

/// The rounding error of each weight is carried over to the next, so that sums are preserved.
#[test]
fn rounding_errors_of_weights_are_diffused() {
    let (n_in, n_out) = (32, 3);
    let kernel = reference::ReferenceKernel::random(n_out, n_in, 1);
    let weights = super::round_with_error_diffusion(n_in, n_out, weight(&kernel));
    for (rounded, exact) in weights
        .chunks(9 * n_in)
        .zip(kernel.weights.chunks(9 * n_in))
    {
        let mut sum = 0.0;
        for (rounded, exact) in rounded.iter().zip(exact) {
            assert_eq!(bf16::from_f32(*rounded).to_f32(), *rounded);
            sum += f64::from(*rounded) - exact;
            // Weights are below 1, where half a unit in the last place is 2^-9.
            assert!(f64::abs(sum) <= 1.01 * 2f64.powi(-9), "{sum}");
        }
    }
}

/// With one line too few for the last position's last step.
#[test]
fn nothing_beyond_the_values_is_read() {
    let Some(amx) = Amx::for_tests() else { return };
    let matrix = VnniMatrix::new(3, microkernel::TILE_COLUMNS, |_, _| 1.0);
    let tiles = tiles::TilesGuard::configure(amx);
    let multiply = |lines: usize| {
        let values = microkernel::LeftOperand {
            lines: &vec![microkernel::Line::ZEROS; lines],
            stride: 2,
        };
        let (panel, mut sums) = (matrix.panel(0), microkernel::Accumulators::ZEROS);
        microkernel::multiply(&tiles, values, [0, 7, 3], &[0, 5, 1], panel, &mut sums);
    };
    let enough = 7 + 5 + 15 * 2 + 1;
    multiply(enough);
    let panic = catch_unwind(AssertUnwindSafe(|| multiply(enough - 1))).unwrap_err();
    let message = panic.downcast_ref::<&str>();
    assert!(message.is_some_and(|message| message.contains("start + reach")));
}

#[test]
fn gram_matrices_match_the_reference() {
    let Some(amx) = Amx::for_tests() else { return };
    for (m, n) in [(1, 32), (7, 64), (32, 32), (45, 96), (200, 128), (64, 512)] {
        let features = random(m, 1, n, 1);
        let mut gram = vec![7.0; n * n];
        super::gram(amx, &to_bf16(&features), n, &mut gram);
        let expected = reference::gram(&features);
        for row in 0..n {
            for column in 0..=row {
                let (value, expected) = (gram[row * n + column], expected[row * n + column]);
                let error = (f64::from(value) / m as f64 - expected).abs();
                assert!(error <= F32_ROUNDING, "{m} of {n}: {value}, {expected}");
            }
        }
    }
}

#[test]
fn the_gradient_of_a_gram_matrix_is_features_times_residual() {
    let Some(amx) = Amx::for_tests() else { return };
    for (m, n) in [(1, 32), (7, 64), (50, 96), (700, 160)] {
        let (features, residual) = (random(m, 1, n, 1), random(n, n, 1, 2));
        let mut matrix = VnniMatrix::default();
        // Twice, so that the second overwrites the first.
        for scale in [3.0, 1.0] {
            matrix.set(n / CHANNEL_MULTIPLE, n, |row, column| {
                scale * residual.at(row, column, 0) as f32
            });
        }
        let before = random(m, 1, n, 3);
        for accumulate in [false, true] {
            let mut gradient = to_bf16(&before);
            gram_backward(amx, &to_bf16(&features), &matrix, &mut gradient, accumulate);
            let rows = features
                .values
                .chunks_exact(n)
                .zip(before.values.chunks_exact(n));
            let expected: Vec<f64> = rows
                .flat_map(|(row, before)| {
                    let residual = &residual;
                    (0..n).map(move |column| {
                        let products = row.iter().zip(0..);
                        let sum: f64 = products.map(|(f, i)| f * residual.at(i, column, 0)).sum();
                        sum + if accumulate { before[column] } else { 0.0 }
                    })
                })
                .collect();
            let case = format!("{m} of {n}, {accumulate}");
            check(&case, &gradient, &expected, n as f64);
        }
    }
}

/// The output of `convolution`, computed in `pieces`, on as many threads.
fn run(convolution: &Convolution, pieces: &[Piece], len: usize, n_out: usize) -> Vec<bf16> {
    let mut values = to_bf16(&random(len, 1, 1, 9));
    let epilogue = StoreBf16 {
        channels: n_out,
        output: DisjointSlices::new(&mut values),
    };
    std::thread::scope(|scope| {
        for piece in pieces {
            // SAFETY: pieces do not overlap, and nothing else accesses the output.
            scope.spawn(|| unsafe { convolution.run(piece, &epilogue) });
        }
    });
    values
}

#[test]
fn results_do_not_depend_on_the_pieces() {
    let Some(amx) = Amx::for_tests() else { return };
    for size @ [h, w] in [[7, 33], [9, 15], [11, 20], [18, 16]] {
        let (n_in, n_out) = (32, 96);
        let kernel = convolution::kernel(n_in, n_out, weight(&kernel(n_out, n_in)));
        let input = to_bf16(&random(h, w, n_in, 2));
        let source = ConvInput::Features(&input);
        let convolution = Convolution::new(amx, size, n_in, 1, source, &kernel);
        let with = |pieces: &[Piece]| run(&convolution, pieces, h * w * n_out, n_out);
        let whole = with(&[Piece {
            rows: 0..h,
            channels: 0..n_out,
        }]);
        for threads in [1, 2, 3, 8, 100] {
            let pieces: Vec<_> = convolution.pieces(threads).collect();
            assert!(with(&pieces) == whole, "{h}x{w}, {threads} threads");
        }
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
        for (n_in, n_out) in [(32, 32), (64, 64), (64, 160), (32, 512), (64, 16)] {
            let kernel = convolution::kernel(n_in, n_out, |_, _, _| 0.0);
            let input = vec![bf16::ZERO; h * w * n_in];
            let source = ConvInput::Features(&input);
            let convolution = Convolution::new(amx, size, n_in, 1, source, &kernel);
            for threads in [1, 2, 3, 16, 64] {
                let mut seen = vec![false; h * n_out / 16];
                for piece in convolution.pieces(threads).collect::<Vec<_>>() {
                    assert!(!piece.rows.is_empty() && !piece.channels.is_empty());
                    for y in piece.rows.clone() {
                        for channel in piece.channels.clone().step_by(16) {
                            let seen = &mut seen[(y * n_out + channel) / 16];
                            assert!(!std::mem::replace(seen, true));
                        }
                    }
                }
                let all = seen.into_iter().all(|seen| seen);
                assert!(all, "{h}x{w}, {n_in} to {n_out}, {threads} threads");
            }
        }
    }
}
