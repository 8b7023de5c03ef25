// SPDX-License-Identifier: MPL-2.0

//! Exemplars for what no painting shows: it takes the strokes of a part of the last frame that looks
//! like it, as in Hertzmann, Jacobs, Oliver, Curless and Salesin, "Image analogies" (SIGGRAPH 2001).

use super::Motion;
use super::thumbnail::{Rgb, SQUARE, Thumbnail};
use rayon::prelude::*;

/// Distances of candidates, in squares of the thumbnail. Nearer ones might still show what is in front.
const DISTANCES: [isize; 3] = [3, 6, 12];

/// Directions of candidates, down and across.
const DIRECTIONS: [(isize, isize); 8] = [
    (0, -1),
    (0, 1),
    (-1, 0),
    (1, 0),
    (-1, -1),
    (-1, 1),
    (1, -1),
    (1, 1),
];

/// For each square of a frame, the square of the frame before that looks like it.
pub struct Exemplars {
    /// Squares across.
    w: usize,
    /// Row and column of each exemplar.
    squares: Vec<(u16, u16)>,
}

impl Exemplars {
    /// Searches for the squares at the picture's edge and those whose motion is unreliable; each
    /// other one is its own exemplar.
    pub fn new(now: &Thumbnail, before: &Thumbnail, motion: &Motion) -> Self {
        let Thumbnail { h, w, .. } = *now;
        let mut squares = vec![(0, 0); h * w];
        let rows = squares.par_chunks_exact_mut(w).enumerate();
        rows.with_min_len(4).for_each(|(y, row)| {
            for (x, square) in row.iter_mut().enumerate() {
                let inner = (1..h.max(2) - 1).contains(&y) && (1..w.max(2) - 1).contains(&x);
                let exemplar = match inner && is_reliable(motion, y, x) {
                    true => (y, x),
                    false => most_similar(now, before, y, x),
                };
                *square = (exemplar.0 as u16, exemplar.1 as u16);
            }
        });
        Self { w, squares }
    }

    /// Row and column of the pixel from which another one takes its strokes.
    #[inline(always)]
    pub fn source(&self, y: usize, x: usize) -> (usize, usize) {
        let (row, column) = self.squares[y / SQUARE * self.w + x / SQUARE];
        (
            SQUARE * row as usize + y % SQUARE,
            SQUARE * column as usize + x % SQUARE,
        )
    }
}

/// Whether the mask is set all over a square and one value around it, from which the square's outer
/// pixels are interpolated.
fn is_reliable(motion: &Motion, y: usize, x: usize) -> bool {
    let mask = &motion.reliable;
    let side = SQUARE / motion.scale;
    let range = |index: usize, end: usize| {
        (index * side).saturating_sub(1).min(end - 1)..((index + 1) * side + 1).min(end)
    };
    let columns = range(x, mask.w);
    range(y, mask.h).all(|y| {
        let row = &mask.values[y * mask.w..][..mask.w];
        row[columns.clone()].iter().all(|value| *value == 1.0)
    })
}

/// The candidate whose mean colour in `before` is closest, of those that the picture does not cut
/// off; the square itself where there is none.
fn most_similar(now: &Thumbnail, before: &Thumbnail, y: usize, x: usize) -> (usize, usize) {
    let Thumbnail { h, w, .. } = *now;
    let colour = now.values[y * w + x];
    let mut best = (f32::INFINITY, (y, x));
    for distance in DISTANCES {
        for (down, across) in DIRECTIONS {
            let candidate = (
                y.checked_add_signed(distance * down).filter(|y| *y < h),
                x.checked_add_signed(distance * across).filter(|x| *x < w),
            );
            if let (Some(y), Some(x)) = candidate
                && before.square_size(y, x) == (SQUARE, SQUARE)
            {
                let difference = difference(colour, before.values[y * w + x]);
                if difference < best.0 {
                    best = (difference, (y, x));
                }
            }
        }
    }
    best.1
}

fn difference(a: Rgb, b: Rgb) -> f32 {
    (a[0] - b[0]).abs() + (a[1] - b[1]).abs() + (a[2] - b[2]).abs()
}

#[cfg(test)]
mod tests {
    use super::super::flow::Field;
    use super::super::occlusion::Mask;
    use super::*;

    const SIZE: (usize, usize) = (96, 160);

    /// Of an image of vertical bands, each 56 pixels wide, with a white one of 24 in front from
    /// column `from` on.
    fn thumbnail(from: usize) -> Thumbnail {
        let (h, w) = SIZE;
        let colour = |x: usize| match (from..from + 24).contains(&x) {
            true => [1.0; 3],
            false => [[0.9, 0.1, 0.1], [0.1, 0.6, 0.1], [0.1, 0.1, 0.7]][x / 56 % 3],
        };
        let image: Vec<f32> = (0..h * w).flat_map(|i| colour(i % w)).collect();
        Thumbnail::new(&image, SIZE)
    }

    /// A motion that is reliable but for 16 columns from `from` on.
    fn motion(from: usize) -> Motion {
        let (h, w) = SIZE;
        let unreliable = |i: usize| (from..from + 16).contains(&(i % w));
        let mask = |value: fn(bool) -> bool| Mask {
            h,
            w,
            values: (0..h * w)
                .map(|i| f32::from(!value(unreliable(i))))
                .collect(),
        };
        Motion {
            backward: Field::zeros(h, w),
            forward: Field::zeros(h, w),
            scale: 1,
            visible: mask(|_| false),
            reliable: mask(|unreliable| unreliable),
        }
    }

    #[test]
    fn what_is_disoccluded_takes_the_strokes_of_what_looks_like_it() {
        // Columns 56 to 71 were white and are green now, as those from 80 on are.
        let (before, now) = (thumbnail(56), thumbnail(16));
        let exemplars = Exemplars::new(&now, &before, &motion(56));
        for y in 0..SIZE.0 {
            for x in [56, 64] {
                let source = exemplars.source(y, x);
                let green = source.0 < SIZE.0 && (80..96).contains(&source.1);
                assert!(green, "{y} {x}: {source:?}");
            }
        }
        // What is reliable keeps its own, but at the edge.
        assert_eq!(exemplars.source(40, 16), (40, 16));
        assert_ne!(exemplars.source(40, 0), (40, 0));
    }

    #[test]
    fn a_picture_too_small_for_candidates_keeps_its_own_strokes() {
        let small = |value: f32| Thumbnail::new(&[value; 16 * 16 * 3], (16, 16));
        let mut motion = motion(0);
        motion.reliable = Mask {
            h: 16,
            w: 16,
            values: vec![0.0; 256],
        };
        let exemplars = Exemplars::new(&small(0.2), &small(0.8), &motion);
        for (y, x) in [(0, 0), (7, 8), (15, 0)] {
            assert_eq!(exemplars.source(y, x), (y, x));
        }
    }
}
