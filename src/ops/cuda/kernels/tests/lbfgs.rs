// SPDX-License-Identifier: MPL-2.0

use super::{Buffer, check_sum, launch, launch_2d};
use std::collections::VecDeque;

const N: usize = 700;
const BLOCKS: u32 = 2;
const HISTORY: usize = 3;
const ROWS: usize = 2 * HISTORY;
const MIN_COSINE: f64 = 1e-4;
const FIRST_STEP: f64 = 0.01;

/// The pairs as the kernels keep them.
struct KernelPairs {
    vectors: Buffer<f32>,
    state: Buffer<f64>,
    products: Buffer<f64>,
}

impl KernelPairs {
    fn new() -> Self {
        Self {
            vectors: Buffer::unset((ROWS + 2) * N),
            state: Buffer::of(&[0.0; 5]),
            products: Buffer::unset(ROWS * ROWS),
        }
    }

    /// The inner products of the rows of `vectors`, `[rows, N]`, with `x`.
    fn products(vectors: &Buffer<f32>, rows: usize, x: *const f32) -> Buffer<f64> {
        let mut partials = Buffer::<f64>::unset(rows * BLOCKS as usize);
        let grid = [BLOCKS, rows as u32];
        launch_2d(
            "inner_products",
            grid,
            (vectors.read(), x, partials.write(), N as i64),
        );
        Self::sum_partials(&partials, rows)
    }

    fn sum_partials(partials: &Buffer<f64>, rows: usize) -> Buffer<f64> {
        let mut sums = Buffer::<f64>::unset(rows);
        let arguments = (partials.read(), BLOCKS as i32, 1f64, sums.write());
        launch("sum_partials", rows as u32, arguments);
        sums
    }

    fn update(&mut self, step: &Step) {
        let history = HISTORY as i32;
        let [image, trial, gradient, trial_gradient] = step.pointers();
        launch(
            "lbfgs_candidate",
            BLOCKS,
            (
                image,
                trial,
                gradient,
                trial_gradient,
                self.vectors.write(),
                history,
                N as i64,
            ),
        );
        let [s, y] = [ROWS, ROWS + 1].map(|row| {
            let candidate = self.vectors.read().wrapping_add(row * N);
            Self::products(&self.vectors, ROWS + 2, candidate)
        });
        launch(
            "lbfgs_update",
            1,
            (
                self.state.write(),
                s.read(),
                y.read(),
                self.products.write(),
                history,
                MIN_COSINE,
            ),
        );
        launch(
            "lbfgs_store",
            BLOCKS,
            (self.state.read(), self.vectors.write(), history, N as i64),
        );
    }

    fn next_objective(&mut self) {
        launch("lbfgs_next_objective", 1, (self.state.write(),));
    }

    /// Checks that the kept inner products are those of the pairs.
    #[track_caller]
    fn check_products(&self) {
        let (vectors, products) = (self.vectors.values(), self.products.values());
        let row = |row: usize| &vectors[row * N..(row + 1) * N];
        // The first slots are the first to be filled.
        let filled = |row: &usize| ((row % HISTORY) as f64) < self.state.values()[0];
        for a in (0..ROWS).filter(filled) {
            for b in (0..ROWS).filter(filled) {
                check_sum("products", products[a * ROWS + b], dot(row(a), row(b)));
            }
        }
    }

    fn direction(&self, gradient: &Buffer<f32>, image: &Buffer<f32>) -> Vec<f64> {
        let mut direction = Buffer::<f32>::unset(N);
        let arguments = (gradient.read(), image.read(), direction.write(), N as i64);
        launch("lbfgs_steepest_descent", BLOCKS, arguments);
        let mut q = Self::products(&self.vectors, ROWS, direction.read());
        let squares = Self::products(gradient, 1, gradient.read());
        let mut coefficients = Buffer::<f64>::unset(ROWS + 1);
        launch(
            "lbfgs_coefficients",
            1,
            (
                self.state.read(),
                self.products.read(),
                q.write(),
                squares.read(),
                coefficients.write(),
                HISTORY as i32,
                N as i64,
                FIRST_STEP,
            ),
        );
        coefficients.values();
        launch(
            "lbfgs_combine",
            BLOCKS,
            (
                self.vectors.read(),
                coefficients.read(),
                image.read(),
                direction.write(),
                HISTORY as i32,
                N as i64,
            ),
        );
        direction.values()
    }
}

