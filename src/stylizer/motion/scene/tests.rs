// SPDX-License-Identifier: MPL-2.0

use super::*;
use crate::stylizer::motion::flow::bidirectional;

/// A pyramid of 8-bit video.
fn pyramid(size: (usize, usize), luma: impl Fn(f32, f32) -> f32) -> Pyramid {
    Pyramid::of(size, |y, x| luma(y, x).round().clamp(0.0, 255.0))
}

fn checked_score(now: &Pyramid, before: &Pyramid) -> f64 {
    let [backward, forward] = bidirectional(&now.levels, &before.levels);
    let score = cut_score(now, before, &backward, &forward);
    assert!((0.0..=1.0).contains(&score), "{score}");
    score
}

/// Patches of 6x6 pixels of random luma.
fn patches(seed: u32) -> impl Fn(f32, f32) -> f32 {
    move |y, x| {
        let (y, x) = (
            (y / 6.0).floor() as i32 as u32,
            (x / 6.0).floor() as i32 as u32,
        );
        let mut hash = seed ^ y.wrapping_mul(0x9E37_79B1) ^ x.wrapping_mul(0x85EB_CA77);
        for _ in 0..3 {
            hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
        }
        40.0 + (hash >> 25) as f32
    }
}

const SIZES: [(usize, usize); 6] = [
    (16, 16),
    (17, 35),
    (64, 48),
    (90, 160),
    (40, 700),
    (360, 640),
];

#[test]
fn a_frame_is_no_change_from_itself() {
    for size in SIZES {
        let flat = [0.0, 128.0, 255.0].map(|luma| pyramid(size, |_, _| luma));
        for frame in flat.iter().chain([&pyramid(size, patches(1))]) {
            assert!(checked_score(frame, frame) < 1e-6, "{size:?}");
        }
    }
}

#[test]
fn other_structure_is_a_change_and_so_is_none_at_once() {
    for size in SIZES {
        let [black, white] = [0.0, 255.0].map(|luma| pyramid(size, |_, _| luma));
        let [one, other] = [1, 2].map(|seed| pyramid(size, patches(seed)));
        let pairs = [
            ("patches to black", &black, &one),
            ("patches to white", &white, &one),
            ("black to white", &white, &black),
            ("white to black", &black, &white),
        ];
        for (name, now, before) in pairs {
            let score = checked_score(now, before);
            assert!(score > DEFAULT_SCENE_CUT, "{name}, {size:?}: {score}");
        }
        // Few patches are found among few by chance.
        let many = size.0 * size.1 > 1000;
        for (name, before) in [("black", &black), ("another", &other)]
            .into_iter()
            .take(1 + usize::from(many))
        {
            let score = checked_score(&one, before);
            assert!(score > DEFAULT_SCENE_CUT, "from {name}, {size:?}: {score}");
        }
    }
}

#[test]
fn a_change_of_colour_in_steps_is_none() {
    for size in SIZES {
        for luma in [0.0, 64.0, 128.0, 223.0] {
            let [dark, light] = [luma, luma + 32.0].map(|luma| pyramid(size, |_, _| luma));
            let score = checked_score(&dark, &light).max(checked_score(&light, &dark));
            assert!(score < 0.3, "{luma}, {size:?}: {score}");
        }
    }
}

#[test]
fn gain_and_offset_are_no_change() {
    for size in SIZES {
        let before = pyramid(size, patches(1));
        for (gain, offset) in [(0.3, 0.0), (0.2, 190.0), (1.4, -20.0)] {
            let now = pyramid(size, |y, x| gain * patches(1)(y, x) + offset);
            let score = checked_score(&now, &before).max(checked_score(&before, &now));
            assert!(score < 0.3, "{gain}, {offset}, {size:?}: {score}");
        }
    }
}

#[test]
fn a_pan_is_found() {
    for (down, across) in [(0, 0), (3, -5), (-40, 60), (60, 130), (0, 300)] {
        let before = pyramid((360, 640), patches(1));
        let now = pyramid((360, 640), |y, x| {
            patches(1)(y + down as f32, x + across as f32)
        });
        let compared = now.first_level(MAX_COMPARED_PIXELS);
        let found = pan(&now, &before, compared);
        let scale = (1 << compared << now.finest) as f32;
        for (found, down) in found.iter().zip([down, across]) {
            assert!(
                (scale * found - down as f32).abs() < 2.0,
                "{down}, {across}: {found}"
            );
        }
    }
}
