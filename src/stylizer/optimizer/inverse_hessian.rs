// SPDX-License-Identifier: MPL-2.0

//! The approximation of the inverse Hessian that L-BFGS builds.

#[cfg(feature = "cudnn")]
use crate::ops::cuda::pairs as gpu;
use crate::ops::elementwise::{axpy, copy, difference, dot, project_direction, scale};
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

/// Root mean square of the first step, before any curvature is known.
const FIRST_STEP: f64 = 0.01;

/// Curvature condition: a pair is used only if the cosine between s and y is above this.
const MIN_COSINE: f64 = 1e-4;

#[cfg(feature = "cudnn")]
const THRESHOLDS: gpu::Thresholds = gpu::Thresholds {
    min_cosine: MIN_COSINE,
    first_step: FIRST_STEP,
};

/// The limited-memory inverse Hessian H: the last pairs (s, y) of a displacement and the change of
/// the gradient over it, and the scale γ of the initial inverse Hessian γ I. On a GPU all of it
/// stays there, scalars included.
pub enum InverseHessian {
    Host(HostInverseHessian),
    #[cfg(feature = "cudnn")]
    Gpu(gpu::DevicePairs),
}

/// An image and its gradient.
pub type Point<'a> = (&'a Tensor, &'a Tensor);

impl InverseHessian {
    /// Room for `history` pairs over images of the shape and device of `image`.
    pub fn new(history: usize, image: &Tensor) -> Result<Self> {
        match image.device() {
            #[cfg(feature = "cudnn")]
            device @ candle_core::Device::Cuda(_) => {
                gpu::DevicePairs::new(history, image.elem_count(), device).map(Self::Gpu)
            }
            _ => Ok(Self::Host(HostInverseHessian {
                history,
                pairs: VecDeque::new(),
                spares: Vec::new(),
                gamma: None,
                opening_gamma: None,
            })),
        }
    }

    /// A direction of descent at a point, into `direction`: H times the steepest descent −g, both
    /// projected ([`project_direction`]).
    pub fn direction(&self, point: Point, direction: &Tensor) -> Result<()> {
        match self {
            Self::Host(host) => host.direction(point, direction),
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.advance(point, point, direction, &THRESHOLDS),
        }
    }

    /// Moves a point: adds the pair of the step from it to another, if it meets the curvature condition,
    /// overwrites it by the other, and computes the direction from there.
    pub fn advance(&mut self, point: Point, to: Point, direction: &Tensor) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.update(point, to)?;
                copy(point.0, to.0)?;
                copy(point.1, to.1)?;
                host.direction(point, direction)
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.advance(point, to, direction, &THRESHOLDS),
        }
    }

    /// What has been learnt about the curvature so far. Waits for a GPU.
    pub fn contents(&self) -> Result<Contents> {
        match self {
            Self::Host(host) => Ok(Contents {
                pairs: !host.pairs.is_empty(),
                gamma: host.gamma.is_some(),
            }),
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => {
                let (count, gamma) = pairs.count_and_curvature()?;
                Ok(Contents {
                    pairs: count > 0,
                    gamma: gamma != 0.0,
                })
            }
        }
    }

    /// Prepares for another objective: drops the pairs, and returns to the γ of the first pair of the
    /// objective so far.
    pub fn next_objective(&mut self) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.drop_pairs();
                host.gamma = host.opening_gamma.take().or(host.gamma);
                Ok(())
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.next_objective(),
        }
    }

    /// Drops the pairs, but not γ.
    pub fn drop_pairs(&mut self) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.drop_pairs();
                Ok(())
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.reset(),
        }
    }

    /// Drops γ, and that of the first pair.
    pub fn drop_gamma(&mut self) -> Result<()> {
        match self {
            Self::Host(host) => {
                (host.gamma, host.opening_gamma) = (None, None);
                Ok(())
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.reset_curvature(),
        }
    }
}

