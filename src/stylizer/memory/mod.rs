// SPDX-License-Identifier: MPL-2.0

//! Whether frames of a size fit into memory: the GPU's or, where the CPU computes, the machine's.

pub mod free;

use super::config::Config;
use super::objective::Objective;
use super::resize::fit;
use super::style::StyleImage;
use super::{Error, Stylizer, optimizer};
use crate::ops::scratch_bytes;
use free::{free_address_space, free_bytes, give_back_memory};
use std::fmt;

/// Upper bound of the tensors of an image's size on a GPU besides the optimiser's: the optimised
/// image, the frame, the starting point and the temporal target, with their copies.
const OTHER_IMAGES_ON_GPU: usize = 6;

/// The same on the CPU, which also has the frames painted last, with their pyramids and splines, the
/// flow, and partial Gram matrices. With it the estimate is 3 to 7 % above the peak that
/// `benches/memory.rs` measures from 640x360 on, and up to 18 % with a style image of more pixels.
const OTHER_IMAGES_ON_CPU: usize = 18;

/// Copies of a frame in its own size: the input, the result, the last result, and two while one of
/// them is resized or converted.
const FRAME_COPIES: usize = 5;

/// What a thread keeps on the CPU for blocks of a convolution.
const SCRATCH_OF_THREAD: usize = 8 << 20;

/// What a frame takes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum MemoryKind {
    Gpu,
    /// What is written to.
    Machine,
    /// What is allocated, whether or not it is written to.
    AddressSpace,
}

/// The memory that is free for frames.
#[derive(Clone, Copy, Debug, PartialEq)]
struct FreeMemory {
    bytes: usize,
    kind: MemoryKind,
}

/// A frame that needs more memory than is free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shortage {
    /// Height and width of the frame.
    frame: (usize, usize),
    /// In bytes.
    needed: usize,
    free: FreeMemory,
    /// The largest `max-size` that would fit, if any does.
    fitting: Option<u32>,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        let (h, w) = self.frame;
        let memory = match self.free.kind {
            MemoryKind::Gpu => "the GPU's memory",
            MemoryKind::Machine => "memory",
            MemoryKind::AddressSpace => "the address space that ulimit -v allows",
        };
        write!(
            f,
            "frames of {w}x{h} take about {} MiB of {memory}, of which {} MiB are free; ",
            mib(self.needed),
            mib(self.free.bytes)
        )?;
        match self.fitting {
            Some(side) => write!(f, "max-size={side} would fit"),
            None => f.write_str("no max-size would fit"),
        }
    }
}

impl Stylizer {
    /// Estimates the bytes of memory that painting frames of a height and width takes: the GPU's or,
    /// where the CPU computes, the machine's. The network is not part of it.
    pub fn needed_bytes(&self, frame: (usize, usize)) -> usize {
        let size = fit(frame, self.config.max_size);
        let kind = self.device_memory();
        self.bytes(&self.config, &self.style, frame, size, kind)
    }

    /// The memory that decides on the device, where there is no limit of the address space.
    fn device_memory(&self) -> MemoryKind {
        match self.device().is_cpu() {
            true => MemoryKind::Machine,
            false => MemoryKind::Gpu,
        }
    }

    /// Checks that frames of a height and width fit into the free memory, by an estimate. Those
    /// that are optimised at the last one's size and take no more do: what has changed since was checked
    /// then.
    pub fn check_memory(&self, frame: (usize, usize)) -> Result<(), Error> {
        let size = fit(frame, self.config.max_size);
        match &self.canvas {
            Some(canvas)
                if canvas.size == size
                    && self.needed_bytes(frame) <= self.needed_bytes(canvas.frame) =>
            {
                Ok(())
            }
            _ => self.check_free_memory(&self.config, &self.style, frame),
        }
    }

    /// Checks that frames of the size in use fit with other settings or another style image.
    pub(super) fn check_change(&self, config: &Config, style: &StyleImage) -> Result<(), Error> {
        match self.frame_size {
            Some(frame) => self.check_free_memory(config, style, frame),
            None => Ok(()),
        }
    }

    fn check_free_memory(
        &self,
        config: &Config,
        style: &StyleImage,
        frame: (usize, usize),
    ) -> Result<(), Error> {
        for free in self.free_memory()? {
            let needed = |size| self.bytes(config, style, frame, size, free.kind);
            check(frame, config.max_size, free, needed).map_err(Error::Memory)?;
        }
        Ok(())
    }

    /// The memory that is free for frames, of each kind that is limited. One that is not known is left out.
    fn free_memory(&self) -> Result<Vec<FreeMemory>, Error> {
        let device = self.device();
        let address_space = device.is_cpu().then(free_address_space);
        let free = [
            (free_bytes(device)?, self.device_memory()),
            (address_space.flatten(), MemoryKind::AddressSpace),
        ];
        let known = |(bytes, kind): (Option<usize>, _)| {
            let bytes = bytes?.saturating_add(self.canvas_bytes());
            Some(FreeMemory { bytes, kind })
        };
        Ok(free.into_iter().filter_map(known).collect())
    }

    /// Replaces a GPU's out-of-memory error by one that says what would fit.
    pub(super) fn explain_out_of_memory(&self, error: Error, frame: (usize, usize)) -> Error {
        // Of the driver, of cuBLAS and of cuDNN.
        let names = ["OUT_OF_MEMORY", "ALLOC_FAILED", "ALLOCATION_FAILED"];
        let out_of_memory = match &error {
            Error::Tensor(cause) => {
                let cause = cause.to_string();
                names.iter().any(|name| cause.contains(name))
            }
            _ => false,
        };
        if !out_of_memory {
            return error;
        }
        // Otherwise the pool would withhold what the frame had allocated so far from other users.
        give_back_memory(self.device());
        let check = self.check_free_memory(&self.config, &self.style, frame);
        check.err().unwrap_or(error)
    }

