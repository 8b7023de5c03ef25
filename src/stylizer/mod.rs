// SPDX-License-Identifier: MPL-2.0

//! One frame's journey: it is scaled down, made grey if it is to keep its colours, optimised,
//! starting from the results of the frames before it, and scaled back.

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
use crate::threads;
use crate::vgg::{self, Cancel, Vgg};
use candle_core::{Device, Tensor};
use canvas::{Canvas, PreparedFrame, Scene};
use color::Statistics;
use config::{Color, Config, ConfigError, Init};
use motion::Motion;
use motion::pyramid::Pyramid;
use objective::{LossWeights, Losses, Objective};
use optimizer::{Budget, Outcome, Reason};
use rayon::ThreadPool;
use std::sync::Arc;
use std::time::{Duration, Instant};
use style::StyleImage;

/// Why a stylizer could not be made or changed, or a frame was not stylised.
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
            overflow @ vgg::Error::Overflow(..) => Self::Network(overflow),
            vgg::Error::Tensor(error) => Self::Tensor(error),
        }
    }
}

/// What was done for a frame.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Evaluations of the objective; 0 if the last result was repeated.
    pub iterations: u32,
    /// Why the optimisation stopped; None if the last result was repeated.
    pub reason: Option<Reason>,
    /// At the image that the frame started from.
    pub initial: Losses,
    /// At the result.
    pub losses: Losses,
    /// Whether the frame is the first of a new scene.
    pub scene_cut: bool,
    /// Whether the objective was made for this frame, which takes longer: as it is for the first one, and after
    /// a change of the optimised size, the style image or its scale, the layers, the pooling or the colours.
    pub sets_up: bool,
    /// The frame's time from when it has been resized until its start is set, and from the end of its
    /// optimisation until it is remembered: estimating the motion, moving the last result along it,
    /// the transfers to and from a GPU, setting up the canvas and, in the first frame of a scene, the
    /// colours of the style. Neither the optimisation nor resizing is part of it.
    pub motion_time: Duration,
}

impl Report {
    fn repeated(losses: Losses, motion_time: Duration) -> Self {
        Self {
            iterations: 0,
            reason: None,
            initial: losses,
            losses,
            scene_cut: false,
            sets_up: false,
            motion_time,
        }
    }
}

/// Turns frames into paintings, one after the other.
pub struct Stylizer {
    vgg: Arc<Vgg>,
    style: StyleImage,
    config: Config,
    thread_pool: Arc<ThreadPool>,
    /// The height and width of the frames in use, once they are known.
    frame_size: Option<(usize, usize)>,
    canvas: Option<Canvas>,
    transfer: Transfer,
    /// The last output, in the size of its frame, and its losses.
    last_output: Option<(Tensor, Losses)>,
    /// The number of frames since the last reset or scene cut.
    frames_in_scene: u64,
    motion: Option<Box<Motion>>,
}

impl Stylizer {
    /// A stylizer that paints in the manner of `style`.
    ///
    /// # Errors
    /// With settings that are invalid or name layers that the network lacks, or if its threads cannot be started.
    pub fn new(vgg: Arc<Vgg>, style: StyleImage, config: Config) -> Result<Self, Error> {
        config.validate(&vgg)?;
        Ok(Self {
            thread_pool: thread_pool(&config)?,
            vgg,
            style,
            config,
            frame_size: None,
            canvas: None,
            transfer: Transfer::default(),
            last_output: None,
            frames_in_scene: 0,
            motion: None,
        })
    }

    /// The settings in use.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device that the network is on.
    pub fn device(&self) -> &Device {
        self.vgg.device()
    }

    /// The network in use.
    pub fn vgg(&self) -> &Arc<Vgg> {
        &self.vgg
    }

    /// The threads that paint, for the work before and after it.
    pub fn thread_pool(&self) -> &ThreadPool {
        &self.thread_pool
    }

    /// The motion of the last frame since the one painted before it, if it was estimated.
    pub fn motion(&self) -> Option<&Motion> {
        self.motion.as_deref()
    }

    /// Whether the frame that comes after `others` ones is due to be painted if they begin no scene; the last
    /// result is repeated for one that is not.
    pub fn is_due(&self, others: u64) -> bool {
        let interval = u64::from(self.config.frame_interval);
        (self.frames_in_scene + others).is_multiple_of(interval)
    }

    /// Takes the height and width of the frames that follow, and returns those before. Changes are checked
    /// for them from here on.
    pub fn replace_frame_size(&mut self, frame: Option<(usize, usize)>) -> Option<(usize, usize)> {
        std::mem::replace(&mut self.frame_size, frame)
    }

