// SPDX-License-Identifier: MPL-2.0

use super::{Buffer, check, check_sum, launch};
use std::collections::VecDeque;

/// Values that a block takes; the same as in `lbfgs.cuh`.
const BLOCK_VALUES: usize = 3072;

/// An odd number of values in one block, and in the last of three.
const COUNTS: [usize; 2] = [701, 2 * BLOCK_VALUES + 1237];
const MIN_COSINE: f64 = 1e-4;
const FIRST_STEP: f64 = 0.01;

/// The pairs as the kernels keep them. What is not written yet is NaN.
struct KernelPairs {
    history: usize,
    n: usize,
    vectors: Buffer<f32>,
    state: Buffer<f64>,
    products: Buffer<f64>,
    partials: Buffer<f64>,
}

/// The coefficients of a direction over `n` values, with the candidate entered before.
fn coefficients(
    state: &mut Buffer<f64>,
    products: &mut Buffer<f64>,
    sums: &mut Buffer<f64>,
    n: usize,
    min_cosine: f64,
) -> Buffer<f64> {
    let slots = (sums.values().len() - 1) / 6;
    let mut coefficients = Buffer::unset(2 * slots + 1);
    let arguments = (
        state.write(),
        products.write(),
        sums.write(),
        coefficients.write(),
        slots as i32 - 1,
        n as i64,
        min_cosine,
        FIRST_STEP,
    );
    launch("lbfgs_coefficients", 1, arguments);
    coefficients
}

impl KernelPairs {
    fn new(history: usize, n: usize) -> Self {
        let (rows, tiles) = (2 * (history + 1), n.div_ceil(BLOCK_VALUES));
        Self {
            history,
            n,
            vectors: Buffer::unset(rows * tiles * BLOCK_VALUES),
            state: Buffer::of(&[0.0; 4]),
            products: Buffer::unset(rows * rows),
            partials: Buffer::unset((3 * rows + 1) * tiles),
        }
    }

    /// Takes a step from the image and gradient to the trial and its gradient, as addresses of `n` values;
    /// returns the direction there.
    fn advance(&mut self, [image, gradient, trial, trial_gradient]: [*mut f32; 4]) -> Vec<f64> {
        let (rows, tiles) = (2 * (self.history + 1), self.n.div_ceil(BLOCK_VALUES));
        let (history, n) = (self.history as i32, self.n as i64);
        let [trial, trial_gradient] = [trial, trial_gradient].map(<*mut f32>::cast_const);
        let arguments = (
            image,
            gradient,
            trial,
            trial_gradient,
            self.state.read(),
            self.vectors.write(),
            self.partials.write(),
            history,
            n,
        );
        launch("lbfgs_products", tiles as u32, arguments);
        let mut sums = Buffer::<f64>::unset(3 * rows + 1);
        let arguments = (self.partials.read(), tiles as i32, 1f64, sums.write());
        launch("sum_partials", 3 * rows as u32 + 1, arguments);
        let products = &mut self.products;
        let coefficients = coefficients(&mut self.state, products, &mut sums, self.n, MIN_COSINE);
        let mut direction = Buffer::<f32>::unset(self.n);
        let arguments = (
            self.state.read(),
            self.vectors.read(),
            coefficients.read(),
            image.cast_const(),
            gradient.cast_const(),
            direction.write(),
            history,
            n,
        );
        launch("lbfgs_combine", tiles as u32, arguments);
        // Their guards are intact.
        let _ = (self.partials.values(), sums.values(), coefficients.values());
        direction.values()
    }

    /// Takes a step, which moves its image and gradient.
    fn update(&mut self, step: &Step) -> Vec<f64> {
        let mut points = step.points();
        let direction = self.advance(points.each_mut().map(Buffer::write));
        let [image, gradient, trial, trial_gradient] = points.map(|values| values.values());
        assert_eq!(image, trial);
        assert_eq!(gradient, trial_gradient);
        direction
    }

    /// The direction at the end of a step, by a step of length 0 from there.
    fn direction(&mut self, step: &Step) -> Vec<f64> {
        let (mut image, mut gradient) = (step.trial.clone(), step.trial_gradient.clone());
        let [image, gradient] = [image.write(), gradient.write()];
        let before = self.state.values();
        let direction = self.advance([image, gradient, image, gradient]);
        assert_eq!(self.state.values(), before);
        direction
    }

    fn next_objective(&mut self) {
        launch("lbfgs_next_objective", 1, (self.state.write(),));
    }

