// SPDX-License-Identifier: MPL-2.0

//! Where strokes are taken from for what no painting shows: from a place of the last frame that looks
//! like it, as in Hertzmann, Jacobs, Oliver, Curless and Salesin, "Image analogies" (SIGGRAPH 2001).

use super::Motion;
use super::light::{Rgb, SQUARE, Thumbnail};
use rayon::prelude::*;

/// How far away a place is looked for, in squares. Nearer ones might still show what is in front.
const DISTANCES: [isize; 3] = [3, 6, 12];

/// The directions that it is looked for in.
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

/// For each square of a frame, the one of the frame before that it looks like.
pub struct Alike {
    w: usize,
    /// Down and across.
    squares: Vec<(u16, u16)>,
}

impl Alike {
    /// Looks only for squares that are not reliably moved, or where the picture ends.
    pub fn new(now: &Thumbnail, before: &Thumbnail, motion: &Motion) -> Self {
        let Thumbnail { h, w, .. } = *now;
        let mut squares = vec![(0, 0); h * w];
        let rows = squares.par_chunks_exact_mut(w).enumerate();
        rows.with_min_len(4).for_each(|(y, row)| {
            for (x, square) in row.iter_mut().enumerate() {
                let inner = (1..h.max(2) - 1).contains(&y) && (1..w.max(2) - 1).contains(&x);
                let found = match inner && is_reliable(motion, y, x) {
                    true => (y, x),
                    false => closest(now, before, y, x),
                };
                *square = (found.0 as u16, found.1 as u16);
            }
        });
        Self { w, squares }
    }

    /// Where the square that begins at a pixel has its strokes from.
    #[inline(always)]
    pub fn place(&self, y: usize, x: usize) -> (usize, usize) {
        let (row, column) = self.squares[y / SQUARE * self.w + x / SQUARE];
        (SQUARE * row as usize + y % SQUARE, SQUARE * column as usize)
    }
}

/// Whether all of a square is, and what is beside it: between the mask's values are some of its pixels.
fn is_reliable(motion: &Motion, y: usize, x: usize) -> bool {
    let mask = &motion.reliable;
    let side = SQUARE / motion.scale;
    let range = |at: usize, end: usize| {
        (at * side).saturating_sub(1).min(end - 1)..((at + 1) * side + 1).min(end)
    };
    let columns = range(x, mask.w);
    range(y, mask.h).all(|y| {
        let row = &mask.values[y * mask.w..][..mask.w];
        row[columns.clone()].iter().all(|value| *value == 1.0)
    })
}

/// The square of `before` that is closest in colour, of the whole ones around; the one itself where
/// there is none.
fn closest(now: &Thumbnail, before: &Thumbnail, y: usize, x: usize) -> (usize, usize) {
    let Thumbnail { h, w, .. } = *now;
    let here = now.values[y * w + x];
    let mut best = (f32::INFINITY, (y, x));
    for distance in DISTANCES {
        for (down, across) in DIRECTIONS {
            let place = (
                y.checked_add_signed(distance * down).filter(|y| *y < h),
                x.checked_add_signed(distance * across).filter(|x| *x < w),
            );
            if let (Some(y), Some(x)) = place
                && before.square(y, x) == (SQUARE, SQUARE)
            {
                let difference = difference(here, before.values[y * w + x]);
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

    /// Of an image of vertical bands, each of 56 pixels, less what is in front: from column `from`
    /// on a white one.
    fn thumbnail(from: usize) -> Thumbnail {
        let (h, w) = SIZE;
        let colour = |x: usize| match (from..from + 24).contains(&x) {
            true => [1.0; 3],
            false => [[0.9, 0.1, 0.1], [0.1, 0.6, 0.1], [0.1, 0.1, 0.7]][x / 56 % 3],
        };
        let image: Vec<f32> = (0..h * w).flat_map(|i| colour(i % w)).collect();
        Thumbnail::new(&image, SIZE)
    }

    /// A motion that is reliable but for columns from `from` on.
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
            flows: [Field::zeros(h, w), Field::zeros(h, w)],
            scale: 1,
            visible: mask(|_| false),
            reliable: mask(|unreliable| unreliable),
        }
    }

    #[test]
    fn what_comes_out_has_its_strokes_from_what_looks_like_it() {
        // Columns 56 to 71 were white and are green now, as those from 80 on are.
        let (before, now) = (thumbnail(56), thumbnail(16));
        let alike = Alike::new(&now, &before, &motion(56));
        for y in 0..SIZE.0 {
            for x in [56, 64] {
                let place = alike.place(y, x);
                let green = place.0 < SIZE.0 && (80..96).contains(&place.1);
                assert!(green, "{y} {x}: {place:?}");
            }
        }
        // What is reliable needs none, but at the edge.
        assert_eq!(alike.place(40, 16), (40, 16));
        assert_ne!(alike.place(40, 0), (40, 0));
    }

    #[test]
    fn a_picture_with_no_other_place_keeps_its_own() {
        let small = |value: f32| Thumbnail::new(&[value; 16 * 16 * 3], (16, 16));
        let mut motion = motion(0);
        motion.reliable = Mask {
            h: 16,
            w: 16,
            values: vec![0.0; 256],
        };
        let alike = Alike::new(&small(0.2), &small(0.8), &motion);
        for (y, x) in [(0, 0), (7, 8), (15, 0)] {
            assert_eq!(alike.place(y, x), (y, x));
        }
    }
}
