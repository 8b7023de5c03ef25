// SPDX-License-Identifier: MPL-2.0

//! What L-BFGS learns of the objective's curvature.

#[cfg(feature = "cudnn")]
use crate::ops::cuda::pairs as gpu;
use crate::ops::elementwise::{axpy, clear_outward, copy, difference, dot, scale};
use candle_core::{DType, Result, Tensor};
use std::collections::VecDeque;

/// Root mean square of what the very first step does to the pixels, before anything is known of
/// the curvature.
const FIRST_STEP: f64 = 0.01;

/// A pair teaches curvature if the cosine between its displacement and its change of gradient is
/// above this.
const MIN_COSINE: f64 = 1e-4;

/// The inverse Hessian as far as it is known. On a GPU it stays there, with its scalars.
pub enum Pairs {
    Host(Host),
    #[cfg(feature = "cudnn")]
    Gpu(gpu::Pairs),
}

/// An image and its gradient.
pub type Point<'a> = (&'a Tensor, &'a Tensor);

impl Pairs {
    /// Room for `history` pairs over images of the shape and device of `image`.
    pub fn new(history: usize, image: &Tensor) -> Result<Self> {
        match image.device() {
            #[cfg(feature = "cudnn")]
            device @ candle_core::Device::Cuda(_) => {
                gpu::Pairs::new(history, image.elem_count(), device).map(Self::Gpu)
            }
            _ => Ok(Self::Host(Host {
                history,
                pairs: VecDeque::new(),
                spare: None,
                curvature: None,
            })),
        }
    }

    pub fn history(&self) -> usize {
        match self {
            Self::Host(host) => host.history,
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.history(),
        }
    }

    /// Has room for another number of pairs; a GPU drops those there are.
    #[cfg_attr(not(feature = "cudnn"), allow(unused_variables))]
    pub fn set_history(&mut self, history: usize, image: &Tensor) -> Result<()> {
        match self {
            Self::Host(host) => {
                host.history = history;
                let superfluous = host.pairs.len().saturating_sub(history);
                host.pairs.drain(..superfluous);
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(_) => *self = Self::new(history, image)?,
        }
        Ok(())
    }

    /// The direction −H g at a point, with the inverse Hessian H of the pairs, as far as it does not
    /// lead out of 0..1, into `direction`.
    pub fn direction(&self, point: Point, direction: &Tensor) -> Result<()> {
        match self {
            Self::Host(host) => host.direction(point, direction),
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.direction(point, direction, FIRST_STEP),
        }
    }

    /// Learns from the step from a point to another.
    pub fn learn(&mut self, from: Point, to: Point) -> Result<()> {
        match self {
            Self::Host(host) => host.learn(from, to),
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => pairs.learn(from, to, MIN_COSINE),
        }
    }

    /// Drops the pairs, or, if there are none and `all` may go, what is left of them; false if there
    /// is nothing.
    pub fn forget(&mut self, all: bool) -> Result<bool> {
        match self {
            Self::Host(host) => {
                let known = !host.pairs.is_empty();
                host.pairs.clear();
                Ok(known || (all && host.curvature.take().is_some()))
            }
            #[cfg(feature = "cudnn")]
            Self::Gpu(pairs) => {
                let (known, curvature) = pairs.known()?;
                pairs.forget()?;
                if known == 0 && all {
                    pairs.forget_curvature()?;
                }
                Ok(known > 0 || (all && curvature != 0.0))
            }
        }
    }

    /// Drops all that is known.
    pub fn clear(&mut self) -> Result<()> {
        self.forget(false)?;
        self.forget(true).map(drop)
    }
}

/// Σ (trial − image)² and Σ gradient (trial − image), which are read when they are needed.
pub struct Moved {
    /// trial − image, where it is not a GPU's work.
    step: Tensor,
    /// `f64` `[2]`
    sums: Tensor,
}

impl Moved {
    pub fn new(image: &Tensor) -> Result<Self> {
        Ok(Self {
            step: image.zeros_like()?,
            sums: Tensor::zeros(2, DType::F64, image.device())?,
        })
    }

    /// Takes the sums for a step from a point to `trial`.
    pub fn set(&self, (image, gradient): Point, trial: &Tensor) -> Result<()> {
        match image.device() {
            #[cfg(feature = "cudnn")]
            candle_core::Device::Cuda(_) => gpu::Pairs::moved(image, trial, gradient, &self.sums),
            device => {
                difference(&self.step, trial, image)?;
                let sums = [dot(&self.step, &self.step)?, dot(gradient, &self.step)?];
                self.sums.slice_set(&Tensor::new(&sums, device)?, 0, 0)
            }
        }
    }

