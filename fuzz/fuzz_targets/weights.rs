// SPDX-License-Identifier: MPL-2.0

//! Loads weights from any bytes: that may fail, but neither panic nor ask for more memory than the file warrants.
#![no_main]

use gstgatys::vgg::weights::Weights;
use libfuzzer_sys::fuzz_target;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest kernel of a VGG-19 in f64, which a compressed file can hold in little space.
const KERNEL: usize = 512 * 512 * 9 * 8;

/// The system's allocator, which ends the process where a piece is larger than `LIMIT`.
struct Limited;

static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

impl Limited {
    fn check(size: usize) {
        if size > LIMIT.load(Ordering::Relaxed) {
            LIMIT.store(usize::MAX, Ordering::Relaxed);
            eprintln!("{size} bytes were asked for");
            std::process::abort();
        }
    }
}

// SAFETY: every call goes on to the system's allocator as it is.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::check(size);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|file: &[u8]| {
    LIMIT.store(KERNEL.max(16 * file.len()), Ordering::Relaxed);
    let _ = Weights::from_bytes(file);
    LIMIT.store(usize::MAX, Ordering::Relaxed);
});
