// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::threads::pool;
use candle_core::{Device, Tensor};

const H: usize = 64;
const W: usize = 96;

fn sized((h, w): (usize, usize), value: impl Fn(usize, usize, usize) -> f32) -> Tensor {
    let values = (0..h * w * 3).map(|i| value(i / 3 / w, i / 3 % w, i % 3));
    Tensor::from_vec(values.collect(), (h, w, 3), &Device::Cpu).unwrap()
}

fn tensor(value: impl Fn(usize, usize, usize) -> f32) -> Tensor {
    sized((H, W), value)
}

/// A frame with texture everywhere, `shift` pixels further to the right.
fn scene(shift: f32) -> Tensor {
    view((H, W), shift)
}

fn view(size: (usize, usize), shift: f32) -> Tensor {
    sized(size, |y, x, c| {
        let (x, y) = (x as f32 + shift, y as f32);
        let rough = (0.11 * x + 0.05 * y + c as f32).sin() + (0.13 * y - 0.04 * x).sin();
        let fine = (0.43 * x + 0.29 * y).sin() + (0.31 * x - 0.47 * y).sin();
        0.5 + 0.1 * rough + 0.07 * fine
    })
}

/// The same with a textured rectangle in front, which covers 16 columns from `left` on.
fn covered(left: usize) -> Tensor {
    let scene = values(&scene(0.0));
    tensor(
        |y, x, c| match (16..48).contains(&y) && (left..left + 16).contains(&x) {
            true => {
                let (x, y) = ((x - left) as f32, y as f32);
                0.5 + 0.2 * ((0.6 * x).sin() * (0.5 * y).cos() + (0.21 * x + 0.17 * y).sin())
            }
            false => scene[(y * W + x) * 3 + c],
        },
    )
}

fn values(image: &Tensor) -> Vec<f32> {
    image.flatten_all().unwrap().to_vec1().unwrap()
}

/// A painting that does not depend on its frame.
fn painting(number: usize) -> Tensor {
    tensor(|y, x, c| 0.3 + 0.2 * number as f32 + 0.01 * ((y + 2 * x + c) % 7) as f32)
}

/// The start of the frame `now`, from the frames before it with their paintings, the latest first.
fn start(now: &Tensor, before: &[(&Tensor, &Tensor)]) -> (Motion, Start) {
    start_with(now, before, |_| ())
}

/// The same with a motion that is changed first.
fn start_with(
    now: &Tensor,
    before: &[(&Tensor, &Tensor)],
    change: impl Fn(&mut Motion),
) -> (Motion, Start) {
    let mut history = FrameHistory::default();
    for (frame, result) in before.iter().rev() {
        let pyramid = Pyramid::new(frame).unwrap();
        let illumination = pyramid.illumination.clone();
        history.push(pyramid, illumination);
        history.prepare(result).unwrap();
    }
    let pyramid = Pyramid::new(now).unwrap();
    let mut motion = Motion::between(&pyramid, history.latest().unwrap());
    change(&mut motion);
    let frames = Frames {
        now,
        illumination: &pyramid.illumination,
        before: before[0].0,
        painting: before[0].1,
    };
    let start = Start::new(frames, &pyramid, &motion, &mut history).unwrap();
    (motion, start)
}

#[test]
fn a_frame_that_stays_starts_where_the_last_one_ended() {
    let (frame, result) = (scene(0.0), painting(0));
    let (_, start) = start(&frame, &[(&frame, &result)]);
    for (start, result) in values(&start.image).iter().zip(values(&result)) {
        assert!((start - result).abs() < 1e-3, "{start} {result}");
    }
    assert!(
        values(&start.confidence)
            .iter()
            .all(|confidence| *confidence == 1.0)
    );
}