    /// Applies other settings from the next frame on. Invalid ones, and those with which frames of the
    /// size in use would not fit into memory, change nothing.
    pub fn set_config(&mut self, config: Config) -> Result<(), Error> {
        config.validate(&self.vgg)?;
        if config == self.config {
            return Ok(());
        }
        let before = &self.config;
        let same_network = before.pooling == config.pooling
            && before.content_layers == config.content_layers
            && before.style_layers == config.style_layers;
        let same_style = before.style_scale == config.style_scale && before.color == config.color;
        if config.with_memory_of(before) != config {
            self.check_change(&config, &self.style)?;
        }
        let thread_pool = match config.n_threads == before.n_threads {
            true => self.thread_pool.clone(),
            false => thread_pool(&config)?,
        };
        if let Some(canvas) = &mut self.canvas {
            match &mut canvas.optimizer {
                Some(optimizer) if optimizer::same(before, &config) => optimizer.configure(&config),
                other => *other = None,
            }
            canvas.may_be_still &= before.color == config.color;
            match same_network && same_style {
                true => canvas.settings_changed(),
                false => canvas.forget_style(),
            }
        }
        (self.thread_pool, self.config) = (thread_pool, config);
        Ok(())
    }

    /// Takes another style image from the next frame on. One with which frames of the size in use would
    /// not fit into memory changes nothing.
    pub fn set_style(&mut self, style: StyleImage) -> Result<(), Error> {
        self.check_change(&self.config, &style)?;
        self.style = style;
        if let Some(canvas) = &mut self.canvas {
            canvas.forget_style();
        }
        Ok(())
    }

    /// Drops the state of earlier frames: the next one is a first one.
    pub fn reset(&mut self) {
        self.last_output = None;
        self.frames_in_scene = 0;
        self.motion = None;
        if let Some(canvas) = &mut self.canvas {
            canvas.reset();
        }
    }

    /// Paints a frame, an f32 tensor `[h, w, 3]` in the CPU's memory; the result has the same form. Values
    /// are the video's own non-linear R'G'B', 0..1. Runs in the stylizer's own rayon pool.
    ///
    /// # Errors
    /// [`Error::Cancelled`] once `cancel` returns true. It is asked before every layer; where a GPU replays a
    /// CUDA graph, only before the evaluation that the graph is of. Others if the frame has another form, does
    /// not fit into memory, or the device fails.
    pub fn stylize(&mut self, frame: &Tensor, cancel: Cancel) -> Result<(Tensor, Report), Error> {
        let (h, w, _) = frame.dims3()?;
        self.replace_frame_size(Some((h, w)));
        let thread_pool = self.thread_pool.clone();
        let stylized = thread_pool.install(|| self.stylize_in_pool(frame, cancel));
        stylized.map_err(|error| self.explain_out_of_memory(error, (h, w)))
    }