/// Which parts of an [`InverseHessian`] are known.
pub struct Contents {
    /// Whether there are any pairs.
    pub pairs: bool,
    pub gamma: bool,
}

/// A displacement s, the change y of the gradient over it, and sᵀy > 0.
struct CurvaturePair {
    s: Tensor,
    y: Tensor,
    sy: f64,
}

/// The inverse Hessian with its scalars on the host.
pub struct HostInverseHessian {
    history: usize,
    /// The oldest first.
    pairs: VecDeque<CurvaturePair>,
    /// Dropped pairs, whose tensors the next ones reuse.
    spares: Vec<CurvaturePair>,
    /// γ = sᵀy / yᵀy of the last pair (Nocedal and Wright, eq. 7.20) or, at the start of an objective, of
    /// the first pair of the one before; outlives the pairs.
    gamma: Option<f64>,
    /// γ of the objective's first pair.
    opening_gamma: Option<f64>,
}

impl HostInverseHessian {
    fn drop_pairs(&mut self) {
        self.spares.extend(self.pairs.drain(..));
    }

    /// The two-loop recursion (Nocedal and Wright, algorithm 7.4), from the projected steepest descent.
    fn direction(&self, (image, gradient): Point, d: &Tensor) -> Result<()> {
        copy(d, gradient)?;
        scale(-1.0, d)?;
        project_direction(d, image, gradient)?;
        let mut coefficients = Vec::with_capacity(self.pairs.len());
        for pair in self.pairs.iter().rev() {
            let a = dot(&pair.s, d)? / pair.sy;
            axpy(-a, &pair.y, d)?;
            coefficients.push(a);
        }
        scale(self.initial_scale(gradient)?, d)?;
        for (pair, a) in self.pairs.iter().zip(coefficients.iter().rev()) {
            let b = dot(&pair.y, d)? / pair.sy;
            axpy(a - b, &pair.s, d)?;
        }
        project_direction(d, image, gradient)
    }

    /// γ, or, while it is unknown, the scale that makes a step of [`FIRST_STEP`].
    fn initial_scale(&self, gradient: &Tensor) -> Result<f64> {
        match self.gamma {
            Some(gamma) => Ok(gamma),
            None => {
                let mean_square = dot(gradient, gradient)? / gradient.elem_count() as f64;
                // A zero gradient makes a zero step.
                Ok(match mean_square > 0.0 {
                    true => FIRST_STEP / mean_square.sqrt(),
                    false => 0.0,
                })
            }
        }
    }

