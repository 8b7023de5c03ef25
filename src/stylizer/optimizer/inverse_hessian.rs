// SPDX-License-Identifier: MPL-2.0

//! The approximation of the inverse Hessian that L-BFGS builds.

#[cfg(feature = "cudnn")]
use crate::ops::cuda::pairs as gpu;
use crate::ops::elementwise::{axpy, clear_outward, copy, difference, dot, scale};
use candle_core::{Result, Tensor};
use std::collections::VecDeque;

/// Root mean square of the first step, before any curvature is known.
const FIRST_STEP: f64 = 0.01;

/// Curvature condition: a pair is used only if the cosine between s and y is above this.
const MIN_COSINE: f64 = 1e-4;

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
                spare: None,
                gamma: None,
            })),
        }
    }

    /// The largest number of pairs.
    pub fn history(&self) -> usize {
        match self {
            Self::Host(host) => host.history,
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.history(),
        }
    }

    /// Changes the largest number of pairs. The latest ones are kept, on a GPU none.
    #[cfg_attr(not(feature = "cudnn"), allow(unused_variables))]
    pub fn set_history(&mut self, history: usize, image: &Tensor) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.history = history;
                let excess = host.pairs.len().saturating_sub(history);
                host.pairs.drain(..excess);
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(_) => *self = Self::new(history, image)?,
        }
        Ok(())
    }

    /// The direction −H g at a point, into `direction`. Components that would lead out of 0..1 are
    /// zero.
    pub fn direction(&self, point: Point, direction: &Tensor) -> Result<()> {
        match self {
            Self::Host(host) => host.direction(point, direction),
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.direction(point, direction, FIRST_STEP),
        }
    }

    /// Adds the pair of a step from one point to another, if it meets the curvature condition.
    pub fn update(&mut self, from: Point, to: Point) -> Result<()> {
        match self {
            Self::Host(host) => host.update(from, to),
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.update(from, to, MIN_COSINE),
        }
    }

    /// Makes the pairs those of an objective whose Hessian is larger by `shift` I: each y becomes
    /// y + `shift` s. A pair that fails the curvature condition then is dropped, with the older ones.
    pub fn shift(&mut self, shift: f64) -> Result<()> {
        match self {
            Self::Host(host) => host.shift(shift),
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.shift(shift, MIN_COSINE),
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

    /// Drops the pairs, but not γ.
    pub fn drop_pairs(&mut self) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.pairs.clear();
                Ok(())
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.reset(),
        }
    }

    /// Drops γ.
    pub fn drop_gamma(&mut self) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.gamma = None;
                Ok(())
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.reset_curvature(),
        }
    }

    /// Drops the pairs and γ.
    pub fn reset(&mut self) -> Result<()> {
        self.drop_pairs()?;
        self.drop_gamma()
    }
}

/// Which parts of an [`InverseHessian`] are known.
pub struct Contents {
    /// Whether there are any pairs.
    pub pairs: bool,
    pub gamma: bool,
}

/// A displacement s and the change y of the gradient over it.
struct CurvaturePair {
    s: Tensor,
    y: Tensor,
    /// sᵀy
    sy: f64,
    /// sᵀy / yᵀy
    gamma: f64,
}

impl CurvaturePair {
    /// Computes the scalars. Returns whether the pair meets the curvature condition.
    fn measure(&mut self) -> Result<bool> {
        let Self { s, y, .. } = self;
        let (sy, ss, yy) = (dot(s, y)?, dot(s, s)?, dot(y, y)?);
        (self.sy, self.gamma) = (sy, sy / yy);
        Ok(sy > MIN_COSINE * (ss * yy).sqrt())
    }
}

/// The inverse Hessian with its scalars on the host.
pub struct HostInverseHessian {
    history: usize,
    /// The oldest first.
    pairs: VecDeque<CurvaturePair>,
    /// A dropped pair, whose tensors the next one reuses.
    spare: Option<CurvaturePair>,
    /// γ = sᵀy / yᵀy of the last pair (Nocedal and Wright, eq. 7.20); outlives the pairs.
    gamma: Option<f64>,
}

