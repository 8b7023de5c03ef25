// SPDX-License-Identifier: MPL-2.0

use super::{Buffer, check, check_sum, launch};

/// A prime number of values, which no grid covers evenly.
const COUNT: usize = 1237;

/// Checks that `kernel(dst, a, b, count, blocks)` sets each of `dst` to `value(dst, a, b)`.
fn check_vector(
    case: &str,
    kernel: impl Fn(*mut f32, *const f32, *const f32, i64, u32),
    value: impl Fn(f64, f64, f64) -> f64,
) {
    // Fewer threads than values, and more; no values at all.
    for (count, blocks) in [(COUNT, 2), (COUNT, 7), (1, 1), (0, 1)] {
        let before = Buffer::<f32>::random(count, -1.0, 1.0, 1);
        let a = Buffer::random(count, -1.0, 2.0, 2);
        let b = Buffer::random(count, 0.0, 1.0, 3);
        let mut dst = before.clone();
        kernel(dst.write(), a.read(), b.read(), count as i64, blocks);
        let (before, a, b) = (before.values(), a.values(), b.values());
        let expected: Vec<f64> = (0..count).map(|i| value(before[i], a[i], b[i])).collect();
        check(case, &dst, &expected, 1e-6);
    }
}

#[test]
fn vector_operations_are_their_formulas() {
    let factor = Buffer::<f32>::of(&[-0.5]);
    check_vector(
        "scale_by",
        |dst, _, _, count, blocks| launch("scale_by", blocks, (factor.read(), dst, count)),
        |dst, _, _| -0.5 * dst,
    );
    for squared in [false, true] {
        check_vector(
            "decay",
            |dst, a, _, count, blocks| {
                launch("decay", blocks, (dst, 0.9f32, a, squared as i32, count))
            },
            |dst, a, _| 0.9 * dst + 0.1 * if squared { a * a } else { a },
        );
    }
    check_vector(
        "adam_step",
        |dst, a, b, count, blocks| launch("adam_step", blocks, (dst, 0.1f32, a, 0.5f32, b, count)),
        |x, m, v| (x - 0.1 * m / ((v / 0.5).sqrt() + 1e-8)).clamp(0.0, 1.0),
    );
}

#[test]
fn partial_sums_are_added_up_row_by_row() {
    for parts in [1, 3, 256, 1000] {
        let partials = Buffer::<f64>::random(2 * parts, -1.0, 1.0, 1);
        let mut sums = Buffer::<f64>::unset(2);
        launch(
            "sum_partials",
            2,
            (partials.read(), parts as i32, 0.5f64, sums.write()),
        );
        for (row, sum) in partials.values().chunks(parts).zip(sums.values()) {
            let expected = 0.5 * row.iter().sum::<f64>();
            assert!((sum - expected).abs() < 1e-12, "{parts}: {sum}");
        }
    }
}

#[test]
fn total_variation_and_its_gradient_are_their_formulas() {
    let factor = Buffer::<f32>::of(&[0.3]);
    for (h, w, blocks) in [(1, 1, 1), (1, 6, 1), (5, 1, 2), (17, 23, 2)] {
        let count = h * w * 3;
        let image = Buffer::<f32>::random(count, 0.0, 1.0, 1);
        let before = Buffer::<f32>::random(count, -1.0, 1.0, 2);
        let mut gradient = before.clone();
        let mut partials = Buffer::<f64>::unset(blocks as usize);
        launch(
            "total_variation",
            blocks,
            (
                image.read(),
                factor.read(),
                gradient.write(),
                partials.write(),
                h as i32,
                w as i32,
            ),
        );
        let (image, mut expected, mut total) = (image.values(), before.values(), 0.0);
        let mut neighbours = |i: usize, other: usize| {
            let difference = image[i] - image[other];
            total += difference * difference;
            expected[i] += 2.0 * 0.3 * difference;
            expected[other] -= 2.0 * 0.3 * difference;
        };
        for i in 0..count {
            if i / 3 % w > 0 {
                neighbours(i, i - 3);
            }
            if i / 3 / w > 0 {
                neighbours(i, i - 3 * w);
            }
        }
        let case = format!("{h}x{w}");
        check(&case, &gradient, &expected, 1e-6);
        check_sum(&case, partials.sum(), total);
    }
}

#[test]
fn the_temporal_loss_and_its_gradient_are_their_formulas() {
    let factor = Buffer::<f32>::of(&[0.3]);
    for (pixels, blocks) in [(1, 2), (700, 2)] {
        let image = Buffer::<f32>::random(3 * pixels, 0.0, 1.0, 1);
        let target = Buffer::<f32>::random(4 * pixels, 0.0, 1.0, 2);
        let before = Buffer::<f32>::random(3 * pixels, -1.0, 1.0, 3);
        let mut gradient = before.clone();
        let mut partials = Buffer::<f64>::unset(blocks as usize);
        launch(
            "temporal_loss",
            blocks,
            (
                image.read(),
                target.read(),
                factor.read(),
                gradient.write(),
                partials.write(),
                pixels as i64,
            ),
        );
        let (target, mut expected, mut total) = (target.values(), before.values(), 0.0);
        for (i, value) in image.values().iter().enumerate() {
            let weight = target[i / 3 * 4 + 3];
            let difference = value - target[i / 3 * 4 + i % 3];
            total += weight * difference * difference;
            expected[i] += 2.0 * 0.3 * weight * difference;
        }
        check("temporal_loss", &gradient, &expected, 1e-6);
        check_sum("temporal_loss", partials.sum(), total);
    }
}