/// The two-loop recursion on the vectors themselves.
#[derive(Default)]
struct TwoLoop {
    pairs: VecDeque<[Vec<f64>; 2]>,
    curvature: Option<f64>,
    opening_curvature: Option<f64>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn axpy(a: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

impl TwoLoop {
    /// Whether the step is accepted as a pair.
    fn update(&mut self, step: &Step) -> bool {
        let [s, y] = step.pair();
        let sy = dot(&s, &y);
        let accepted = sy > MIN_COSINE * (dot(&s, &s) * dot(&y, &y)).sqrt();
        if accepted {
            self.curvature = Some(sy / dot(&y, &y));
            self.opening_curvature = self.opening_curvature.or(self.curvature);
            self.pairs.truncate(HISTORY - 1);
            self.pairs.push_front([s, y]);
        }
        accepted
    }

    fn next_objective(&mut self) {
        self.pairs.clear();
        self.curvature = self.opening_curvature.take().or(self.curvature);
    }

    fn direction(&self, gradient: &[f64], image: &[f64]) -> Vec<f64> {
        let clear_outward = |d: &mut [f64]| {
            for (d, &x) in d.iter_mut().zip(image) {
                if (x <= 0.0 && *d < 0.0) || (x >= 1.0 && *d > 0.0) {
                    *d = 0.0;
                }
            }
        };
        let mut d: Vec<f64> = gradient.iter().map(|g| -g).collect();
        clear_outward(&mut d);
        let mut alphas = Vec::new();
        for [s, y] in &self.pairs {
            let a = dot(s, &d) / dot(s, y);
            axpy(-a, y, &mut d);
            alphas.push(a);
        }
        let rms = (dot(gradient, gradient) / N as f64).sqrt();
        let first = if rms > 0.0 { FIRST_STEP / rms } else { 0.0 };
        let scale = self.curvature.unwrap_or(first);
        d.iter_mut().for_each(|d| *d *= scale);
        for ([s, y], a) in self.pairs.iter().zip(alphas).rev() {
            let b = dot(y, &d) / dot(s, y);
            axpy(a - b, s, &mut d);
        }
        clear_outward(&mut d);
        d
    }
}

/// A step on an objective of random curvature, from an image that is partly at the bounds.
struct Step {
    image: Buffer<f32>,
    trial: Buffer<f32>,
    gradient: Buffer<f32>,
    trial_gradient: Buffer<f32>,
}

impl Step {
    fn new(seed: u64, curvature: f64) -> Self {
        let clamped = |values: Buffer<f32>| {
            let values: Vec<f64> = values.values().iter().map(|v| v.clamp(0.0, 1.0)).collect();
            Buffer::<f32>::of(&values)
        };
        let image = clamped(Buffer::random(N, -0.2, 1.2, 10 * seed));
        let trial = clamped(Buffer::random(N, -0.2, 1.2, 10 * seed + 1));
        let gradient = Buffer::<f32>::random(N, -1.0, 1.0, 10 * seed + 2);
        // Mostly the same for all steps, with a part that makes the pairs disagree.
        let curvatures = Buffer::<f32>::random(N, 0.1, 3.0, 1000).values();
        let others = Buffer::<f32>::random(N, 0.0, 0.3, 10 * seed + 3).values();
        let mut changed = gradient.values();
        for (i, value) in changed.iter_mut().enumerate() {
            let displacement = trial.values()[i] - image.values()[i];
            *value += curvature * (curvatures[i] + others[i]) * displacement;
        }
        Self {
            image,
            trial,
            gradient,
            trial_gradient: Buffer::of(&changed),
        }
    }

    fn pointers(&self) -> [*const f32; 4] {
        [
            &self.image,
            &self.trial,
            &self.gradient,
            &self.trial_gradient,
        ]
        .map(Buffer::read)
    }

    /// The displacement and the change of the gradient, rounded to `f32`.
    fn pair(&self) -> [Vec<f64>; 2] {
        [
            (&self.trial, &self.image),
            (&self.trial_gradient, &self.gradient),
        ]
        .map(|(a, b)| {
            let (a, b) = (a.values(), b.values());
            a.iter()
                .zip(b)
                .map(|(a, b)| f64::from((a - b) as f32))
                .collect()
        })
    }
}

#[track_caller]
fn check_direction(case: &str, kernels: &KernelPairs, plain: &TwoLoop, step: &Step) {
    let (gradient, image) = (&step.trial_gradient, &step.trial);
    let direction = kernels.direction(gradient, image);
    let expected = plain.direction(&gradient.values(), &image.values());
    let mut error = direction.clone();
    axpy(-1.0, &expected, &mut error);
    let relative = (dot(&error, &error) / dot(&expected, &expected)).sqrt();
    assert!(relative < 1e-6, "{case}: {relative}");
}

#[test]
fn directions_are_those_of_the_two_loop_recursion() {
    let (mut kernels, mut plain) = (KernelPairs::new(), TwoLoop::default());
    check_direction("at first", &kernels, &plain, &Step::new(99, 1.0));
    // More steps than the history has room for; the third, of negative curvature, is rejected.
    for (seed, curvature) in [(1, 1.0), (2, 2.0), (3, -1.0), (4, 1.0), (5, 0.5), (6, 3.0)] {
        let step = Step::new(seed, curvature);
        let accepted = plain.update(&step);
        assert_eq!(accepted, curvature > 0.0);
        kernels.update(&step);
        let state = kernels.state.values();
        assert_eq!(state[2], f64::from(u8::from(accepted)));
        assert_eq!(state[0], plain.pairs.len() as f64);
        kernels.check_products();
        check_direction(&format!("after step {seed}"), &kernels, &plain, &step);
    }
    // Dropping the pairs keeps the curvature scale, wherever the ring buffer's next slot is.
    let state = kernels.state.values();
    assert_ne!(state[1], 0.0);
    kernels.state = Buffer::of(&[0.0, state[1], 0.0, state[3], state[4]]);
    plain.pairs.clear();
    let step = Step::new(7, 1.0);
    check_direction("without pairs", &kernels, &plain, &step);
    plain.update(&step);
    kernels.update(&step);
    check_direction("with a new pair", &kernels, &plain, &step);
}

#[test]
fn another_objective_begins_with_the_scale_of_the_first_pair() {
    let (mut kernels, mut plain) = (KernelPairs::new(), TwoLoop::default());
    let step = Step::new(99, 1.0);
    kernels.next_objective();
    check_direction("without pairs", &kernels, &plain, &step);
    // More steps than the history has room for, then fewer, with the first one rejected, then none accepted.
    for steps in [&[0.5, 1.0, 2.0, 3.0][..], &[-1.0, 4.0, 2.0], &[-1.0]] {
        for (seed, &curvature) in (1..).zip(steps) {
            let step = Step::new(seed, curvature);
            plain.update(&step);
            kernels.update(&step);
        }
        check_direction("before", &kernels, &plain, &step);
        plain.next_objective();
        kernels.next_objective();
        assert_ne!(plain.curvature, None);
        check_direction("after", &kernels, &plain, &step);
    }
}

/// With more rows than a block has threads.
#[test]
fn coefficients_are_those_of_the_two_loop_recursion_for_a_long_history() {
    const PAIRS: usize = 140;
    const NEXT: usize = 17;
    let mut plain = TwoLoop::default();
    let mut vectors = vec![Vec::new(); 2 * PAIRS];
    // From the oldest pair to the latest.
    for age in (0..PAIRS).rev() {
        let step = Step::new(age as u64, 1.0);
        let [s, y] = step.pair();
        plain.curvature = Some(dot(&s, &y) / dot(&y, &y));
        let slot = (NEXT + 2 * PAIRS - 1 - age) % PAIRS;
        (vectors[slot], vectors[PAIRS + slot]) = (s.clone(), y.clone());
        plain.pairs.push_front([s, y]);
    }
    let q = Buffer::<f32>::random(N, -1.0, 1.0, 12345).values();
    let products = vectors
        .iter()
        .flat_map(|a| vectors.iter().map(|b| dot(a, b)));
    let products = Buffer::<f64>::of(&products.collect::<Vec<f64>>());
    let dots: Vec<f64> = vectors.iter().map(|row| dot(row, &q)).collect();
    let mut dots = Buffer::<f64>::of(&dots);
    let state = [
        PAIRS as f64,
        NEXT as f64,
        1.0,
        plain.curvature.unwrap(),
        0.0,
    ];
    let (state, squares) = (Buffer::<f64>::of(&state), Buffer::<f64>::of(&[1.0]));
    let mut coefficients = Buffer::<f64>::unset(2 * PAIRS + 1);
    launch(
        "lbfgs_coefficients",
        1,
        (
            state.read(),
            products.read(),
            dots.write(),
            squares.read(),
            coefficients.write(),
            PAIRS as i32,
            N as i64,
            FIRST_STEP,
        ),
    );
    let coefficients = coefficients.values();
    let mut error = vec![0.0; N];
    for (coefficient, row) in coefficients.iter().zip(vectors.iter().chain([&q])) {
        axpy(*coefficient, row, &mut error);
    }
    // An image without values at the bounds.
    let gradient: Vec<f64> = q.iter().map(|q| -q).collect();
    let expected = plain.direction(&gradient, &[0.5; N]);
    axpy(-1.0, &expected, &mut error);
    let relative = (dot(&error, &error) / dot(&expected, &expected)).sqrt();
    assert!(relative < 1e-6, "{relative}");
}

#[test]
fn steps_are_accepted_above_the_least_cosine() {
    let (ss, yy, min_cosine) = (4.0, 9.0, 0.5);
    for (sy, accepted) in [(3.0, 0.0), (3.01, 1.0), (f64::NAN, 0.0)] {
        let mut state = Buffer::<f64>::of(&[0.0, 0.0, 0.5, 0.0, 0.0]);
        let mut products = Buffer::<f64>::unset(4);
        let s = Buffer::<f64>::of(&[f64::NAN, f64::NAN, ss, sy]);
        let y = Buffer::<f64>::of(&[f64::NAN, f64::NAN, sy, yy]);
        let arguments = (
            state.write(),
            s.read(),
            y.read(),
            products.write(),
            1i32,
            min_cosine,
        );
        launch("lbfgs_update", 1, arguments);
        let curvature = if accepted > 0.0 { sy / yy } else { 0.0 };
        let expected = [accepted, 0.0, accepted, curvature, curvature];
        assert_eq!(state.values(), expected);
    }
}

#[test]
fn without_a_gradient_there_is_no_direction() {
    let (gradient, image) = (Buffer::of(&[0.0; N]), Buffer::random(N, 0.0, 1.0, 1));
    assert_eq!(KernelPairs::new().direction(&gradient, &image), [0.0; N]);
}

#[test]
fn squared_length_and_slope_of_a_step_are_their_formulas() {
    let step = Step::new(1, 1.0);
    let [image, trial, gradient, _] = step.pointers();
    let mut partials = Buffer::<f64>::unset(2 * BLOCKS as usize);
    let arguments = (image, trial, gradient, partials.write(), N as i64);
    launch("lbfgs_step_sums", BLOCKS, arguments);
    let sums = KernelPairs::sum_partials(&partials, 2).values();
    let [s, _] = step.pair();
    check_sum("squares", sums[0], dot(&s, &s));
    check_sum("slope", sums[1], dot(&step.gradient.values(), &s));
}
