// SPDX-License-Identifier: MPL-2.0

//! Times of actions that are compared with each other.

use std::time::{Duration, Instant};

/// What an action takes, and what it gives.
pub fn timed<T>(action: impl FnOnce() -> T) -> (Duration, T) {
    let begun = Instant::now();
    let result = action();
    (begun.elapsed(), result)
}

/// Milliseconds.
pub fn ms(time: Duration) -> f64 {
    1e3 * time.as_secs_f64()
}

/// The middle one of `values`, or the mean of the two middle ones.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

/// Milliseconds of each of two actions, taken in turns, after one turn that is not counted: what
/// else the machine does meanwhile falls on both.
pub fn in_turns<T>(
    rounds: usize,
    mut first: impl FnMut() -> T,
    mut second: impl FnMut() -> T,
) -> (Vec<f64>, Vec<f64>) {
    first();
    second();
    let both = (0..rounds).map(|_| (ms(timed(&mut first).0), ms(timed(&mut second).0)));
    both.unzip()
}

/// The median of the quotients of each round.
pub fn ratio(dividends: &[f64], divisors: &[f64]) -> f64 {
    let pairs = dividends.iter().zip(divisors);
    median(
        pairs
            .map(|(dividend, divisor)| dividend / divisor)
            .collect(),
    )
}

/// The number after `--NAME` in the program's arguments.
pub fn argument(name: &str, default: usize) -> usize {
    let number = |value: String| {
        let number = value.parse();
        number.unwrap_or_else(|_| panic!("{name} takes a number"))
    };
    text(name).map_or(default, number)
}

/// What is after `--NAME` in the program's arguments.
pub fn text(name: &str) -> Option<String> {
    std::env::args().skip_while(|text| text != name).nth(1)
}

/// Whether `--NAME` is among the program's arguments.
pub fn flag(name: &str) -> bool {
    std::env::args().any(|text| text == name)
}
