// SPDX-License-Identifier: MPL-2.0

//! What an evaluation costs a pixel at four times the pixels, and how much faster it is with all
//! threads than with one. Both by taking turns.
//!
//! `cargo bench --bench scaling [-- --rounds N] [--threads N] [--precision NAME]`

mod common;

use common::problem::{LARGE, MIDDLE, Problem, name, precision, threads};
use common::timing::{argument, in_turns, median, ratio};

fn main() {
    let rounds = argument("--rounds", 7);
    let many = threads(argument("--threads", 0));
    let one = threads(1);
    let middle = many.install(|| Problem::made(MIDDLE, precision()));

    let count = many.current_num_threads();
    let (alone, together) = in_turns(
        rounds,
        || one.install(|| middle.evaluate()),
        || many.install(|| middle.evaluate()),
    );
    println!(
        "{}, 1 thread: {:.1} ms",
        name(MIDDLE),
        median(alone.clone())
    );
    println!(
        "{}, {count} threads: {:.1} ms",
        name(MIDDLE),
        median(together.clone())
    );
    println!(
        "speed with {count} threads over 1: {:.2}",
        ratio(&alone, &together)
    );

    let large = many.install(|| Problem::made(LARGE, precision()));
    let (large, middle) = in_turns(
        rounds,
        || many.install(|| large.evaluate()),
        || many.install(|| middle.evaluate()),
    );
    let pixels = |(w, h): (usize, usize)| (w * h) as f64;
    let nanoseconds = |times: &[f64], size| 1e6 * median(times.to_vec()) / pixels(size);
    println!(
        "{}: {:.1} ns a pixel",
        name(LARGE),
        nanoseconds(&large, LARGE)
    );
    println!(
        "{}: {:.1} ns a pixel",
        name(MIDDLE),
        nanoseconds(&middle, MIDDLE)
    );
    println!(
        "time a pixel at {} over {}: {:.3}",
        name(LARGE),
        name(MIDDLE),
        ratio(&large, &middle) * pixels(MIDDLE) / pixels(LARGE)
    );
}