#[test]
fn a_painting_follows_a_pan() {
    // The flow of the last size has half that.
    for (h, w) in [(H, W), (37, 53), (182, 325)] {
        let (before, now) = (view((h, w), 0.0), view((h, w), 5.0));
        let wave = |y: usize, x: usize| 0.3 * ((0.3 * x as f32).sin() * (0.2 * y as f32).cos());
        let result = sized((h, w), |y, x, _| 0.5 + wave(y, x));
        let (_, start) = start(&now, &[(&before, &result)]);
        let (start, result) = (values(&start.image), values(&result));
        let mut worst = 0f32;
        for y in 8..h - 8 {
            for x in 8..w - 16 {
                let difference = start[(y * w + x) * 3] - result[(y * w + x + 5) * 3];
                worst = worst.max(difference.abs());
            }
        }
        assert!(worst < 0.06, "{h}x{w}: {worst}");
    }
}

#[test]
fn the_same_for_any_number_of_threads() {
    let frames = [56, 40, 24].map(|left| {
        let covered = values(&covered(left));
        sized((3 * H, 2 * W + 5), |y, x, c| {
            covered[(y % H * W + x % W) * 3 + c]
        })
    });
    let run = |threads| {
        pool(threads).build().unwrap().install(|| {
            let before = [(&frames[1], &frames[2]), (&frames[2], &frames[1])];
            let (motion, start) = start(&frames[0], &before);
            let masks = [motion.visible.values, motion.reliable.values].concat();
            let all = [masks, values(&start.image), values(&start.confidence)].concat();
            all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn a_frame_that_became_brighter_starts_brighter() {
    let (before, result) = (scene(0.0), painting(0));
    let now = (&before + 0.1).unwrap();
    let (_, start) = start(&now, &[(&before, &result)]);
    for (start, result) in values(&start.image).iter().zip(values(&result)) {
        assert!((start - result - 0.1).abs() < 0.01, "{start} {result}");
    }
}

/// The mean of an image where the rectangle is in a frame but no longer in the next, having been at
/// column 40.
fn mean(image: &Tensor) -> f32 {
    let inside = image.narrow(0, 24, 16).unwrap().narrow(1, 45, 6).unwrap();
    inside.mean_all().unwrap().to_scalar().unwrap()
}

#[test]
fn what_is_disoccluded_comes_from_an_older_painting() {
    let frames = [56, 40, 24].map(covered);
    let (first, second) = (painting(0), painting(2));
    let (_, start) = start(&frames[0], &[(&frames[1], &second), (&frames[2], &first)]);
    assert!(
        (mean(&start.image) - mean(&first)).abs() < 0.1,
        "{}",
        mean(&start.image)
    );
    assert!(mean(&start.confidence) > 0.7, "{}", mean(&start.confidence));
}

/// In a picture whose flow has half its size.
#[test]
fn an_older_painting_follows_a_pan_too() {
    let (h, w) = (2 * H, 2 * W);
    let frame = |shift: f32, left: usize| {
        let background = values(&view((h, w), shift));
        sized((h, w), |y, x, c| {
            match (32..96).contains(&y) && (left..left + 32).contains(&x) {
                true => 0.5 + 0.2 * (0.3 * (x - left) as f32).sin() * (0.25 * y as f32).cos(),
                false => background[(y * w + x) * 3 + c],
            }
        })
    };
    let frames = [frame(8.0, 112), frame(4.0, 80), frame(0.0, 48)];
    let wave = |y: usize, x: usize| 0.3 * ((0.35 * x as f32).sin() * (0.3 * y as f32).cos());
    let older = sized((h, w), |y, x, _| 0.5 + wave(y, x));
    let latest = sized((h, w), |_, _, _| 0.5);
    let (motion, start) = start(&frames[0], &[(&frames[1], &latest), (&frames[2], &older)]);
    assert_eq!(motion.scale, 2);
    // What the rectangle hid at column 80 of the last frame.
    let (start, older) = (values(&start.image), values(&older));
    let error = |shift: usize| {
        let places = (40..88).flat_map(|y| (84..100).map(move |x| (y * w + x) * 3));
        let differences = places.map(|i| (start[i] - older[i + 3 * shift]).abs());
        differences.sum::<f32>() / (48.0 * 16.0)
    };
    let errors = [4, 8, 16].map(error);
    assert!(errors[1] < 0.05, "{errors:?}");
    assert!(errors[0] > 0.1 && errors[2] > 0.1, "{errors:?}");
}

#[test]
fn what_no_painting_shows_keeps_the_strokes_that_were_there() {
    let frames = [56, 40].map(covered);
    let second = painting(1);
    let (_, start) = start(&frames[0], &[(&frames[1], &second)]);
    let change = (&frames[0] - &frames[1]).unwrap();
    let fill = (second + change).unwrap().clamp(0f32, 1f32).unwrap();
    assert!((mean(&start.image) - mean(&fill)).abs() < 0.05);
    assert!(mean(&start.confidence) < 0.3, "{}", mean(&start.confidence));
}

#[test]
fn glints_are_not_taken_for_strokes() {
    let water = |glint: usize| {
        tensor(move |y, x, _| match (31 * y + 17 * x) % 97 == glint {
            true => 0.9,
            false => 0.4,
        })
    };
    let (now, before, painting) = (water(0), water(40), painting(1));
    let unreliable = |motion: &mut Motion| motion.reliable.values.fill(0.0);
    let (_, start) = start_with(&now, &[(&before, &painting)], unreliable);
    for (start, painted) in values(&start.image).iter().zip(values(&painting)) {
        assert!((start - painted).abs() < 0.2, "{start}, painted {painted}");
    }
}

/// Strokes that change from pixel to pixel.
fn strokes(y: usize, x: usize) -> f32 {
    0.1 * ((1.3 * x as f32).sin() + (1.1 * y as f32 + 0.4 * x as f32).cos())
}

/// The start of the last of some frames, where each painting is the frame's start itself, and that of
/// the first one the frame with strokes.
fn repeatedly_warped(frames: &[Tensor]) -> Tensor {
    let strokes = tensor(|y, x, _| strokes(y, x));
    let first = (&frames[0] + strokes).unwrap().clamp(0f32, 1f32).unwrap();
    frames.windows(2).fold(first, |result, pair| {
        start(&pair[1], &[(&pair[0], &result)]).1.image
    })
}

#[test]
fn strokes_are_not_drawn_out_where_a_pan_goes() {
    for by in [0.4, -0.4, 1.3, -1.3] {
        let frames: Vec<_> = (0..16).map(|i| scene(i as f32 * by)).collect();
        let last = repeatedly_warped(&frames);
        let strokes = values(&(last - frames.last().unwrap()).unwrap());
        // Of the columns that came in since, and of as many others.
        let rough = |columns: std::ops::Range<usize>| {
            let places = (8..H - 8).flat_map(|y| columns.clone().map(move |x| (y, x)));
            let steps = places.map(|(y, x)| {
                let at = |x: usize| strokes[(y * W + x) * 3];
                (at(x) - at(x + 1)).powi(2)
            });
            steps.sum::<f32>()
        };
        let count = (15.0 * by.abs()) as usize;
        let came = match by > 0.0 {
            true => W - count - 1..W - 1,
            false => 0..count,
        };
        let part = rough(came) / rough(40..40 + count);
        assert!(part > 0.3, "{by} a frame: {part}");
    }
}

#[test]
fn what_passes_slowly_does_not_smear_what_it_uncovers() {
    let frames: Vec<_> = (0..16).map(|i| covered(24 + i)).collect();
    let last = repeatedly_warped(&frames);
    // The strokes' mean is 0.07.
    let behind = |image: &Tensor| image.narrow(0, 20, 24).unwrap().narrow(1, 26, 12).unwrap();
    let difference = (behind(&last) - behind(&frames[15]))
        .unwrap()
        .abs()
        .unwrap();
    let mean: f32 = difference.mean_all().unwrap().to_scalar().unwrap();
    assert!(mean < 0.1, "{mean}");
}
