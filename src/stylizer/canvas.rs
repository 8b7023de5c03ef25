// SPDX-License-Identifier: MPL-2.0

//! What lasts from frame to frame for images of one size.

use super::config::{Color, Config, Init, MotionKind};
use super::motion::illumination::Illumination;
use super::motion::pyramid::Pyramid;
use super::motion::scene::cut_score;
use super::motion::still::is_still;
use super::motion::{FrameHistory, Frames, Motion, Start};
use super::objective::Objective;
use super::optimizer::{self, Optimizer, Outcome, Reason};
use super::resize;
use crate::ops::elementwise::copy;
use crate::ops::transfer::Transfer;
use candle_core::{Device, Result, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A still picture's painting is done when its loss fell by less than this part of itself over this
/// many iterations.
const SETTLED: f64 = 1e-3;
const SETTLING: u32 = 30;

/// What a frame has to do with those before it.
pub enum Scene {
    /// There are none.
    First,
    /// Nothing: it begins another scene.
    Cut,
    /// It is the picture of the frame that was painted last, but for noise.
    Still,
    /// It goes on; how that moved, if it was looked at.
    Moving(Option<Box<Motion>>),
}

/// How far the painting of a still picture has come.
#[derive(Default)]
pub struct Settling {
    /// The loss before some iterations, and their number.
    since: Option<(f64, u32)>,
    pub done: bool,
}

impl Settling {
    fn add(&mut self, outcome: &Outcome, config: &Config) {
        let (loss, iterations) = self.since.take().unwrap_or((outcome.initial.total, 0));
        let iterations = iterations + outcome.iterations;
        let settled = loss - outcome.best.total <= SETTLED * loss;
        self.done = config.init != Init::Previous
            || outcome.reason == Reason::Converged
            || (iterations >= SETTLING && settled);
        self.since = (iterations < SETTLING).then_some((loss, iterations));
    }
}

/// The canvas. Its images are `[h, w, 3]`, RGB 0..1.
pub struct Canvas {
    /// What is optimised, before padding.
    pub size: (usize, usize),
    /// The image that is optimised, on the network's device.
    pub image: Tensor,
    /// None where what it is made from has changed.
    pub objective: Option<Objective>,
    pub optimizer: Box<dyn Optimizer>,
    /// The frame that was painted last and its painting, on the CPU.
    pub content: Tensor,
    pub result: Tensor,
    /// What is known of the frames painted last. Without any the next is a first one.
    past: FrameHistory,
    /// Whether the next frame may be the picture that was painted last: not where what is painted
    /// of a frame has changed.
    pub comparable: bool,
    pub settling: Settling,
}

impl Canvas {
    /// An empty canvas for frames of the shape of `content`, which are `size` before padding.
    pub fn new(
        size: (usize, usize),
        content: &Tensor,
        device: &Device,
        config: &Config,
    ) -> Result<Self> {
        let image = content.to_device(device)?.copy()?;
        Ok(Self {
            size,
            optimizer: optimizer::optimizer(&image, config)?,
            image,
            objective: None,
            content: content.clone(),
            result: content.clone(),
            past: FrameHistory::default(),
            comparable: false,
            settling: Settling::default(),
        })
    }

    /// Takes over the painting from a canvas of another size.
    pub fn continue_from(&mut self, earlier: &Self, config: &Config) -> Result<()> {
        if earlier.past.latest().is_none() {
            return Ok(());
        }
        let scaled = |image: &Tensor| {
            let image = resize::crop(image, earlier.size)?;
            resize::pad(&resize::resize(&image, self.size)?)
        };
        self.result = scaled(&earlier.result)?;
        self.content = scaled(&earlier.content)?;
        let pyramid = Pyramid::new(&self.content)?;
        let light = light(&pyramid, config);
        self.past.push(pyramid, light);
        Ok(())
    }

    /// What the frame of this pyramid has to do with those that were painted. One that is not `due`
    /// is only looked at for a cut.
    pub fn look(&self, pyramid: &Pyramid, due: bool, config: &Config) -> Scene {
        let Some(last) = self.past.latest() else {
            return Scene::First;
        };
        if !due && config.scene_cut >= 1.0 {
            return Scene::Moving(None);
        }
        if self.comparable && config.skip_still && is_still(pyramid, last) {
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

    /// The image that the optimisation of a frame starts from, and what its pixels are held to by the
    /// temporal term, `[h, w, 4]`.
    pub fn start(
        &mut self,
        content: &Tensor,
        pyramid: &Pyramid,
        scene: &Scene,
        config: &Config,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let previous = config.init == Init::Previous;
        let (image, target) = match scene {
            // One optimisation that goes on, with nothing to be held to.
            Scene::Still => (Some(self.result.clone()), None),
            Scene::Moving(Some(motion))
                if config.motion == MotionKind::Flow
                    && (previous || config.temporal_weight > 0.0) =>
            {
                let frames = Frames {
                    now: content,
                    illumination: &light(pyramid, config),
                    before: &self.content,
                    painting: &self.result,
                };
                let start = Start::new(frames, pyramid, motion, &mut self.past)?;
                let target = match config.temporal_weight > 0.0 {
                    true => Some(Tensor::cat(&[&start.image, &start.confidence], 2)?),
                    false => None,
                };
                (Some(start.image), target)
            }
            // The paint, so the result less its frame, stays, and what is under it becomes this
            // frame. Left as it is, the last result may satisfy the content loss of deep layers
            // without ever showing what moved.
            Scene::Moving(_) => {
                let change = (content - &self.content)?;
                (Some((&self.result + change)?.clamp(0f32, 1f32)?), None)
            }
            Scene::First | Scene::Cut => (None, None),
        };
        let image = match image.filter(|_| previous) {
            Some(image) => image,
            None => fresh(content, config)?,
        };
        Ok((image, target))
    }

    /// Puts the image of a start onto the canvas. What comes back is what its pixels are held to, on
    /// the network's device.
    pub fn set_start(
        &mut self,
        (image, target): (Tensor, Option<Tensor>),
        transfer: &mut Transfer,
    ) -> Result<Option<Tensor>> {
        let device = self.image.device();
        copy(&self.image, &transfer.upload(&image, device)?)?;
        let target = target.map(|target| transfer.upload(&target, device));
        target.transpose()
    }

    /// Drops what the optimiser learned from the frames before.
    pub fn renew_optimizer(&mut self, config: &Config) -> Result<()> {
        self.optimizer = optimizer::optimizer(&self.image, config)?;
        Ok(())
    }

    /// Forgets the frames that were painted.
    pub fn forget(&mut self) {
        self.past.clear();
    }

    /// Keeps a frame, whose result is there, for the next ones.
    pub fn keep(
        &mut self,
        content: Tensor,
        pyramid: Pyramid,
        scene: &Scene,
        outcome: &Outcome,
        config: &Config,
    ) -> Result<()> {
        self.comparable = true;
        if let Scene::Still = scene {
            self.settling.add(outcome, config);
            self.past.invalidate_latest();
        } else {
            // A start that is no frame's result leads to the same painting again.
            self.settling = Settling {
                since: None,
                done: config.init != Init::Previous,
            };
            let light = light(&pyramid, config);
            self.past.push(pyramid, light);
            self.content = content;
        }
        Ok(())
    }
}

/// The light of the content that is painted of a frame.
fn light(pyramid: &Pyramid, config: &Config) -> Illumination {
    match config.color {
        Color::Style => pyramid.illumination.clone(),
        Color::Content => pyramid.illumination.grey(),
    }
}

/// A start from the frame itself, mixed with noise as far as the settings say so.
fn fresh(content: &Tensor, config: &Config) -> Result<Tensor> {
    let noise = match config.init {
        Init::Previous | Init::Content => config.noise,
        Init::Noise => 1.0,
    };
    if noise == 0.0 {
        return Ok(content.clone());
    }
    let mut rng = StdRng::seed_from_u64(config.seed);
    let values: Vec<f32> = (0..content.elem_count())
        .map(|_| rng.random::<f32>())
        .collect();
    let random = Tensor::from_vec(values, content.shape(), content.device())?;
    (content * (1.0 - noise))? + (random * noise)?
}
