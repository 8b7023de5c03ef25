// SPDX-License-Identifier: MPL-2.0

use super::super::pyramid::Pyramid;
use super::*;

/// Of fewer and of more rows than [`BAND`].
const SIZES: [(usize, usize); 4] = [(16, 16), (12, 33), (40, 21), (23, 50)];

/// Values `[h, w]`, whose edge is replicated beyond it.
#[derive(Clone)]
struct Grid {
    size: (usize, usize),
    values: Vec<f64>,
}

impl Grid {
    fn new(size: (usize, usize), value: impl Fn(isize, isize) -> f64) -> Self {
        let (h, w) = size;
        let values = (0..h * w).map(|i| value((i / w) as isize, (i % w) as isize));
        Self {
            size,
            values: values.collect(),
        }
    }

    fn at(&self, y: isize, x: isize) -> f64 {
        let (h, w) = self.size;
        let (y, x) = (y.clamp(0, h as isize - 1), x.clamp(0, w as isize - 1));
        self.values[y as usize * w + x as usize]
    }

    fn dx(&self, y: isize, x: isize) -> f64 {
        (self.at(y, x + 1) - self.at(y, x - 1)) / 2.0
    }

    fn dy(&self, y: isize, x: isize) -> f64 {
        (self.at(y + 1, x) - self.at(y - 1, x)) / 2.0
    }

    fn bilinear(&self, y: f64, x: f64) -> f64 {
        let (top, left) = (y.floor() as isize, x.floor() as isize);
        let (fy, fx) = (y - y.floor(), x - x.floor());
        let row = |y| (1.0 - fx) * self.at(y, left) + fx * self.at(y, left + 1);
        (1.0 - fy) * row(top) + fy * row(top + 1)
    }
}

/// The data terms of a pixel: of each square the weight Ψ′, the gradient, and the residual at w = 0.
fn data_terms(
    [mean, temporal]: [&Grid; 2],
    [u, v]: &[Grid; 2],
    (y, x): (isize, isize),
) -> [(f64, [f64; 2], f64); 3] {
    let [epsilon, zeta] = [EPSILON_SQUARED, ZETA_SQUARED].map(f64::from);
    let (ix, iy, it) = (mean.dx(y, x), mean.dy(y, x), temporal.at(y, x));
    let ixx = (mean.dx(y, x + 1) - mean.dx(y, x - 1)) / 2.0;
    let ixy = (mean.dx(y + 1, x) - mean.dx(y - 1, x)) / 2.0;
    let iyy = (mean.dy(y + 1, x) - mean.dy(y - 1, x)) / 2.0;
    let (ixt, iyt) = (temporal.dx(y, x), temporal.dy(y, x));
    let n = ix * ix + iy * iy + zeta;
    let nx = ixx * ixx + ixy * ixy + zeta;
    let ny = ixy * ixy + iyy * iyy + zeta;
    let luma = f64::from(DELTA) / (it * it / n + epsilon).sqrt();
    let gradient = f64::from(GAMMA) / (ixt * ixt / nx + iyt * iyt / ny + epsilon).sqrt();
    let terms = [
        (luma / n, [ix, iy], it),
        (gradient / nx, [ixx, ixy], ixt),
        (gradient / ny, [ixy, iyy], iyt),
    ];
    let flow = [u.at(y, x), v.at(y, x)];
    terms.map(|(weight, g, residual)| (weight, g, residual - g[0] * flow[0] - g[1] * flow[1]))
}

/// The weights of the smoothness between a pixel and those on the right, below, on the left and above.
fn smoothness([u, v]: &[Grid; 2], (y, x): (isize, isize)) -> [f64; 4] {
    let (h, w) = u.size;
    let weight = |y: isize, x: isize| {
        let squares = [u, v].map(|flow| {
            let here = flow.at(y, x);
            (flow.at(y, x + 1) - here).powi(2) + (flow.at(y + 1, x) - here).powi(2)
        });
        f64::from(ALPHA) / (squares[0] + squares[1] + f64::from(EPSILON_SQUARED)).sqrt()
    };
    let if_inside = |inside: bool, weight: f64| if inside { weight } else { 0.0 };
    [
        if_inside(x + 1 < w as isize, weight(y, x)),
        if_inside(y + 1 < h as isize, weight(y, x)),
        if_inside(x > 0, weight(y, x - 1)),
        if_inside(y > 0, weight(y - 1, x)),
    ]
}

