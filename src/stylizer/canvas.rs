// SPDX-License-Identifier: MPL-2.0

//! The state that is carried from frame to frame, for images of one size.

use super::color::{self, Statistics};
use super::config::{Color, Config, Init, MotionKind};
use super::motion::illumination::Illumination;
use super::motion::pyramid::Pyramid;
use super::motion::scene::cut_score;
use super::motion::still::is_still;
use super::motion::{FrameHistory, Frames, Motion, Start};
use super::objective::Objective;
use super::optimizer::{Optimizer, Outcome, Reason};
use super::resize;
use crate::ops::elementwise::copy;
use crate::ops::transfer::Transfer;
use candle_core::{Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The painting of a still picture has converged when its loss has fallen by at most the fraction
/// `STILL_TOLERANCE` over `STILL_ITERATIONS` iterations or more, counted across frames.
const STILL_TOLERANCE: f64 = 1e-3;
const STILL_ITERATIONS: u32 = 30;

/// A frame at the size that is optimised, padded, on the CPU.
pub struct PreparedFrame {
    /// `[h, w, 3]`, grey if the frame keeps its colours.
    pub content: Tensor,
    pub pyramid: Pyramid,
}

/// How a frame relates to the one painted last.
pub enum Scene {
    /// None was painted.
    First,
    /// The frame begins a new scene.
    Cut,
    /// It shows the same picture, but for noise.
    Still,
    /// It continues the scene; with its motion, if that was estimated.
    Moving(Option<Box<Motion>>),
}

impl Scene {
    /// Whether the frame goes on from no other.
    pub fn begins(&self) -> bool {
        matches!(self, Self::First | Self::Cut)
    }

    pub fn is_still(&self) -> bool {
        matches!(self, Self::Still)
    }
}

/// What a canvas of another size needs of the last one, on the CPU.
pub struct LastPainted {
    /// Height and width before padding.
    size: (usize, usize),
    content: Tensor,
    result: Tensor,
}

/// Whether the painting of a still picture has converged.
#[derive(Default)]
pub struct StillConvergence {
    /// The loss at the start of the window, and the iterations since.
    window: Option<(f64, u32)>,
    /// Whether it has, or more frames of it would be painted alike anyway.
    pub reached: bool,
}

impl StillConvergence {
    fn update(&mut self, outcome: &Outcome, config: &Config) {
        let (loss, iterations) = self.window.take().unwrap_or((outcome.initial.total, 0));
        let iterations = iterations + outcome.iterations;
        let stalled = loss - outcome.best.total <= STILL_TOLERANCE * loss;
        self.reached = config.init != Init::Previous
            || outcome.reason == Reason::Converged
            || (iterations >= STILL_ITERATIONS && stalled);
        self.window = (iterations < STILL_ITERATIONS).then_some((loss, iterations));
    }
}

/// The image that is optimised, and what the next frames need of the last ones. Images are
/// `[h, w, 3]`, RGB 0..1.
pub struct Canvas {
    /// Height and width of the last frame.
    pub frame: (usize, usize),
    /// Height and width of the optimised image before padding.
    pub size: (usize, usize),
    /// The image that is optimised, on the network's device.
    pub image: Tensor,
    /// None if it must be built anew, as after a change of the style or the layers.
    pub objective: Option<Objective>,
    /// The colours of the style image; None if they must be looked at anew.
    pub style_colors: Option<Statistics>,
    /// None if it must be made anew, as after a change to another one.
    pub optimizer: Option<Box<dyn Optimizer>>,
    /// The content of the frame painted last, on the CPU.
    pub content: Tensor,
    /// Its painting, on the CPU.
    pub result: Tensor,
    /// The frames painted last. If there are none, the next frame is a first one.
    history: FrameHistory,
    /// Whether the next frame may count as still. Not if `content` is that of another canvas or
    /// made with other colour settings.
    pub may_be_still: bool,
    pub still_convergence: StillConvergence,
    /// Whether a still frame would have the objective of the frame painted last. Not if that one had a
    /// temporal term, nor after a change of the settings or the style image.
    pub keeps_objective: bool,
}

impl Canvas {
    /// A canvas for `frame` and images of the shape of `content`, which have `size` before padding.
    pub fn new(
        frame: (usize, usize),
        size: (usize, usize),
        content: &Tensor,
        device: &Device,
    ) -> Result<Self> {
        Ok(Self {
            frame,
            size,
            image: content.to_device(device)?.copy()?,
            optimizer: None,
            objective: None,
            style_colors: None,
            content: content.clone(),
            result: content.clone(),
            history: FrameHistory::default(),
            may_be_still: false,
            still_convergence: StillConvergence::default(),
            keeps_objective: false,
        })
    }

    /// The last frame and its painting, if there are any. All else is freed.
    pub fn into_last_painted(self) -> Option<LastPainted> {
        self.history.latest()?;
        Some(LastPainted {
            size: self.size,
            content: self.content,
            result: self.result,
        })
    }

    /// Takes over the last frame and its painting from a canvas of another size.
    pub fn continue_from(&mut self, last: &LastPainted, config: &Config) -> Result<()> {
        let scaled = |image: &Tensor| {
            let image = resize::crop(image, last.size)?;
            resize::pad(&resize::resize(&image, self.size)?)
        };
        self.result = scaled(&last.result)?;
        self.content = scaled(&last.content)?;
        let pyramid = Pyramid::new(&self.content)?;
        let illumination = illumination(&pyramid, config);
        self.history.push(pyramid, illumination);
        Ok(())
    }

    /// Relates a frame to the one painted last. One that is not `due` to be painted is only
    /// examined for a cut.
    pub fn classify(&self, pyramid: &Pyramid, due: bool, config: &Config) -> Scene {
        let Some(last) = self.history.latest() else {
            return Scene::First;
        };
        if !due && config.scene_cut >= 1.0 {
            return Scene::Moving(None);
        }
        if self.may_be_still && config.skip_still && is_still(pyramid, last) {
            return Scene::Still;
        }
        if config.motion == MotionKind::None && config.scene_cut >= 1.0 {
            return Scene::Moving(None);
        }
        let motion = Motion::between(pyramid, last);
        let score = cut_score(pyramid, last, &motion.backward, &motion.forward);
        match config.scene_cut < 1.0 && score >= config.scene_cut {
            true => Scene::Cut,
            false => Scene::Moving(Some(Box::new(motion))),
        }
    }

    /// Puts the image that the optimisation of a frame starts from onto the canvas. Returns what the
    /// temporal term draws pixels to, and their weights, `[h, w, 4]`, on the network's device.
    pub fn set_start(
        &mut self,
        PreparedFrame { content, pyramid }: &PreparedFrame,
        scene: &Scene,
        config: &Config,
        transfer: &mut Transfer,
    ) -> Result<Option<Tensor>> {
        let previous = config.init == Init::Previous;
        let (image, temporal_target) = match scene {
            // The last frame's optimisation continues; a temporal term would only hold it back.
            Scene::Still => (Some(self.result.clone()), None),
            Scene::Moving(Some(motion))
                if config.motion == MotionKind::Flow
                    && (previous || config.temporal_weight > 0.0) =>
            {
                let frames = Frames {
                    now: content,
                    illumination: &illumination(pyramid, config),
                    before: &self.content,
                    painting: &self.result,
                };
                let start = Start::new(frames, pyramid, motion, &mut self.history)?;
                let target = match config.temporal_weight > 0.0 {
                    true => Some(Tensor::cat(&[&start.image, &start.confidence], 2)?),
                    false => None,
                };
                (Some(start.image), target)
            }
            // The difference of the result from its frame stays where it is, over the new frame.
            // The last result unchanged can satisfy the content loss of deep layers without ever
            // showing what moved.
            Scene::Moving(_) if previous => {
                let change = (content - &self.content)?;
                (Some((&self.result + change)?.clamp(0f32, 1f32)?), None)
            }
            Scene::Moving(_) | Scene::First | Scene::Cut => (None, None),
        };
        let image = match image.filter(|_| previous) {
            Some(image) => image,
            None => self.initial_image(content, config)?,
        };
        let device = self.image.device();
        copy(&self.image, &transfer.upload(&image, device)?)?;
        let target = temporal_target.map(|target| transfer.upload(&target, device));
        target.transpose()
    }

    /// What a frame starts from where no painting is before it, mixed with as much noise as the
    /// settings ask for.
    fn initial_image(&self, content: &Tensor, config: &Config) -> Result<Tensor> {
        let image = match (config.init, &self.style_colors) {
            // Without a style loss nothing asks for its colours.
            (Init::Previous, Some(style)) if config.beta > 0.0 => color::matched(content, style)?,
            _ => content.clone(),
        };
        let noise = match config.init {
            Init::Previous | Init::Content => config.noise,
            Init::Noise => 1.0,
        };
        if noise == 0.0 {
            return Ok(image);
        }
        let mut rng = StdRng::seed_from_u64(config.seed);
        let values: Vec<f32> = (0..content.elem_count())
            .map(|_| rng.random::<f32>())
            .collect();
        let random = Tensor::from_vec(values, content.shape(), content.device())?;
        (image * (1.0 - noise))? + (random * noise)?
    }

    /// Takes note that the next frame is painted with other settings, even if it shows the same.
    pub fn settings_changed(&mut self) {
        self.still_convergence = StillConvergence::default();
        self.keeps_objective = false;
    }

    /// Has the objective and the colours of the style image made anew for the next frame.
    pub fn forget_style(&mut self) {
        self.settings_changed();
        self.objective = None;
        self.style_colors = None;
    }

    /// Drops the history of the frames painted so far: the next frame is a first one. `content`,
    /// `result`, the objective with its targets and the optimiser with its state survive.
    pub fn reset(&mut self) {
        self.history.clear();
        if let Some(objective) = &mut self.objective {
            objective.reset_gradient_scale();
        }
    }

    /// Remembers a frame, whose painting is in `result`, for the next ones.
    pub fn remember(
        &mut self,
        PreparedFrame { content, pyramid }: PreparedFrame,
        scene: &Scene,
        outcome: &Outcome,
        config: &Config,
    ) {
        self.may_be_still = true;
        if let Scene::Still = scene {
            self.still_convergence.update(outcome, config);
            self.history.invalidate_latest();
        } else {
            // Unless `init=previous`, every frame of a still picture starts alike and ends alike: one
            // suffices.
            self.still_convergence = StillConvergence {
                window: None,
                reached: config.init != Init::Previous,
            };
            let illumination = illumination(&pyramid, config);
            self.history.push(pyramid, illumination);
            self.content = content;
        }
    }
}

/// The illumination of a frame's content, which is grey if the frame keeps its colours.
fn illumination(pyramid: &Pyramid, config: &Config) -> Illumination {
    match config.color {
        Color::Style => pyramid.illumination.clone(),
        Color::Content => pyramid.illumination.grey(),
    }
}