    /// Checks that the rows of the pairs, and their kept inner products, are those of the vectors.
    #[track_caller]
    fn check_pairs(&self, pairs: &VecDeque<[Vec<f64>; 2]>) {
        let (slots, tiles) = (self.history + 1, self.n.div_ceil(BLOCK_VALUES));
        let (state, products) = (self.state.values(), self.products.values());
        assert_eq!(state[0], pairs.len() as f64);
        let vectors = self.vectors.values();
        let slot = |age: usize| (state[1] as usize + 2 * slots - 1 - age) % slots;
        let rows = (0..pairs.len()).flat_map(|age| [slot(age), slots + slot(age)]);
        let rows: Vec<(usize, &Vec<f64>)> = rows.zip(pairs.iter().flatten()).collect();
        for &(a, vector) in &rows {
            let (kept, padding) =
                vectors[a * tiles * BLOCK_VALUES..][..tiles * BLOCK_VALUES].split_at(self.n);
            assert_eq!(kept, vector);
            assert!(padding.iter().all(|&value| value == 0.0));
            for &(b, other) in &rows {
                check_sum("products", products[a * 2 * slots + b], dot(vector, other));
            }
        }
    }
}

/// The two-loop recursion on the vectors themselves.
struct TwoLoop {
    history: usize,
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
    fn new(history: usize) -> Self {
        Self {
            history,
            pairs: VecDeque::new(),
            curvature: None,
            opening_curvature: None,
        }
    }

    /// Whether the step is accepted as a pair.
    fn update(&mut self, step: &Step) -> bool {
        let [s, y] = step.pair();
        let sy = dot(&s, &y);
        let accepted = sy > MIN_COSINE * (dot(&s, &s) * dot(&y, &y)).sqrt();
        if accepted {
            self.curvature = Some(sy / dot(&y, &y));
            self.opening_curvature = self.opening_curvature.or(self.curvature);
            self.pairs.truncate(self.history - 1);
            self.pairs.push_front([s, y]);
        }
        accepted
    }

    fn next_objective(&mut self) {
        self.pairs.clear();
        self.curvature = self.opening_curvature.take().or(self.curvature);
    }

