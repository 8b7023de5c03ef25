// SPDX-License-Identifier: MPL-2.0

//! One frame's journey: scaled down, stripped of its colours where they are to stay, optimised from
//! what the frames before it became, and brought back.

mod canvas;
pub mod color;
pub mod config;
pub mod device;
pub mod memory;
pub mod motion;
pub mod objective;
pub mod optimizer;
pub mod resize;
pub mod style;

use crate::ops::transfer::Transfer;
use crate::vgg::{self, Cancel, Vgg};
use candle_core::{Device, Tensor};
use canvas::{Canvas, Scene, Settling};
use config::{Color, Config, ConfigError, Init};
use motion::Motion;
use motion::pyramid::Pyramid;
use objective::{LossWeights, Losses, Objective};
use optimizer::{Budget, Outcome, Reason};
use rayon::ThreadPool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use style::StyleImage;

/// Why a frame was not stylised.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the threads cannot be started: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    #[error("{0}")]
    Memory(memory::Shortage),
    #[error(transparent)]
    Network(vgg::Error),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<vgg::Error> for Error {
    fn from(error: vgg::Error) -> Self {
        match error {
            vgg::Error::Cancelled => Self::Cancelled,
            overflow @ vgg::Error::Overflow(_) => Self::Network(overflow),
            vgg::Error::Tensor(error) => Self::Tensor(error),
        }
    }
}

/// What was done for a frame.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub iterations: u32,
    /// None where the frame shows the result of the one before.
    pub reason: Option<Reason>,
    /// At the image that the frame started from.
    pub initial: Losses,
    /// At the image that was made of it.
    pub losses: Losses,
    /// Whether the frame is the first of a new scene.
    pub scene_cut: bool,
    /// What of the frame's time went into finding what moved and moving it.
    pub motion_time: Duration,
}

/// Images on the device beside the optimiser's: what is optimised, a frame, a start, and what pixels
/// are held to.
const IMAGES: usize = 6;

/// Turns frames into paintings, one after the other.
pub struct Stylizer {
    vgg: Arc<Vgg>,
    style: StyleImage,
    config: Config,
    threads: Arc<ThreadPool>,
    canvas: Option<Canvas>,
    transfer: Transfer,
    /// The last result in the frame's size, and its losses.
    shown: Option<(Tensor, Losses)>,
    /// Frames since the last reset or scene cut.
    frames: u64,
    motion: Option<Box<Motion>>,
}