    fn update(&mut self, (image, gradient): Point, (trial, trial_gradient): Point) -> Result<()> {
        let (s, y) = match self.spares.pop() {
            Some(CurvaturePair { s, y, .. }) => (s, y),
            None => (image.zeros_like()?, image.zeros_like()?),
        };
        difference(&s, trial, image)?;
        difference(&y, trial_gradient, gradient)?;
        let (sy, ss, yy) = (dot(&s, &y)?, dot(&s, &s)?, dot(&y, &y)?);
        let pair = CurvaturePair { s, y, sy };
        if sy > MIN_COSINE * (ss * yy).sqrt() {
            self.gamma = Some(sy / yy);
            self.opening_gamma = self.opening_gamma.or(self.gamma);
            self.pairs.push_back(pair);
            if self.pairs.len() > self.history {
                self.spares.extend(self.pairs.pop_front());
            }
        } else {
            self.spares.push(pair);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn image(values: [f32; 3]) -> Tensor {
        Tensor::from_slice(&values, (1, 1, 3), &Device::Cpu).unwrap()
    }

    const GRADIENT: [f32; 3] = [0.1, -0.2, 0.3];

    fn hessian(history: usize) -> InverseHessian {
        InverseHessian::new(history, &image([0.5; 3])).unwrap()
    }

    /// Adds the pair of a step from grey to an image, with this change of the gradient.
    fn learn(hessian: &mut InverseHessian, to: [f32; 3], change: [f32; 3]) {
        let [grey, start, direction] = [[0.5; 3], [0.0; 3], [0.0; 3]].map(image);
        let to = (&image(to), &image(change));
        hessian.advance((&grey, &start), to, &direction).unwrap();
    }

    fn direction(hessian: &InverseHessian) -> Vec<f32> {
        let (grey, direction) = (image([0.5; 3]), image([0.0; 3]));
        let point = (&grey, &image(GRADIENT));
        hessian.direction(point, &direction).unwrap();
        direction.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_step_moves_the_point_and_directs_from_there() {
        let [grey, start, ahead, other] = [[0.5; 3], [0.0; 3], [0.0; 3], [0.0; 3]].map(image);
        let (to, gradient) = (image([0.6, 0.5, 0.4]), image(GRADIENT));
        let mut hessian = hessian(2);
        hessian
            .advance((&grey, &start), (&to, &gradient), &ahead)
            .unwrap();
        hessian.direction((&to, &gradient), &other).unwrap();
        let values = |image: &Tensor| image.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&grey), values(&to));
        assert_eq!(values(&start), values(&gradient));
        assert_eq!(values(&ahead), values(&other));
        assert_ne!(values(&ahead), [0.0; 3]);
    }

    /// What the pairs have learnt of other pixels would move them, against their gradient.
    #[test]
    fn pixels_that_the_gradient_holds_at_a_bound_stay_there() {
        for (bound, slope) in [(0.0, 1.0), (1.0, -1.0)] {
            let mut hessian = hessian(2);
            learn(&mut hessian, [0.5, 0.6, 0.5], [-0.1 * slope, 0.1, 0.0]);
            let at_bound = |slope| {
                let (point, gradient) = (image([bound, 0.5, 0.5]), image([slope, -0.1, 0.0]));
                let direction = image([0.0; 3]);
                hessian.direction((&point, &gradient), &direction).unwrap();
                direction.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let direction = at_bound(slope);
            assert!(direction[0] == 0.0 && direction[1] > 0.0, "{direction:?}");
            assert_eq!(at_bound(0.01 * slope), direction);
        }
    }

    #[test]
    fn a_pair_without_curvature_displaces_no_other() {
        let mut hessian = hessian(1);
        let mut update = |change: [f32; 3]| {
            learn(&mut hessian, [0.6, 0.5, 0.5], change);
            direction(&hessian)
        };
        let curved = update([1.0, 0.5, 0.0]);
        assert_eq!(update([-1.0, 0.5, 0.0]), curved);
        assert_ne!(update([2.0, 0.5, 0.0]), curved);
    }

    #[test]
    fn a_pair_needs_a_cosine_of_a_ten_thousandth() {
        for (cosine, learnt) in [(0.9e-4, false), (1.1e-4, true)] {
            let mut hessian = hessian(1);
            let before = direction(&hessian);
            learn(&mut hessian, [0.75, 0.5, 0.5], [cosine, 1.0, 0.0]);
            assert_eq!(direction(&hessian) != before, learnt, "{cosine}");
        }
    }

    /// Though the history has forgotten that pair.
    #[test]
    fn another_objective_begins_with_the_scale_of_the_first_pair() {
        let mut hessian = hessian(2);
        let to = [0.5, 0.5, 0.6];
        for curvature in [5.0, 2.0, 1.0] {
            learn(&mut hessian, to, [0.0, 0.0, 0.1 * curvature]);
        }
        // Dropping the pairs does not make the next one the first.
        hessian.drop_pairs().unwrap();
        learn(&mut hessian, to, [0.0, 0.0, 0.4]);
        hessian.next_objective().unwrap();
        for (direction, gradient) in direction(&hessian).iter().zip(GRADIENT) {
            assert!((direction + gradient / 5.0).abs() < 1e-6, "{direction}");
        }
    }
}
