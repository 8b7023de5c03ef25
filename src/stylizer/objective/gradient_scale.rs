// SPDX-License-Identifier: MPL-2.0

//! What keeps gradients within the range of f16.

use crate::vgg::Precision;

/// How far, in powers of two, the root mean square may be from 1 before the scale follows: f16 goes
/// 16 above it and 24 below.
const SLACK: f64 = 8.0;

/// How far the scale goes down where a gradient did not fit.
const BACK_OFF: i32 = 4;

/// How far it goes up where nothing was left of a gradient, and the furthest it gets.
const ADVANCE: i32 = 16;
const LARGEST: i32 = 64;

/// A power of two that the network's gradient is multiplied by on its way back, where it is in f16:
/// one that takes the root mean square of the gradient with respect to the image to about 1.
pub struct GradientScale {
    /// None where no scale is needed.
    exponent: Option<i32>,
    /// What was found to fit.
    ceiling: i32,
}

impl GradientScale {
    pub fn new(precision: Precision) -> Self {
        Self {
            exponent: (precision == Precision::F16).then_some(0),
            ceiling: LARGEST,
        }
    }

    pub fn is_needed(&self) -> bool {
        self.exponent.is_some()
    }

    pub fn value(&self) -> f64 {
        f64::from(self.exponent.unwrap_or(0)).exp2()
    }

    /// The gradient is of other terms now: what did not fit may.
    pub fn renew(&mut self) {
        self.ceiling = LARGEST;
    }

    /// Takes the mean square of the gradient with respect to the image, without the scale. True
    /// where the scale has changed, so that the gradient is to be computed again.
    pub fn adapt(&mut self, mean_square: f64) -> bool {
        let Some(exponent) = self.exponent else {
            return false;
        };
        let wanted = if !mean_square.is_finite() {
            self.ceiling = exponent - BACK_OFF;
            self.ceiling
        } else if mean_square == 0.0 {
            exponent + ADVANCE
        } else {
            let size = f64::from(exponent) + 0.5 * mean_square.log2();
            match size.abs() > SLACK {
                true => exponent - size.round() as i32,
                false => exponent,
            }
        };
        let next = wanted.clamp(-LARGEST, self.ceiling.max(-LARGEST));
        self.exponent = Some(next);
        next != exponent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Evaluations until the scale is right for a gradient of one size, of which the largest value
    /// is `peak` times the root mean square; and the exponent.
    fn adapted(scale: &mut GradientScale, rms: f64, peak: f64) -> (usize, f64) {
        for evaluations in 1..100 {
            let largest = rms * peak * scale.value();
            let mean_square = match largest {
                65520.0.. => f64::INFINITY,
                ..3e-8 => 0.0,
                _ => rms * rms,
            };
            if !scale.adapt(mean_square) {
                return (evaluations, scale.value().log2());
            }
        }
        panic!("the scale does not come to rest for {rms} with a peak of {peak}");
    }

    #[test]
    fn gradients_of_all_sizes_come_to_fit() {
        for rms in [1e-15, 1e-9, 1e-5, 1.0, 1e4, 1e9] {
            let mut scale = GradientScale::new(Precision::F16);
            let (_, exponent) = adapted(&mut scale, rms, 30.0);
            let size = rms.log2() + exponent;
            assert!(size.abs() <= SLACK, "{rms}: 2^{size}");
            // What fits is left alone, also when it shrinks as optimisation goes on.
            assert_eq!(adapted(&mut scale, rms / 16.0, 30.0).0, 1);
        }
    }

    #[test]
    fn what_can_not_fit_ends() {
        let mut scale = GradientScale::new(Precision::F16);
        adapted(&mut scale, 1e-3, 1e6);
        adapted(&mut scale, 0.0, 1.0);
        for _ in 0..100 {
            scale.adapt(f64::NAN);
        }
        assert!(!scale.adapt(f64::NAN));
        assert!(scale.value() > 0.0);
    }

    #[test]
    fn what_did_not_fit_may_fit_later() {
        let mut scale = GradientScale::new(Precision::F16);
        adapted(&mut scale, 1e3, 30.0);
        for _ in 0..3 {
            scale.adapt(f64::INFINITY);
        }
        scale.renew();
        let (_, exponent) = adapted(&mut scale, 1e-12, 30.0);
        assert!((1e-12f64.log2() + exponent).abs() <= SLACK);
    }

    #[test]
    fn other_formats_have_none() {
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            let mut scale = GradientScale::new(precision);
            assert!(!scale.is_needed() && !scale.adapt(1e-30) && scale.value() == 1.0);
        }
    }
}
