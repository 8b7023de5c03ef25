// SPDX-License-Identifier: MPL-2.0

//! How many threads compute, and locking what they share.

use rayon::ThreadPoolBuilder;
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

/// Far more threads than cores mostly wait for each other.
const MAX_THREADS_PER_CORE: usize = 8;

/// A builder of pools of `n_threads` threads, or as many as `RAYON_NUM_THREADS` says if that is 0, or one for
/// each core if that is unset; at most 8 for each core.
pub fn pool(n_threads: u32) -> ThreadPoolBuilder {
    let environment = std::env::var("RAYON_NUM_THREADS").ok();
    let cores = available_parallelism().map_or(1, NonZero::get);
    ThreadPoolBuilder::new().num_threads(count(n_threads, environment.as_deref(), cores))
}

/// Locks a mutex, even if a thread has panicked with it locked: for what is changed in one step, or
/// stays whole for the reason that the mutex gives.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(n_threads: u32, environment: Option<&str>, cores: usize) -> usize {
    let wanted = match n_threads {
        0 => environment
            .and_then(|count| count.parse().ok())
            .unwrap_or(0),
        count => count as usize,
    };
    match wanted {
        0 => cores,
        count => count.min(cores * MAX_THREADS_PER_CORE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_limited_wherever_their_number_comes_from() {
        for (n_threads, environment, expected) in [
            (0, None, 4),
            (0, Some("0"), 4),
            (0, Some("many"), 4),
            (0, Some("3"), 3),
            (0, Some("2000"), 32),
            (2, Some("2000"), 2),
            (1000, None, 32),
        ] {
            let count = count(n_threads, environment, 4);
            assert_eq!(count, expected, "{n_threads}, {environment:?}");
        }
    }
}
