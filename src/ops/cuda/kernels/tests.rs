// SPDX-License-Identifier: MPL-2.0

//! The kernels, compiled for the CPU with `host.h`, compared with plain loops in `f64`.

#[path = "tests/features.rs"]
mod features;
#[path = "tests/image.rs"]
mod image;
#[path = "tests/lbfgs.rs"]
mod lbfgs;

use aligned_vec::AVec;
use half::{bf16, f16};
use libloading::Library;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::ffi::c_void;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// Threads per block; the same as in `common.cuh`.
const THREADS: u32 = 256;

/// The kernels as a library, from one compilation for all tests.
static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("no temporary folder");
    let library = folder.path().join("kernels.so");
    let compiler = std::env::var("CXX").unwrap_or("c++".into());
    let compiled = Command::new(&compiler)
        .args("-std=c++20 -O2 -U_FORTIFY_SOURCE -shared -fPIC -x c++ -include host.h".split(' '))
        .args([
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unknown-pragmas",
            "-Wno-clobbered",
        ])
        .args(["kernels.cu", "-o"])
        .arg(&library)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops/cuda/kernels"))
        .status();
    match compiled {
        Ok(status) => assert!(status.success(), "{compiler} does not compile the kernels"),
        Err(error) => panic!("the kernels' tests need a C++ compiler, but {compiler}: {error}"),
    }
    // SAFETY: its initialisers are those of the C++ library.
    unsafe { Library::new(library) }.expect("the compiled kernels do not load")
});

type RunGrid = unsafe extern "C" fn(u32, u32, extern "C" fn(*mut c_void), *mut c_void);

/// A tuple of a kernel's arguments, in the order of its parameters.
trait Arguments: Copy {
    /// # Safety
    /// `kernel` is a function with parameters of these types.
    unsafe fn call(self, kernel: *const c_void);
}

macro_rules! arguments {
    ($($argument:ident)+) => {
        impl<$($argument: Copy),+> Arguments for ($($argument,)+) {
            #[allow(non_snake_case)]
            unsafe fn call(self, kernel: *const c_void) {
                // SAFETY: the caller guarantees the function's type.
                unsafe {
                    let kernel: unsafe extern "C" fn($($argument),+) = std::mem::transmute(kernel);
                    let ($($argument,)+) = self;
                    kernel($($argument),+);
                }
            }
        }
    };
}

arguments!(A);
arguments!(A B C);
arguments!(A B C D);
arguments!(A B C D E);
arguments!(A B C D E F);
arguments!(A B C D E F G);
arguments!(A B C D E F G H);
arguments!(A B C D E F G H I);

/// Runs a kernel with a grid of so many blocks. The buffers must be as large as the kernel expects: nothing
/// checks it.
fn launch<A: Arguments>(kernel: &str, blocks: u32, arguments: A) {
    extern "C" fn body<A: Arguments>(context: *mut c_void) {
        // SAFETY: `context` is the pair below; the kernel takes these arguments.
        unsafe {
            let (kernel, arguments) = *context.cast::<(*const c_void, A)>();
            arguments.call(kernel);
        }
    }
    // SAFETY: `run_grid` has the type `RunGrid`; of the kernel only the address is taken.
    unsafe {
        let run_grid = LIBRARY.get::<RunGrid>("run_grid").unwrap();
        let kernel = LIBRARY.get::<*const c_void>(kernel).expect(kernel);
        let mut context = (kernel.try_as_raw_ptr().unwrap().cast_const(), arguments);
        run_grid(blocks, THREADS, body::<A>, (&raw mut context).cast());
    }
}

trait Number: Copy + PartialEq {
    /// Rounds to nearest.
    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// An element type of features.
trait Feature: Number + std::fmt::Debug {
    /// The suffixes of the scalar and the vectorised kernels, with the number of values at a time.
    const KERNELS: [(&str, usize); 2];
    /// The unit roundoff: the largest relative error of rounding to nearest.
    const ROUNDING: f64;
}

macro_rules! feature {
    ($type:ty, $of:expr, $kernels:expr, $rounding:expr) => {
        impl Number for $type {
            fn of(value: f64) -> Self {
                $of(value)
            }

            fn to_f64(self) -> f64 {
                self.into()
            }
        }

        impl Feature for $type {
            const KERNELS: [(&str, usize); 2] = $kernels;
            const ROUNDING: f64 = $rounding;
        }
    };
}

feature!(f32, |value| value as f32, [("f32", 1), ("f32x4", 4)], 6e-8);
feature!(f16, f16::from_f64, [("f16", 1), ("f16x8", 8)], 4.89e-4);
feature!(bf16, bf16::from_f64, [("bf16", 1), ("bf16x8", 8)], 3.91e-3);

/// An array aligned as on a GPU, followed by guard values that show writes beyond its end.
#[derive(Clone)]
struct Buffer<T: Number>(AVec<T>);

const GUARD: [f64; 16] = [-12345.0; 16];

impl<T: Number> Buffer<T> {
    fn of(values: &[f64]) -> Self {
        let values = values.iter().chain(&GUARD).map(|&value| T::of(value));
        Self(AVec::from_iter(128, values))
    }

    /// Uniform in `low..high`.
    fn random(len: usize, low: f64, high: f64, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let values: Vec<f64> = (0..len).map(|_| rng.random_range(low..high)).collect();
        Self::of(&values)
    }

    /// Filled with NaN, to be written before it is read.
    fn unset(len: usize) -> Self {
        Self::of(&vec![f64::NAN; len])
    }

    fn read(&self) -> *const T {
        self.0.as_ptr()
    }

    fn write(&mut self) -> *mut T {
        self.0.as_mut_ptr()
    }

    fn values(&self) -> Vec<f64> {
        let (values, guard) = self.0.split_at(self.0.len() - GUARD.len());
        assert!(guard.iter().all(|&value| value == T::of(GUARD[0])));
        values.iter().map(|value| value.to_f64()).collect()
    }

    fn sum(&self) -> f64 {
        self.values().iter().sum()
    }
}

/// Checks that each value is the expected one up to rounding to `T`, plus `slack` for sums in `f32`.
#[track_caller]
fn check<T: Feature>(case: &str, result: &Buffer<T>, expected: &[f64], slack: f64) {
    let result = result.values();
    assert_eq!(result.len(), expected.len(), "{case}");
    for (i, (&value, &expected)) in result.iter().zip(expected).enumerate() {
        let error = (value - expected).abs();
        assert!(
            error <= T::ROUNDING * expected.abs() + slack,
            "{case}: {value}, not {expected}, at {i}"
        );
    }
}

/// Checks a sum in `f64` of terms that are computed in `f32`.
#[track_caller]
fn check_sum(case: &str, sum: f64, expected: f64) {
    let error = (sum - expected).abs();
    assert!(
        error <= 1e-6 * expected.abs().max(1.0),
        "{case}: {sum}, not {expected}"
    );
}