    fn direction(&self, gradient: &[f64], image: &[f64]) -> Vec<f64> {
        let project = |d: &mut [f64]| {
            for (d, (&x, &g)) in d.iter_mut().zip(image.iter().zip(gradient)) {
                if (x <= 0.0 && (*d < 0.0 || g > 0.0)) || (x >= 1.0 && (*d > 0.0 || g < 0.0)) {
                    *d = 0.0;
                }
            }
        };
        let mut d: Vec<f64> = gradient.iter().map(|g| -g).collect();
        project(&mut d);
        let mut alphas = Vec::new();
        for [s, y] in &self.pairs {
            let a = dot(s, &d) / dot(s, y);
            axpy(-a, y, &mut d);
            alphas.push(a);
        }
        let rms = (dot(gradient, gradient) / gradient.len() as f64).sqrt();
        let first = if rms > 0.0 { FIRST_STEP / rms } else { 0.0 };
        let scale = self.curvature.unwrap_or(first);
        d.iter_mut().for_each(|d| *d *= scale);
        for ([s, y], a) in self.pairs.iter().zip(alphas).rev() {
            let b = dot(y, &d) / dot(s, y);
            axpy(a - b, s, &mut d);
        }
        project(&mut d);
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
    fn new(n: usize, seed: u64, curvature: f64) -> Self {
        let clamped = |values: Buffer<f32>| {
            let values: Vec<f64> = values.values().iter().map(|v| v.clamp(0.0, 1.0)).collect();
            Buffer::<f32>::of(&values)
        };
        let image = clamped(Buffer::random(n, -0.2, 1.2, 10 * seed));
        let trial = clamped(Buffer::random(n, -0.2, 1.2, 10 * seed + 1));
        let gradient = Buffer::<f32>::random(n, -1.0, 1.0, 10 * seed + 2);
        // Mostly the same for all steps, with a part that makes the pairs disagree.
        let curvatures = Buffer::<f32>::random(n, 0.1, 3.0, 1000).values();
        let others = Buffer::<f32>::random(n, 0.0, 0.3, 10 * seed + 3).values();
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

    /// Copies of the image and gradient, and of those of the trial.
    fn points(&self) -> [Buffer<f32>; 4] {
        [
            &self.image,
            &self.gradient,
            &self.trial,
            &self.trial_gradient,
        ]
        .map(Buffer::clone)
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
fn check_direction(case: &str, direction: &[f64], plain: &TwoLoop, step: &Step) {
    let expected = plain.direction(&step.trial_gradient.values(), &step.trial.values());
    let mut error = direction.to_vec();
    axpy(-1.0, &expected, &mut error);
    let relative = (dot(&error, &error) / dot(&expected, &expected)).sqrt();
    assert!(relative < 1e-6, "{case}: {relative}");
}

#[test]
fn directions_are_those_of_the_two_loop_recursion() {
    for (history, n) in [(1, COUNTS[0]), (3, COUNTS[0]), (2, COUNTS[1])] {
        let (mut kernels, mut plain) = (KernelPairs::new(history, n), TwoLoop::new(history));
        let step = Step::new(n, 99, 1.0);
        check_direction("at first", &kernels.direction(&step), &plain, &step);
        // Round the ring buffer and on; those of negative curvature are rejected.
        let curvatures = [1.0, -1.0, 2.0, 1.0, 0.5, -2.0, 3.0, 1.5];
        for (seed, curvature) in (1..).zip(curvatures) {
            let case = format!("history {history}, {n} values, step {seed}");
            let step = Step::new(n, seed, curvature);
            assert_eq!(plain.update(&step), curvature > 0.0);
            let direction = kernels.update(&step);
            kernels.check_pairs(&plain.pairs);
            check_direction(&case, &direction, &plain, &step);
            assert_eq!(kernels.direction(&step), direction, "{case}, again");
        }
        // Dropping the pairs keeps the curvature scale, wherever the ring buffer's next slot is.
        let state = kernels.state.values();
        kernels.state = Buffer::of(&[0.0, state[1], state[2], state[3]]);
        plain.pairs.clear();
        let step = Step::new(n, 100, 1.0);
        check_direction("without pairs", &kernels.direction(&step), &plain, &step);
        plain.update(&step);
        let direction = kernels.update(&step);
        kernels.check_pairs(&plain.pairs);
        check_direction("with a new pair", &direction, &plain, &step);
    }
}

#[test]
fn another_objective_begins_with_the_scale_of_the_first_pair() {
    let [n, _] = COUNTS;
    let (mut kernels, mut plain) = (KernelPairs::new(3, n), TwoLoop::new(3));
    let step = Step::new(n, 99, 1.0);
    kernels.next_objective();
    check_direction("without pairs", &kernels.direction(&step), &plain, &step);
    // More steps than the history has room for, then fewer, with the first one rejected, then none accepted.
    for steps in [&[0.5, 1.0, 2.0, 3.0][..], &[-1.0, 4.0, 2.0], &[-1.0]] {
        for (seed, &curvature) in (1..).zip(steps) {
            let step = Step::new(n, seed, curvature);
            plain.update(&step);
            kernels.update(&step);
        }
        check_direction("before", &kernels.direction(&step), &plain, &step);
        plain.next_objective();
        kernels.next_objective();
        assert_ne!(plain.curvature, None);
        check_direction("after", &kernels.direction(&step), &plain, &step);
    }
}

/// With values that no vectorised load may take, and with NaN before and after them.
#[test]
fn alignment_changes_nothing() {
    for n in COUNTS {
        let step = Step::new(n, 1, 1.0);
        let directions = [0, 1, 2].map(|shift| {
            let mut points = step.points().map(|values| {
                let shifted = [&vec![f64::NAN; shift][..], &values.values(), &[f64::NAN]].concat();
                Buffer::<f32>::of(&shifted)
            });
            let addresses = points
                .each_mut()
                .map(|values| values.write().wrapping_add(shift));
            let direction = KernelPairs::new(1, n).advance(addresses);
            let [image, gradient, trial, trial_gradient] = points.map(|buffer| {
                let values = buffer.values();
                assert!(
                    values[..shift]
                        .iter()
                        .chain(values.last())
                        .all(|v| v.is_nan())
                );
                values[shift..][..n].to_vec()
            });
            assert_eq!(image, trial);
            assert_eq!(gradient, trial_gradient);
            direction
        });
        assert_eq!(directions[1], directions[0]);
        assert_eq!(directions[2], directions[0]);
    }
}

/// With products that shared memory has room for, and with more rows than a block has threads.
#[test]
fn coefficients_are_those_of_the_two_loop_recursion_for_any_history() {
    const NEXT: usize = 17;
    let [n, _] = COUNTS;
    for history in [20, 26, 27, 140] {
        let slots = history + 1;
        let mut plain = TwoLoop::new(history);
        // The spare slot's are NaN.
        let mut vectors = vec![vec![f64::NAN; n]; 2 * slots];
        // From the oldest pair to the latest.
        for age in (0..history).rev() {
            let step = Step::new(n, age as u64, 1.0);
            let [s, y] = step.pair();
            plain.curvature = Some(dot(&s, &y) / dot(&y, &y));
            let slot = (NEXT + 2 * slots - 1 - age) % slots;
            (vectors[slot], vectors[slots + slot]) = (s.clone(), y.clone());
            plain.pairs.push_front([s, y]);
        }
        let q = Buffer::<f32>::random(n, -1.0, 1.0, 12345).values();
        let products = vectors
            .iter()
            .flat_map(|a| vectors.iter().map(|b| dot(a, b)));
        let mut products = Buffer::<f64>::of(&products.collect::<Vec<f64>>());
        let dots = vectors.iter().map(|row| dot(row, &q));
        let candidate = vec![f64::NAN; 4 * slots];
        let sums: Vec<f64> = candidate.into_iter().chain(dots).chain([1.0]).collect();
        let mut sums = Buffer::<f64>::of(&sums);
        let state = [history as f64, NEXT as f64, plain.curvature.unwrap(), 0.0];
        let mut state = Buffer::<f64>::of(&state);
        let coefficients =
            coefficients(&mut state, &mut products, &mut sums, n, MIN_COSINE).values();
        let mut error = vec![0.0; n];
        let rows = vectors.iter().chain([&q]).enumerate();
        for (row, vector) in rows.filter(|(row, _)| row % slots != NEXT) {
            axpy(coefficients[row], vector, &mut error);
        }
        // An image without values at the bounds.
        let gradient: Vec<f64> = q.iter().map(|q| -q).collect();
        let expected = plain.direction(&gradient, &vec![0.5; n]);
        axpy(-1.0, &expected, &mut error);
        let relative = (dot(&error, &error) / dot(&expected, &expected)).sqrt();
        assert!(relative < 1e-6, "history {history}: {relative}");
    }
}

#[test]
fn steps_are_accepted_above_the_least_cosine() {
    const NAN: f64 = f64::NAN;
    let (ss, yy, min_cosine) = (4.0, 9.0, 0.5);
    for (sy, accepted) in [(3.0, 0.0), (3.01, 1.0), (NAN, 0.0)] {
        let mut state = Buffer::<f64>::of(&[0.0; 4]);
        let mut products = Buffer::<f64>::unset(16);
        let [with_s, with_y, with_q] = [[ss, NAN, sy, NAN], [sy, NAN, yy, NAN], [0.0; 4]];
        let sums = [&with_s[..], &with_y, &with_q, &[1.0]].concat();
        let mut sums = Buffer::<f64>::of(&sums);
        coefficients(&mut state, &mut products, &mut sums, 100, min_cosine);
        let curvature = if accepted > 0.0 { sy / yy } else { 0.0 };
        let expected = [accepted, accepted, curvature, curvature];
        assert_eq!(state.values(), expected);
    }
}

#[test]
fn without_a_gradient_there_is_no_direction() {
    for n in COUNTS {
        let mut step = Step::new(n, 1, 1.0);
        step.trial_gradient = Buffer::of(&vec![0.0; n]);
        assert_eq!(KernelPairs::new(3, n).direction(&step), vec![0.0; n]);
    }
}

/// The trial of a step of length 0.8 from addresses that are `shift` values off the alignment, and the
/// sums of its squares and of its slopes.
fn trial(step: &Step, direction: &[f64], shift: usize) -> (Buffer<f32>, [f64; 2]) {
    let (n, tiles) = (
        direction.len(),
        direction.len().div_ceil(BLOCK_VALUES).max(1),
    );
    let operands = [&step.image.values(), &step.gradient.values(), direction]
        .map(|values| Buffer::<f32>::of(&[&vec![0.0; shift][..], values].concat()));
    let [image, gradient, direction] = operands
        .each_ref()
        .map(|operand| operand.read().wrapping_add(shift));
    let (mut trial, mut partials) = (Buffer::<f32>::unset(n), Buffer::<f64>::unset(2 * tiles));
    let arguments = (
        image,
        gradient,
        0.8f32,
        direction,
        trial.write(),
        partials.write(),
        n as i64,
    );
    launch("lbfgs_step", tiles as u32, arguments);
    let partials = partials.values();
    let (squares, slopes) = partials.split_at(tiles);
    (trial, [squares.iter().sum(), slopes.iter().sum()])
}

#[test]
fn trials_and_the_sums_over_them_are_their_formulas() {
    for n in COUNTS.into_iter().chain([3, 0]) {
        for shift in [0, 3] {
            let step = Step::new(n, 1, 1.0);
            let direction = Buffer::<f32>::random(n, -1.0, 1.0, 2).values();
            let (trial, [squares, slope]) = trial(&step, &direction, shift);
            let (image, gradient) = (step.image.values(), step.gradient.values());
            let ends = image.iter().zip(&direction);
            let expected: Vec<f64> = ends.map(|(x, d)| (x + 0.8 * d).clamp(0.0, 1.0)).collect();
            check("trial", &trial, &expected, 1e-6);
            let mut displacement = trial.values();
            axpy(-1.0, &image, &mut displacement);
            check_sum("squares", squares, dot(&displacement, &displacement));
            check_sum("slope", slope, dot(&gradient, &displacement));
        }
    }
}

/// Clamping must not turn NaN into a valid pixel.
#[test]
fn trials_keep_nan() {
    let (trial, _) = trial(&Step::new(1, 1, 1.0), &[f64::NAN], 0);
    assert!(trial.values()[0].is_nan());
}
