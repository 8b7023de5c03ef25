// SPDX-License-Identifier: MPL-2.0

//! Keeps gradients within the range of f16, like dynamic loss scaling in mixed-precision training.

use crate::vgg::Precision;

/// How far the log2 of the scaled gradient's root mean square may be from 0 before the scale is
/// changed. f16 reaches from 2⁻²⁴ to 2¹⁶.
const SLACK: f64 = 8.0;

/// How much the exponent is lowered after a gradient overflowed.
const BACK_OFF: i32 = 4;

/// How much the exponent is raised after a gradient underflowed to zero.
const ADVANCE: i32 = 16;

/// The exponent stays within ± this.
const MAX_EXPONENT: i32 = 64;

/// A power of two that f16 gradients are multiplied by in the backward pass, chosen such that the
/// root mean square of the gradient with respect to the image is about 1.
pub struct GradientScale {
    /// log2 of the scale; None where the format needs none.
    exponent: Option<i32>,
    /// The largest exponent that has not been seen to overflow.
    ceiling: i32,
}

impl GradientScale {
    pub fn new(precision: Precision) -> Self {
        Self {
            exponent: precision.can_overflow().then_some(0),
            ceiling: MAX_EXPONENT,
        }
    }

    /// Whether gradients are scaled at all.
    pub fn is_needed(&self) -> bool {
        self.exponent.is_some()
    }

    pub fn value(&self) -> f64 {
        f64::from(self.exponent.unwrap_or(0)).exp2()
    }

    /// Allows exponents that overflowed again: the terms of the objective have changed.
    pub fn reset_ceiling(&mut self) {
        self.ceiling = MAX_EXPONENT;
    }

    /// Adapts the scale to the mean square of the unscaled gradient with respect to the image. True
    /// if the scale has changed, so that the gradient must be computed again.
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
            let log2_rms = f64::from(exponent) + 0.5 * mean_square.log2();
            match log2_rms.abs() > SLACK {
                true => exponent - log2_rms.round() as i32,
                false => exponent,
            }
        };
        let next = wanted.clamp(-MAX_EXPONENT, self.ceiling.max(-MAX_EXPONENT));
        self.exponent = Some(next);
        next != exponent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The evaluations until the scale suits a gradient of root mean square `rms` whose largest
    /// value is `peak` times that; and the exponent.
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
        panic!("the scale does not settle for {rms} with a peak of {peak}");
    }

    #[test]
    fn gradients_of_all_sizes_are_scaled_into_range() {
        for rms in [1e-15, 1e-9, 1e-5, 1.0, 1e4, 1e9] {
            let mut scale = GradientScale::new(Precision::F16);
            let (_, exponent) = adapted(&mut scale, rms, 30.0);
            let size = rms.log2() + exponent;
            assert!(size.abs() <= SLACK, "{rms}: 2^{size}");
            // A scale that fits stays, also while the gradient shrinks during optimisation.
            assert_eq!(adapted(&mut scale, rms / 16.0, 30.0).0, 1);
        }
    }

    #[test]
    fn a_gradient_that_cannot_fit_ends_the_search() {
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
    fn an_exponent_that_overflowed_is_tried_again_for_other_terms() {
        let mut scale = GradientScale::new(Precision::F16);
        adapted(&mut scale, 1e3, 30.0);
        for _ in 0..3 {
            scale.adapt(f64::INFINITY);
        }
        scale.reset_ceiling();
        let (_, exponent) = adapted(&mut scale, 1e-12, 30.0);
        assert!((1e-12f64.log2() + exponent).abs() <= SLACK);
    }

    #[test]
    fn other_formats_are_not_scaled() {
        for precision in [Precision::F32, Precision::Tf32, Precision::Bf16] {
            let mut scale = GradientScale::new(precision);
            assert!(!scale.is_needed() && !scale.adapt(1e-30) && scale.value() == 1.0);
        }
    }
}