    /// Estimates the bytes of a kind of memory that the optimisation of images of `size` for a frame takes.
    fn bytes(
        &self,
        config: &Config,
        style: &StyleImage,
        frame: (usize, usize),
        size: (usize, usize),
        kind: MemoryKind,
    ) -> usize {
        let (content_layers, style_layers) = (&config.content_layers, &config.style_layers);
        let objective = Objective::bytes(&self.vgg, size, content_layers, style_layers);
        let (style_h, style_w) = style.size(size.0.max(size.1), config.style_scale);
        let deepest = style_layers.deepest();
        let style = self.vgg.feature_bytes(style_h, style_w, deepest);
        let images = self.canvas_image_bytes(config, size);
        let features = match kind {
            // The objective's tensors take no memory until they are written, which is after those of
            // the style have been freed.
            MemoryKind::Machine => objective.max(style),
            MemoryKind::Gpu | MemoryKind::AddressSpace => objective + style,
        };
        let scratch = match kind {
            MemoryKind::Gpu => scratch_bytes(size),
            MemoryKind::Machine | MemoryKind::AddressSpace => {
                let threads = self.thread_pool.current_num_threads();
                SCRATCH_OF_THREAD * threads + FRAME_COPIES * image_bytes(frame)
            }
        };
        images.saturating_add(features + scratch)
    }

    /// The bytes of the canvas, which is freed before one of another size is made.
    fn canvas_bytes(&self) -> usize {
        let Some(canvas) = &self.canvas else {
            return 0;
        };
        let Config {
            content_layers,
            style_layers,
            ..
        } = &self.config;
        let objective = match canvas.objective.is_some() {
            true => Objective::bytes(&self.vgg, canvas.size, content_layers, style_layers),
            false => 0,
        };
        objective + self.canvas_image_bytes(&self.config, canvas.size)
    }

    /// The bytes of all tensors that have the shape of an optimised image of `size`.
    fn canvas_image_bytes(&self, config: &Config, size: (usize, usize)) -> usize {
        let others = match self.device().is_cpu() {
            true => OTHER_IMAGES_ON_CPU,
            false => OTHER_IMAGES_ON_GPU,
        };
        (optimizer::image_count(config) + others).saturating_mul(image_bytes(size))
    }
}

/// The bytes of an image of a height and width.
fn image_bytes((h, w): (usize, usize)) -> usize {
    h * w * 3 * size_of::<f32>()
}

/// Checks that a frame, optimised with its longest side at most `max_size`, fits into `free` memory.
/// `bytes` estimates what the optimisation of an image of a height and width takes.
fn check(
    frame: (usize, usize),
    max_size: Option<u32>,
    free: FreeMemory,
    bytes: impl Fn((usize, usize)) -> usize,
) -> Result<(), Shortage> {
    let needed = bytes(fit(frame, max_size));
    if needed <= free.bytes {
        return Ok(());
    }
    let bytes_at = |side: u32| bytes(fit(frame, Some(side)));
    let (h, w) = fit(frame, max_size);
    // Bisection for the largest side that fits: it is in fits..fails.
    let (mut fits, mut fails) = (0, h.max(w) as u32);
    while fails - fits > 1 {
        let side = fits + (fails - fits) / 2;
        match bytes_at(side) <= free.bytes {
            true => fits = side,
            false => fails = side,
        }
    }
    Err(Shortage {
        frame,
        needed,
        free,
        fitting: (fits > 0).then_some(fits),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes((h, w): (usize, usize)) -> usize {
        1000 + 10 * h * w
    }

    fn memory(bytes: usize) -> FreeMemory {
        let kind = MemoryKind::Machine;
        FreeMemory { bytes, kind }
    }

    #[test]
    fn frames_that_fit_are_accepted() {
        let enough = bytes((1080, 1920));
        let free = memory(enough);
        assert_eq!(check((1080, 1920), None, free, bytes), Ok(()));
        assert_eq!(check((2160, 3840), Some(1920), free, bytes), Ok(()));
        assert!(check((1080, 1920), None, memory(enough - 1), bytes).is_err());
    }

    #[test]
    fn the_largest_size_that_fits_is_named() {
        for (frame, max_size) in [
            ((1080, 1920), None),
            ((2160, 3840), Some(2000)),
            ((1, 9000), None),
        ] {
            let free = memory(40_000);
            let shortage = check(frame, max_size, free, bytes).unwrap_err();
            let side = shortage.fitting.unwrap();
            assert!(bytes(fit(frame, Some(side))) <= free.bytes);
            assert!(bytes(fit(frame, Some(side + 1))) > free.bytes);
            assert!(check(frame, Some(side), free, bytes).is_ok());
        }
    }

    #[test]
    fn the_message_says_what_would_fit() {
        let shortage = check((480, 640), Some(512), memory(500), bytes).unwrap_err();
        assert_eq!(
            shortage.to_string(),
            "frames of 640x480 take about 2 MiB of memory, of which 1 MiB are free; \
             no max-size would fit"
        );
        let gpu = FreeMemory {
            bytes: 1 << 20,
            kind: MemoryKind::Gpu,
        };
        let shortage = check((480, 640), Some(512), gpu, bytes).unwrap_err();
        assert!(shortage.to_string().contains("of the GPU's memory"));
        assert!(
            shortage.to_string().ends_with("max-size=373 would fit"),
            "{shortage}"
        );
    }
}
