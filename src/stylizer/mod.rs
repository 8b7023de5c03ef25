// SPDX-License-Identifier: MPL-2.0

//! One frame's journey, in the order of these modules: scaled down, stripped of its colours where
//! they are to stay, optimised, and brought back.

pub mod color;
pub mod config;
pub mod device;
pub mod motion;
pub mod objective;
pub mod optimizer;
pub mod resize;
pub mod style;

use crate::ops::elementwise::copy;
use crate::vgg::{self, Cancel, Vgg};
use candle_core::{Device, Tensor};
use config::{Color, Config, ConfigError, Init};
use objective::{Balance, Losses, Objective};
use optimizer::{Budget, Optimizer, Reason};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rayon::ThreadPool;
use std::sync::Arc;
use std::time::Instant;
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
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl From<vgg::Error> for Error {
    fn from(error: vgg::Error) -> Self {
        match error {
            vgg::Error::Cancelled => Self::Cancelled,
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
}

/// Turns frames into paintings, one after the other.
pub struct Stylizer {
    vgg: Arc<Vgg>,
    style: StyleImage,
    config: Config,
    threads: Arc<ThreadPool>,
    canvas: Option<Canvas>,
    /// The last result in the frame's size, and its losses.
    shown: Option<(Tensor, Losses)>,
    /// Frames since the last reset.
    frames: u64,
}

/// What lasts from frame to frame for one size.
struct Canvas {
    /// What is optimised, before padding.
    size: (usize, usize),
    /// The image that is optimised, `[h, w, 3]` on the network's device.
    image: Tensor,
    /// Whether `image` is the result of a frame.
    painted: bool,
    /// That frame, of the same shape.
    content: Tensor,
    /// None where what it is made from has changed.
    objective: Option<Objective>,
    optimizer: Box<dyn Optimizer>,
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
            shown: None,
            frames: 0,
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

    /// Takes other settings, from the next frame on; refused ones change nothing.
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        config.validate(&self.vgg)?;
        if config.n_threads != self.config.n_threads {
            self.threads = threads(&config)?;
        }
        let before = std::mem::replace(&mut self.config, config);
        let config = &self.config;
        if let Some(canvas) = &mut self.canvas {
            if before.optimizer == config.optimizer {
                canvas.optimizer.configure(config);
            } else {
                canvas.optimizer = optimizer::optimizer(&canvas.image, config)?;
            }
            let same_network = before.pooling == config.pooling
                && before.content_layers == config.content_layers
                && before.style_layers == config.style_layers;
            let same_style =
                before.style_scale == config.style_scale && before.color == config.color;
            if !same_network || !same_style {
                canvas.objective = None;
            }
        }
        Ok(())
    }

    /// Paints in the manner of another image from the next frame on.
    pub fn set_style(&mut self, style: StyleImage) {
        self.style = style;
        if let Some(canvas) = &mut self.canvas {
            canvas.objective = None;
        }
    }

    /// Forgets the frames that were: the next one is a first one.
    pub fn reset(&mut self) {
        self.shown = None;
        self.frames = 0;
        if let Some(canvas) = &mut self.canvas {
            canvas.painted = false;
        }
    }

    /// Makes a painting of a frame `[h, w, 3]`, RGB 0..1 on the CPU; what comes back has the same
    /// form. Ends with [`Error::Cancelled`] before the next layer once `cancel` says so.
    pub fn stylize(&mut self, frame: &Tensor, cancel: Cancel) -> Result<(Tensor, Report), Error> {
        let due = self
            .frames
            .is_multiple_of(self.config.frame_interval.into());
        self.frames += 1;
        match &self.shown {
            Some((image, losses)) if !due && image.dims() == frame.dims() => {
                let report = Report {
                    iterations: 0,
                    reason: None,
                    initial: *losses,
                    losses: *losses,
                };
                Ok((image.clone(), report))
            }
            _ => self.threads.clone().install(|| self.paint(frame, cancel)),
        }
    }

    fn paint(&mut self, frame: &Tensor, cancel: Cancel) -> Result<(Tensor, Report), Error> {
        let deadline = self
            .config
            .time_budget
            .and_then(|budget| Instant::now().checked_add(budget));
        let (h, w, _) = frame.dims3()?;
        let size = resize::fit((h, w), self.config.max_size);
        let mut content = resize::pad(&resize::resize(frame, size)?)?;
        if self.config.color == Color::Content {
            content = color::grey(&content)?;
        }
        let content = content.to_device(self.vgg.device())?;
        let mut canvas = self.prepare(size, &content, cancel)?;

        let budget = Budget {
            iterations: match canvas.painted {
                true => self.config.iterations,
                false => self.config.initial_iterations,
            },
            deadline,
        };
        self.set_start(&canvas, &content)?;
        let optimized = self.optimize(&mut canvas, &content, budget, cancel);
        canvas.painted = optimized.is_ok();
        canvas.content = content;
        let canvas = self.canvas.insert(canvas);
        let report = optimized?;
        let result = resize::resize(
            &resize::crop(&canvas.image.to_device(&Device::Cpu)?, size)?,
            (h, w),
        )?;
        let result = match self.config.color {
            Color::Style => result,
            Color::Content => color::with_chrominance(&result, frame)?,
        };
        self.shown = Some((result.clone(), report.losses));
        Ok((result, report))
    }

    /// The canvas for a size, with the objective's style set, taken out of `self`.
    fn prepare(
        &mut self,
        size: (usize, usize),
        content: &Tensor,
        cancel: Cancel,
    ) -> Result<Canvas, Error> {
        let mut canvas = match self.canvas.take() {
            Some(mut canvas) if canvas.size == size => {
                if !canvas.painted {
                    // What it learned belongs to the frames before the reset.
                    canvas.optimizer = optimizer::optimizer(&canvas.image, &self.config)?;
                }
                canvas
            }
            earlier => {
                let earlier = earlier.filter(|canvas| canvas.painted);
                let (image, earlier_content) = match &earlier {
                    Some(earlier) => {
                        let scaled = |image: &Tensor| {
                            let image =
                                resize::crop(&image.to_device(&Device::Cpu)?, earlier.size)?;
                            resize::pad(&resize::resize(&image, size)?)?.to_device(content.device())
                        };
                        (scaled(&earlier.image)?, scaled(&earlier.content)?)
                    }
                    None => (content.copy()?, content.clone()),
                };
                Canvas {
                    size,
                    optimizer: optimizer::optimizer(&image, &self.config)?,
                    image,
                    painted: earlier.is_some(),
                    content: earlier_content,
                    objective: None,
                }
            }
        };
        if canvas.objective.is_none() {
            canvas.objective = Some(self.objective(content, cancel)?);
        }
        Ok(canvas)
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

    /// Puts the image that the optimisation starts from onto the canvas.
    fn set_start(&self, canvas: &Canvas, content: &Tensor) -> Result<(), Error> {
        let noise = match self.config.init {
            // The paint, so the result less its frame, stays, and what is under it becomes this
            // frame. Left as it is, the last result may satisfy the content loss of deep layers
            // without ever showing what moved.
            Init::Previous if canvas.painted => {
                let change = (content - &canvas.content)?;
                let image = (&canvas.image + change)?.clamp(0f32, 1f32)?;
                return Ok(copy(&canvas.image, &image)?);
            }
            Init::Previous | Init::Content => self.config.noise,
            Init::Noise => 1.0,
        };
        if noise == 0.0 {
            return Ok(copy(&canvas.image, content)?);
        }
        let mut rng = StdRng::seed_from_u64(self.config.seed);
        let values = (0..content.elem_count())
            .map(|_| rng.random::<f32>())
            .collect();
        let random =
            Tensor::from_vec(values, content.shape(), &Device::Cpu)?.to_device(content.device())?;
        Ok(copy(
            &canvas.image,
            &((content * (1.0 - noise))? + (random * noise)?)?,
        )?)
    }

    fn optimize(
        &self,
        canvas: &mut Canvas,
        content: &Tensor,
        budget: Budget,
        cancel: Cancel,
    ) -> Result<Report, Error> {
        let Canvas {
            image,
            objective: Some(objective),
            optimizer,
            ..
        } = canvas
        else {
            return Err(candle_core::Error::Msg(
                "a canvas is prepared before it is painted".into(),
            )
            .into());
        };
        let balance = Balance::from(&self.config);
        objective.set_content(content, cancel)?;
        let outcome = optimizer.minimize(image, budget, &mut |image, gradient| {
            objective.evaluate(image, balance, gradient, cancel)
        })?;
        Ok(Report {
            iterations: outcome.iterations,
            reason: Some(outcome.reason),
            initial: outcome.initial,
            losses: outcome.best,
        })
    }
}

fn threads(config: &Config) -> Result<Arc<ThreadPool>, Error> {
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(config.n_threads as usize)
        .thread_name(|index| format!("gatys-{index}"))
        .build()?;
    Ok(Arc::new(threads))
}