/// [`refine`] by plain loops in f64.
fn reference(images: [&Grid; 2], flow: &mut [Grid; 2], warps: usize) {
    let [from, to] = images;
    let size = from.size;
    for _ in 0..warps {
        let base = flow.clone();
        let warped = Grid::new(size, |y, x| {
            to.bilinear(y as f64 + base[1].at(y, x), x as f64 + base[0].at(y, x))
        });
        let mean = Grid::new(size, |y, x| (from.at(y, x) + warped.at(y, x)) / 2.0);
        let temporal = Grid::new(size, |y, x| warped.at(y, x) - from.at(y, x));
        for colour in (0..SWEEPS).flat_map(|_| [0, 1]) {
            for i in 0..size.0 * size.1 {
                let (y, x) = (i / size.1, i % size.1);
                if (y + x) % 2 != colour {
                    continue;
                }
                let at @ (y, x) = (y as isize, x as isize);
                let neighbours = [(y, x + 1), (y + 1, x), (y, x - 1), (y - 1, x)];
                let (mut a, mut b) = ([[0.0; 2]; 2], [0.0; 2]);
                for (weight, g, residual) in data_terms([&mean, &temporal], &base, at) {
                    for row in 0..2 {
                        b[row] -= weight * g[row] * residual;
                        for column in 0..2 {
                            a[row][column] += weight * g[row] * g[column];
                        }
                    }
                }
                for (weight, (y, x)) in smoothness(&base, at).into_iter().zip(neighbours) {
                    for row in 0..2 {
                        a[row][row] += weight;
                        b[row] += weight * flow[row].at(y, x);
                    }
                }
                let determinant = a[0][0] * a[1][1] - a[0][1] * a[1][0];
                let solution = [
                    (a[1][1] * b[0] - a[0][1] * b[1]) / determinant,
                    (a[0][0] * b[1] - a[1][0] * b[0]) / determinant,
                ];
                for (flow, solution) in flow.iter_mut().zip(solution) {
                    flow.values[i] += f64::from(OMEGA) * (solution - flow.values[i]);
                }
            }
        }
    }
}

fn waves(y: f32, x: f32) -> f32 {
    let [a, b] = [0.9 * x + 0.3 * y, 0.7 * y - 0.4 * x].map(f32::sin);
    128.0 + 40.0 * a + 30.0 * b + 20.0 * (0.2 * x).cos()
}

/// The finest level of a picture, and the same in f64.
fn picture(size: (usize, usize), luma: impl Fn(f32, f32) -> f32) -> (Level, Grid) {
    let level = Pyramid::of(size, luma).levels.swap_remove(0);
    let grid = Grid::new(size, |y, x| level.row(y as usize)[x as usize].into());
    (level, grid)
}

fn grids(field: &Field) -> [Grid; 2] {
    [&field.u, &field.v].map(|values| Grid {
        size: (field.h, field.w),
        values: values.iter().copied().map(f64::from).collect(),
    })
}

#[test]
fn the_same_as_by_plain_loops() {
    for size @ (h, w) in SIZES {
        let (from, from_grid) = picture(size, waves);
        let (to, to_grid) = picture(size, |y, x| 1.1 * waves(y + 0.4, x - 0.8) + (x * y) % 3.0);
        let mut field = Field::zeros(h, w);
        for i in 0..h * w {
            // Some of it leads beyond the edge.
            (field.u[i], field.v[i]) = ((0.3 * i as f32).sin(), 1.5 * (0.07 * i as f32).cos());
        }
        for warps in [1, 2] {
            let (mut field, mut expected) = (field.clone(), grids(&field));
            refine(&from, &to, &mut field, warps);
            reference([&from_grid, &to_grid], &mut expected, warps);
            for (values, expected) in grids(&field).iter().zip(&expected) {
                for (i, (value, expected)) in values.values.iter().zip(&expected.values).enumerate()
                {
                    assert!(
                        (value - expected).abs() < 1e-3,
                        "{h}x{w}, {warps} warps, pixel {i}: {value}, not {expected}"
                    );
                }
            }
        }
    }
}