    fn stylize_in_pool(
        &mut self,
        frame: &Tensor,
        cancel: Cancel,
    ) -> Result<(Tensor, Report), Error> {
        let started = Instant::now();
        let (h, w, _) = frame.dims3()?;
        self.check_memory((h, w))?;
        let size = resize::fit((h, w), self.config.max_size);
        let mut content = resize::pad(&resize::resize(frame, size)?)?;
        let resized = Instant::now();
        let pyramid = Pyramid::new(&content)?;
        if self.config.color == Color::Content {
            content = color::grey(&content)?;
        }
        let mut canvas = self.take_canvas((h, w), size, &content)?;
        let frame_to_paint = PreparedFrame { content, pyramid };
        let painted = self.paint(&mut canvas, frame_to_paint, [started, resized], cancel);
        if painted.is_err() {
            canvas.reset();
        }
        let canvas = self.canvas.insert(canvas);
        let report = painted?;
        let image = match &self.last_output {
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
        self.last_output = Some((image.clone(), report.losses));
        Ok((image, report))
    }

    /// Takes the canvas out of `self`, or makes one if there is none of this size.
    fn take_canvas(
        &mut self,
        frame: (usize, usize),
        size: (usize, usize),
        content: &Tensor,
    ) -> Result<Canvas, Error> {
        match self.canvas.take() {
            Some(mut canvas) if canvas.size == size => {
                canvas.frame = frame;
                Ok(canvas)
            }
            other => {
                // Frees the tensors of that size first.
                let last = other.and_then(Canvas::into_last_painted);
                let mut canvas = Canvas::new(frame, size, content, self.vgg.device())?;
                if let Some(last) = last {
                    canvas.continue_from(&last, &self.config)?;
                }
                Ok(canvas)
            }
        }
    }

    /// Paints a frame on the canvas, unless the last result is to be repeated. Its stylisation started
    /// at `started`, and it had its size at `resized`.
    fn paint(
        &mut self,
        canvas: &mut Canvas,
        frame: PreparedFrame,
        [started, resized]: [Instant; 2],
        cancel: Cancel,
    ) -> Result<Report, Error> {
        self.motion = None;
        let due = self.is_due(0);
        // A GPU takes the content while the CPU estimates the motion.
        let mut content = self.transfer.upload(&frame.content, self.vgg.device())?;
        let scene = canvas.classify(&frame.pyramid, due, &self.config);
        if cancel() {
            return Err(Error::Cancelled);
        }
        if scene.begins() {
            self.begin_scene(canvas, &frame.content)?;
        }
        self.frames_in_scene += 1;
        if let Some(losses) = self.repeatable(canvas, &scene, due) {
            return Ok(Report::repeated(losses, resized.elapsed()));
        }
        self.prepare_optimizer(canvas, &scene)?;
        let temporal_target = canvas.set_start(&frame, &scene, &self.config, &mut self.transfer)?;
        canvas.keeps_objective = temporal_target.is_none();
        let mut motion_time = resized.elapsed();
        if scene.is_still() {
            // The painting goes on towards the content that it was begun with, without new noise.
            content = self.transfer.upload(&canvas.content, self.vgg.device())?;
        }
        let sets_up = canvas.objective.is_none();
        let budget = self.budget(scene.begins(), started);
        let outcome = self.optimize(canvas, &content, temporal_target, budget, cancel)?;
        let optimized = Instant::now();
        canvas.result = self.transfer.download(&canvas.image)?;
        canvas.remember(frame, &scene, &outcome, &self.config);
        motion_time += optimized.elapsed();
        let scene_cut = matches!(scene, Scene::Cut);
        let reason = match self.config.init {
            Init::Previous if scene.is_still() && canvas.still_convergence.reached => {
                Reason::Converged
            }
            _ => outcome.reason,
        };
        if let Scene::Moving(motion) = scene {
            self.motion = motion;
        }
        Ok(Report {
            iterations: outcome.iterations,
            reason: Some(reason),
            initial: outcome.initial,
            losses: outcome.best,
            scene_cut,
            sets_up,
            motion_time,
        })
    }

    /// Forgets the frames before the one with this content, and looks at the colours of the style
    /// image if it is to start in them.
    fn begin_scene(&mut self, canvas: &mut Canvas, content: &Tensor) -> candle_core::Result<()> {
        canvas.reset();
        self.frames_in_scene = 0;
        if self.config.init == Init::Previous && canvas.style_colors.is_none() {
            let style = self.style_tensor(content)?;
            canvas.style_colors = Some(Statistics::of(&style)?);
        }
        Ok(())
    }

    /// The losses of the last result if it is to be repeated for a frame.
    fn repeatable(&self, canvas: &Canvas, scene: &Scene, due: bool) -> Option<Losses> {
        let finished = scene.is_still() && canvas.still_convergence.reached;
        let (_, losses) = self.last_output.as_ref()?;
        (!scene.begins() && (finished || !due)).then_some(*losses)
    }

    /// Has the optimiser keep of what it learnt what suits the next frame.
    fn prepare_optimizer(&self, canvas: &mut Canvas, scene: &Scene) -> candle_core::Result<()> {
        let Some(optimizer) = &mut canvas.optimizer else {
            return Ok(());
        };
        if scene.begins() || self.config.init != Init::Previous {
            // The curvature and moments seen so far are those of another image.
            optimizer.reset()
        } else if scene.is_still() && canvas.keeps_objective {
            Ok(())
        } else {
            optimizer.next_objective()
        }
    }

    /// The budget of a frame whose stylisation started at `started`.
    fn budget(&self, first: bool, started: Instant) -> Budget {
        let time_budget = self.config.time_budget;
        Budget {
            iterations: match first {
                true => self.config.initial_iterations,
                false => self.config.iterations,
            },
            deadline: time_budget.and_then(|budget| started.checked_add(budget)),
        }
    }

    /// Optimises the image on the canvas for `content`, on the network's device.
    fn optimize(
        &self,
        canvas: &mut Canvas,
        content: &Tensor,
        temporal_target: Option<Tensor>,
        budget: Budget,
        cancel: Cancel,
    ) -> Result<Outcome, Error> {
        let objective = match &mut canvas.objective {
            Some(objective) => objective,
            none => none.insert(self.objective(content, cancel)?),
        };
        objective.set_content(content, cancel)?;
        objective.set_temporal(temporal_target)?;
        let weights = LossWeights::from(&self.config);
        let optimizer = match &mut canvas.optimizer {
            Some(optimizer) => optimizer,
            none => none.insert(optimizer::optimizer(&canvas.image, &self.config)?),
        };
        Ok(
            optimizer.minimize(&canvas.image, budget, &mut |image, gradient| {
                objective.evaluate(image, weights, gradient, cancel)
            })?,
        )
    }

    /// The objective for images of the shape of `content`. Its content is yet to be set.
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
        let style = self.style_tensor(content)?;
        objective.set_style(&style.to_device(self.vgg.device())?, cancel)?;
        Ok(objective)
    }

    /// The style image `[h, w, 3]` for images of the shape of `content`, on the CPU.
    fn style_tensor(&self, content: &Tensor) -> candle_core::Result<Tensor> {
        let (h, w, _) = content.dims3()?;
        let Config {
            style_scale, color, ..
        } = self.config;
        self.style.tensor(h.max(w), style_scale, color)
    }
}

impl Drop for Stylizer {
    fn drop(&mut self) {
        self.canvas = None;
        memory::free::give_back_memory(self.vgg.device());
    }
}

fn thread_pool(config: &Config) -> Result<Arc<ThreadPool>, Error> {
    let builder = threads::pool(config.n_threads);
    let builder = builder.thread_name(|index| format!("gatys-{index}"));
    Ok(Arc::new(builder.build()?))
}
