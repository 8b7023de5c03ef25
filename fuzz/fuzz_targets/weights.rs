// SPDX-License-Identifier: MPL-2.0

//! Loads weights from any bytes: that may fail, but neither panic nor ask for more memory than the file warrants.
#![no_main]

use gstgatys::vgg::weights::Weights;
use libfuzzer_sys::fuzz_target;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

/// The largest kernel of a VGG-19 in f64.
const KERNEL: usize = 512 * 512 * 9 * 8;

/// What a compressed file can hold in little space: a VGG-19 in f32, and some copies of a kernel while it is read.
const NETWORK: usize = 16 * KERNEL / 2 + 4 * KERNEL;

/// The system's allocator, which ends the process where more than `LIMIT` bytes are held.
struct Limited;

static LIMIT: AtomicIsize = AtomicIsize::new(isize::MAX);
static HELD: AtomicIsize = AtomicIsize::new(0);

impl Limited {
    fn hold(bytes: isize) {
        let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > LIMIT.load(Ordering::Relaxed) {
            LIMIT.store(isize::MAX, Ordering::Relaxed);
            eprintln!("{held} bytes are held");
            std::process::abort();
        }
    }
}

// SAFETY: every call goes on to the system's allocator as it is.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::hold(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::hold(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::hold(size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::hold(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fuzz_target!(|file: &[u8]| {
    let warranted = NETWORK + 64 * file.len();
    let held = HELD.load(Ordering::Relaxed);
    LIMIT.store(held + warranted as isize, Ordering::Relaxed);
    let _ = Weights::from_bytes(file);
    LIMIT.store(isize::MAX, Ordering::Relaxed);
});