impl Stylizer {
    /// A stylizer that paints in the manner of `style`.
    pub fn new(vgg: Arc<Vgg>, style: StyleImage, config: Config) -> Result<Self, Error> {
        config.validate(&vgg)?;
        Ok(Self {
            threads: threads(&config)?,
            vgg,
            style,
            config,
            canvas: None,
            transfer: Transfer::default(),
            shown: None,
            frames: 0,
            motion: None,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that the network is on.
    pub fn device(&self) -> &Device {
        self.vgg.device()
    }

    pub fn vgg(&self) -> &Vgg {
        &self.vgg
    }

    /// How the last frame moved since the one painted before it, if that was looked at.
    pub fn motion(&self) -> Option<&Motion> {
        self.motion.as_deref()
    }

    /// Takes other settings, from the next frame on; refused ones change nothing.
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        config.validate(&self.vgg)?;
        if config == self.config {
            return Ok(());
        }
        let before = &self.config;
        let threads = match config.n_threads == before.n_threads {
            true => self.threads.clone(),
            false => threads(&config)?,
        };
        if let Some(canvas) = &mut self.canvas {
            if before.optimizer == config.optimizer {
                canvas.optimizer.configure(&config);
            } else {
                canvas.renew_optimizer(&config)?;
            }
            canvas.settling = Settling::default();
            canvas.comparable &= before.color == config.color;
            let same_network = before.pooling == config.pooling
                && before.content_layers == config.content_layers
                && before.style_layers == config.style_layers;
            let same_style =
                before.style_scale == config.style_scale && before.color == config.color;
            if !same_network || !same_style {
                canvas.objective = None;
            }
        }
        (self.threads, self.config) = (threads, config);
        Ok(())
    }

    /// Paints in the manner of another image from the next frame on.
    pub fn set_style(&mut self, style: StyleImage) {
        self.style = style;
        if let Some(canvas) = &mut self.canvas {
            canvas.objective = None;
            canvas.settling = Settling::default();
        }
    }

    /// Forgets the frames that were: the next one is a first one.
    pub fn reset(&mut self) {
        self.shown = None;
        self.frames = 0;
        self.motion = None;
        if let Some(canvas) = &mut self.canvas {
            canvas.forget();
        }
    }

    /// Makes a painting of a frame `[h, w, 3]`, RGB 0..1 on the CPU; what comes back has the same
    /// form. Ends with [`Error::Cancelled`] before the next layer once `cancel` says so.
    pub fn stylize(&mut self, frame: &Tensor, cancel: Cancel) -> Result<(Tensor, Report), Error> {
        let (h, w, _) = frame.dims3()?;
        let stylized = self.threads.clone().install(|| {
            let size = resize::fit((h, w), self.config.max_size);
            let mut content = resize::pad(&resize::resize(frame, size)?)?;
            let pyramid = Pyramid::new(&content)?;
            if self.config.color == Color::Content {
                content = color::grey(&content)?;
            }
            let mut canvas = self.canvas(size, &content)?;
            let painted = self.paint(&mut canvas, content, pyramid, cancel);
            if painted.is_err() {
                canvas.forget();
            }
            let canvas = self.canvas.insert(canvas);
            let report = painted?;
            let image = match &self.shown {
                Some((image, _)) if report.reason.is_none() && image.dims() == frame.dims() => {
                    image.clone()
                }
                _ => {
                    let result = resize::resize(&resize::crop(&canvas.result, size)?, (h, w))?;
                    match self.config.color {
                        Color::Style => result,
                        Color::Content => color::with_chrominance(&result, frame)?,
                    }
                }
            };
            self.shown = Some((image.clone(), report.losses));
            Ok((image, report))
        });
        stylized.map_err(|error| self.explained(error, (h, w)))
    }

    /// Whether frames of a height and width fit into what is free of a GPU's memory, about.
    pub fn check_memory(&self, frame: (usize, usize)) -> Result<(), Error> {
        let size = resize::fit(frame, self.config.max_size);
        match &self.canvas {
            Some(canvas) if canvas.size == size => Ok(()),
            _ => self.compare_memory(frame),
        }
    }

    fn compare_memory(&self, frame: (usize, usize)) -> Result<(), Error> {
        match device::free_bytes(self.device())? {
            Some(free) => {
                // An earlier canvas makes room.
                let earlier = self.canvas.as_ref().filter(|it| it.objective.is_some());
                let free = free + earlier.map_or(0, |it| self.bytes(it.size));
                memory::check(frame, self.config.max_size, free, |size| self.bytes(size))
                    .map_err(Error::Memory)
            }
            None => Ok(()),
        }
    }

    /// An error, or what would have fitted where the GPU's memory ran out.
    fn explained(&self, error: Error, frame: (usize, usize)) -> Error {
        let ran_out = match &error {
            Error::Tensor(cause) => cause.to_string().contains("OUT_OF_MEMORY"),
            _ => false,
        };
        if !ran_out {
            return error;
        }
        // Else the pool keeps what the frame had so far from all that takes memory elsewhere.
        device::give_back_memory(self.device());
        self.compare_memory(frame).err().unwrap_or(error)
    }

    /// What the optimisation of an image of a height and width takes of the device's memory, about.
    fn bytes(&self, (h, w): (usize, usize)) -> usize {
        let config = &self.config;
        let (content_layers, style_layers) = (&config.content_layers, &config.style_layers);
        let objective = Objective::bytes(&self.vgg, (h, w), content_layers, style_layers);
        let (style_h, style_w) = self.style.size(h.max(w), config.style_scale);
        let deepest = style_layers.deepest();
        let style = self.vgg.feature_bytes(style_h, style_w, deepest);
        let images = optimizer::image_count(config) + IMAGES;
        objective + style + images * h * w * 3 * size_of::<f32>() + device::scratch_bytes((h, w))
    }

    /// The canvas for a size, taken out of `self`.
    fn canvas(&mut self, size: (usize, usize), content: &Tensor) -> Result<Canvas, Error> {
        match self.canvas.take() {
            Some(canvas) if canvas.size == size => Ok(canvas),
            earlier => {
                let mut canvas = Canvas::new(size, content, self.vgg.device(), &self.config)?;
                if let Some(earlier) = earlier {
                    canvas.continue_from(&earlier, &self.config)?;
                }
                Ok(canvas)
            }
        }
    }

    /// Makes a painting of a frame's content on the canvas.
    fn paint(
        &mut self,
        canvas: &mut Canvas,
        content: Tensor,
        pyramid: Pyramid,
        cancel: Cancel,
    ) -> Result<Report, Error> {
        self.motion = None;
        let mut watch = Watch::start();
        let deadline = self
            .config
            .time_budget
            .and_then(|budget| watch.begun.checked_add(budget));
        let interval = u64::from(self.config.frame_interval);
        let due = self.frames.is_multiple_of(interval);
        let shown = self.transfer.upload(&content, self.vgg.device())?;
        let scene = canvas.look(&pyramid, due, &self.config);
        if cancel() {
            return Err(Error::Cancelled);
        }
        let first = matches!(scene, Scene::First | Scene::Cut);
        if first {
            canvas.forget();
            self.frames = 0;
        }
        self.frames += 1;
        let still = matches!(scene, Scene::Still);
        let done = still && canvas.settling.done;
        if let Some((_, losses)) = self.shown
            && !first
            && (done || !due)
        {
            return Ok(Report {
                iterations: 0,
                reason: None,
                initial: losses,
                losses,
                scene_cut: false,
                motion_time: watch.lap(),
            });
        }

        let previous = self.config.init == Init::Previous;
        if first || !previous {
            // What the optimiser learned is of another image.
            canvas.renew_optimizer(&self.config)?;
        }
        let start = canvas.start(&content, &pyramid, &scene, &self.config)?;
        let target = canvas.set_start(start, &mut self.transfer)?;
        let motion_time = watch.lap();
        let budget = Budget {
            iterations: match first {
                true => self.config.initial_iterations,
                false => self.config.iterations,
            },
            deadline,
        };
        // A still picture's content is that which its painting was begun with.
        let shown = match still {
            true => self.transfer.upload(&canvas.content, self.vgg.device())?,
            false => shown,
        };
        let outcome = self.optimize(canvas, &shown, target, budget, cancel)?;
        watch.lap();
        canvas.result = self.transfer.download(&canvas.image)?;
        canvas.keep(content, pyramid, &scene, &outcome, &self.config)?;
        let motion_time = motion_time + watch.lap();
        let scene_cut = matches!(scene, Scene::Cut);
        self.motion = match scene {
            Scene::Moving(motion) => motion,
            _ => None,
        };
        Ok(Report {
            iterations: outcome.iterations,
            reason: Some(match still && previous && canvas.settling.done {
                true => Reason::Converged,
                false => outcome.reason,
            }),
            initial: outcome.initial,
            losses: outcome.best,
            scene_cut,
            motion_time,
        })
    }

    /// Takes the image on the canvas to the best one found for `content`.
    fn optimize(
        &self,
        canvas: &mut Canvas,
        content: &Tensor,
        target: Option<Tensor>,
        budget: Budget,
        cancel: Cancel,
    ) -> Result<Outcome, Error> {
        let objective = match &mut canvas.objective {
            Some(objective) => objective,
            none => none.insert(self.objective(content, cancel)?),
        };
        objective.set_content(content, cancel)?;
        objective.set_temporal(target)?;
        let weights = LossWeights::from(&self.config);
        let optimizer = &mut canvas.optimizer;
        Ok(
            optimizer.minimize(&canvas.image, budget, &mut |image, gradient| {
                objective.evaluate(image, weights, gradient, cancel)
            })?,
        )
    }

    /// The objective for images of the shape of `content`, without its content.
    fn objective(&self, content: &Tensor, cancel: Cancel) -> Result<Objective, Error> {
        let (h, w, _) = content.dims3()?;
        let Config {
            content_layers,
            style_layers,
            pooling,
            ..
        } = &self.config;
        let mut objective = Objective::new(
            self.vgg.clone(),
            (h, w),
            content_layers,
            style_layers,
            *pooling,
        )?;
        let mut style = self.style.tensor(h.max(w), self.config.style_scale)?;
        if self.config.color == Color::Content {
            style = color::grey(&style)?;
        }
        objective.set_style(&style.to_device(self.vgg.device())?, cancel)?;
        Ok(objective)
    }
}

impl Drop for Stylizer {
    fn drop(&mut self) {
        self.canvas = None;
        device::give_back_memory(self.vgg.device());
    }
}

/// Says how long each stage of a frame took.
struct Watch {
    begun: Instant,
    lap: Instant,
}

impl Watch {
    fn start() -> Self {
        let begun = Instant::now();
        Self { begun, lap: begun }
    }

    /// The time since the last lap.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.lap, now)
    }
}

fn threads(config: &Config) -> Result<Arc<ThreadPool>, Error> {
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(config.n_threads as usize)
        .thread_name(|index| format!("gatys-{index}"))
        .build()?;
    Ok(Arc::new(threads))
}