    /// The root mean square of the step, and what the gradient promises of it, gᵀs.
    pub fn read(&self) -> Result<(f64, f64)> {
        let sums = self.sums.to_vec1::<f64>()?;
        Ok(((sums[0] / self.step.elem_count() as f64).sqrt(), sums[1]))
    }
}

/// A displacement s that was made, the change y of the gradient over it, and sᵀy > 0.
struct Pair {
    s: Tensor,
    y: Tensor,
    sy: f64,
}

/// The pairs, with scalars on the host.
pub struct Host {
    history: usize,
    pairs: VecDeque<Pair>,
    /// What the next pair is made in.
    spare: Option<Pair>,
    /// sᵀy / yᵀy of the last pair: the scale of the inverse Hessian, which outlives the pairs.
    curvature: Option<f64>,
}

impl Host {
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
        scale(self.first_scale(gradient)?, d)?;
        for (pair, a) in self.pairs.iter().zip(coefficients.iter().rev()) {
            let b = dot(&pair.y, d)? / pair.sy;
            axpy(a - b, &pair.s, d)?;
        }
        clear_outward(d, image)
    }

    fn first_scale(&self, gradient: &Tensor) -> Result<f64> {
        match self.curvature {
            Some(curvature) => Ok(curvature),
            None => {
                let mean_square = dot(gradient, gradient)? / gradient.elem_count() as f64;
                // Where the gradient is zero, so is the step.
                Ok(match mean_square > 0.0 {
                    true => FIRST_STEP / mean_square.sqrt(),
                    false => 0.0,
                })
            }
        }
    }

    fn learn(&mut self, (image, gradient): Point, (trial, trial_gradient): Point) -> Result<()> {
        let (s, y) = match self.spare.take() {
            Some(Pair { s, y, .. }) => (s, y),
            None => (image.zeros_like()?, image.zeros_like()?),
        };
        difference(&s, trial, image)?;
        difference(&y, trial_gradient, gradient)?;
        let (sy, ss, yy) = (dot(&s, &y)?, dot(&s, &s)?, dot(&y, &y)?);
        let pair = Pair { s, y, sy };
        if sy > MIN_COSINE * (ss * yy).sqrt() {
            self.curvature = Some(sy / yy);
            self.pairs.push_back(pair);
            while self.pairs.len() > self.history {
                self.spare = self.pairs.pop_front();
            }
        } else {
            self.spare = Some(pair);
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
    fn a_pair_that_teaches_nothing_takes_no_others_place() {
        let (from, gradient) = (image([0.5; 3]), image([0.1, -0.2, 0.3]));
        let mut pairs = Pairs::new(1, &from).unwrap();
        let direction = |pairs: &Pairs| {
            let direction = from.zeros_like().unwrap();
            pairs.direction((&from, &gradient), &direction).unwrap();
            direction.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let mut learn = |change: [f32; 3]| {
            let to = (&image([0.6, 0.5, 0.5]), &image(change));
            pairs.learn((&from, &image([0.0; 3])), to).unwrap();
            direction(&pairs)
        };
        let curved = learn([1.0, 0.5, 0.0]);
        assert_eq!(learn([-1.0, 0.5, 0.0]), curved);
        assert_ne!(learn([2.0, 0.5, 0.0]), curved);
    }

    #[test]
    fn a_shorter_history_forgets_the_oldest_pairs_at_once() {
        let (from, gradient) = (image([0.5; 3]), image([0.1, -0.2, 0.3]));
        let direction = |steps: &[([f32; 3], [f32; 3])], history: usize| {
            let mut pairs = Pairs::new(2, &from).unwrap();
            for (to, change) in steps {
                let to = (&image(*to), &image(*change));
                pairs.learn((&from, &image([0.0; 3])), to).unwrap();
            }
            pairs.set_history(history, &from).unwrap();
            let direction = from.zeros_like().unwrap();
            pairs.direction((&from, &gradient), &direction).unwrap();
            direction.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let first = ([0.5, 0.4, 0.6], [0.1, -0.5, 0.2]);
        let second = ([0.6, 0.4, 0.5], [2.0, 0.5, 0.0]);
        assert_eq!(direction(&[first, second], 1), direction(&[second], 1));
        assert_ne!(direction(&[first, second], 2), direction(&[second], 2));
    }
}