impl HostInverseHessian {
    /// The two-loop recursion (Nocedal and Wright, algorithm 7.4).
    fn direction(&self, (image, gradient): Point, d: &Tensor) -> Result<()> {
        copy(d, gradient)?;
        scale(-1.0, d)?;
        clear_outward(d, image)?;
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
        clear_outward(d, image)
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
        let (s, y) = match self.spare.take() {
            Some(CurvaturePair { s, y, .. }) => (s, y),
            None => (image.zeros_like()?, image.zeros_like()?),
        };
        difference(&s, trial, image)?;
        difference(&y, trial_gradient, gradient)?;
        let mut pair = CurvaturePair {
            s,
            y,
            sy: 0.0,
            gamma: 0.0,
        };
        if pair.measure()? {
            self.gamma = Some(pair.gamma);
            self.pairs.push_back(pair);
            while self.pairs.len() > self.history {
                self.spare = self.pairs.pop_front();
            }
        } else {
            self.spare = Some(pair);
        }
        Ok(())
    }

    fn shift(&mut self, shift: f64) -> Result<()> {
        let mut usable = 0;
        for pair in &mut self.pairs {
            axpy(shift, &pair.s, &pair.y)?;
            usable = if pair.measure()? { usable + 1 } else { 0 };
        }
        self.pairs.drain(..self.pairs.len() - usable);
        if let Some(latest) = self.pairs.back() {
            self.gamma = Some(latest.gamma);
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

    #[test]
    fn a_pair_without_curvature_displaces_no_other() {
        let (from, gradient) = (image([0.5; 3]), image([0.1, -0.2, 0.3]));
        let mut hessian = InverseHessian::new(1, &from).unwrap();
        let direction = |hessian: &InverseHessian| {
            let direction = from.zeros_like().unwrap();
            hessian.direction((&from, &gradient), &direction).unwrap();
            direction.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let mut update = |change: [f32; 3]| {
            let to = (&image([0.6, 0.5, 0.5]), &image(change));
            hessian.update((&from, &image([0.0; 3])), to).unwrap();
            direction(&hessian)
        };
        let curved = update([1.0, 0.5, 0.0]);
        assert_eq!(update([-1.0, 0.5, 0.0]), curved);
        assert_ne!(update([2.0, 0.5, 0.0]), curved);
    }

    /// As if the gradients had been those of the other objective from the start.
    #[test]
    fn a_shift_is_that_of_the_hessian() {
        let (from, gradient) = (image([0.5; 3]), image([0.1, -0.2, 0.3]));
        let steps = [[0.1, 0.0, -0.1], [0.0, 0.1, 0.2f32]];
        let with = |hessian: [f32; 3]| {
            let mut inverse = InverseHessian::new(2, &from).unwrap();
            for step in steps {
                let to = image(step.map(|s| 0.5 + s));
                let change = image([0, 1, 2].map(|i| hessian[i] * step[i]));
                let from = (&from, &image([0.0; 3]));
                inverse.update(from, (&to, &change)).unwrap();
            }
            inverse
        };
        let direction = |inverse: &InverseHessian| {
            let direction = from.zeros_like().unwrap();
            inverse.direction((&from, &gradient), &direction).unwrap();
            direction.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let mut inverse = with([1.0, 2.0, 5.0]);
        // The second shift leaves the older pair no curvature.
        for (shift, hessian) in [(3.0, [4.0, 5.0, 8.0]), (-7.0, [-3.0, -2.0, 1.0])] {
            inverse.shift(shift).unwrap();
            let expected = direction(&with(hessian));
            for (shifted, expected) in direction(&inverse).iter().zip(&expected) {
                let error = (shifted - expected).abs();
                assert!(error < 1e-3, "{shift}: {shifted}, not {expected}");
            }
        }
        inverse.shift(-9.0).unwrap();
        let left = inverse.contents().unwrap();
        assert!(!left.pairs && left.gamma);
    }

    #[test]
    fn a_shorter_history_drops_the_oldest_pairs_at_once() {
        let (from, gradient) = (image([0.5; 3]), image([0.1, -0.2, 0.3]));
        let direction = |steps: &[([f32; 3], [f32; 3])], history: usize| {
            let mut hessian = InverseHessian::new(2, &from).unwrap();
            for (to, change) in steps {
                let to = (&image(*to), &image(*change));
                hessian.update((&from, &image([0.0; 3])), to).unwrap();
            }
            hessian.set_history(history, &from).unwrap();
            let direction = from.zeros_like().unwrap();
            hessian.direction((&from, &gradient), &direction).unwrap();
            direction.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let first = ([0.5, 0.4, 0.6], [0.1, -0.5, 0.2]);
        let second = ([0.6, 0.4, 0.5], [2.0, 0.5, 0.0]);
        assert_eq!(direction(&[first, second], 1), direction(&[second], 1));
        assert_ne!(direction(&[first, second], 2), direction(&[second], 2));
    }
}
