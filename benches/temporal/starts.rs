// SPDX-License-Identifier: MPL-2.0

//! Compares the starts of a frame at equal iterations: the warping error of the results, their loss
//! relative to a long optimisation of each frame from scratch, and the time spent on motion.

use crate::clips::{Sequence, mean, sequences, style};
use crate::common::problem::network;
use crate::common::timing::{argument, median, ms, text, timed};
use candle_core::{Result, Tensor};
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::color::{Statistics, matched};
use gstgatys::stylizer::config::{Config, Init, MotionKind};
use gstgatys::stylizer::objective::{LossWeights, Losses, Objective};
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::stylizer::style::StyleImage;
use gstgatys::vgg::{Precision, Vgg};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// What paints the frames.
enum Painter {
    Stylizer,
    /// A stylizer that is reset before each frame.
    Resetting,
    /// A bare optimiser that continues from the last result, unmoved.
    Optimizer,
}

struct Variant {
    name: String,
    painter: Painter,
    config: Config,
}

/// A painted frame.
struct Painted {
    image: Tensor,
    /// Without the temporal term, which only some variants have.
    loss: f64,
    time: Duration,
    motion_time: Duration,
}

pub fn compare() {
    let default = Config::default();
    let count = argument("--frames", 8);
    let width = argument("--width", 256);
    let converged = argument("--converged", 300) as u32;
    let weight = argument("--temporal-weight", 100);
    let base = Config {
        iterations: argument("--iterations", default.iterations as usize) as u32,
        max_size: None,
        // Every frame is painted, in one scene.
        skip_still: false,
        scene_cut: 1.0,
        motion: MotionKind::None,
        ..default
    };
    assert!(count > 1, "--frames: there is no motion in fewer than two");
    let sequences = sequences(count, width);
    println!(
        "{count} frames, {width} wide; {} iterations for the first and {} for each later one.\n",
        base.initial_iterations, base.iterations
    );
    println!(
        "| clip | end-point error, pixels | seen before | warping error of the clip itself, 1e-3 |"
    );
    println!("|---|---|---|---|");
    for sequence in &sequences {
        let error = sequence.end_point_error();
        let error = error.map_or("?".into(), |error| format!("{error:.2}"));
        let warping = mean(sequence.warping_errors(&sequence.frames).into_iter());
        let visible = 100.0 * sequence.visible();
        println!(
            "| {} | {error} | {visible:.1} % | {:.3} |",
            sequence.name,
            1e3 * warping
        );
    }

    let mut csv = text("--csv").map(|path| File::create(path).expect("--csv takes a file"));
    if let Some(file) = &mut csv {
        let header = "clip,start,frame,loss,relative_loss,warping_error,frame_ms,motion_ms";
        writeln!(file, "{header}").expect("a line");
    }
    println!("\n| clip | start | warping error, 1e-3 | relative loss | on motion |");
    println!("|---|---|---|---|---|");
    let (vgg, style) = (network(Precision::Auto), style());
    let variants = variants(&base, converged, weight);
    for sequence in &sequences {
        let mut best: Option<Vec<f64>> = None;
        for variant in &variants {
            let painted = variant.paint(sequence, &vgg, &style);
            let losses = || painted.iter().map(|frame| frame.loss);
            let best = best.get_or_insert_with(|| losses().collect());
            let relative: Vec<f64> = losses()
                .zip(best)
                .map(|(loss, best)| loss / *best)
                .collect();
            let images: Vec<Tensor> = painted.iter().map(|frame| frame.image.clone()).collect();
            let errors = sequence.warping_errors(&images);
            println!(
                "{}",
                table_row(sequence, variant, &painted, &relative, &errors)
            );
            if let Some(file) = &mut csv {
                write_csv(file, sequence, variant, &painted, &relative, &errors).expect("lines");
            }
        }
    }
}

/// The variants. The losses are relative to those of the first one.
fn variants(base: &Config, converged: u32, weight: usize) -> Vec<Variant> {
    let variant = |name: &str, painter, config| Variant {
        name: name.into(),
        painter,
        config,
    };
    let long = Config {
        initial_iterations: converged,
        ..base.clone()
    };
    let content = Config {
        init: Init::Content,
        ..base.clone()
    };
    let flow = Config {
        motion: MotionKind::Flow,
        ..base.clone()
    };
    let temporal = Config {
        temporal_weight: weight as f64,
        ..flow.clone()
    };
    vec![
        variant(
            &format!("{converged} iterations from scratch"),
            Painter::Resetting,
            long,
        ),
        variant("init=content", Painter::Stylizer, content),
        variant("unmoved", Painter::Optimizer, base.clone()),
        variant("motion=none", Painter::Stylizer, base.clone()),
        variant("motion=flow", Painter::Stylizer, flow),
        variant(
            &format!("motion=flow temporal-weight={weight}"),
            Painter::Stylizer,
            temporal,
        ),
    ]
}

/// A row of the table: means and medians over all frames but the first, which starts alike in all
/// variants but the long one.
fn table_row(
    sequence: &Sequence,
    variant: &Variant,
    painted: &[Painted],
    relative: &[f64],
    errors: &[f64],
) -> String {
    let later = || painted.iter().skip(1);
    let parts = later().map(|frame| frame.motion_time.as_secs_f64() / frame.time.as_secs_f64());
    format!(
        "| {} | {} | {:.3} | {:.3} | {:.1} ms, {:.1} % |",
        sequence.name,
        variant.name,
        1e3 * mean(errors.iter().copied()),
        mean(relative.iter().skip(1).copied()),
        median(later().map(|frame| ms(frame.motion_time)).collect()),
        100.0 * median(parts.collect()),
    )
}

fn write_csv(
    file: &mut File,
    sequence: &Sequence,
    variant: &Variant,
    painted: &[Painted],
    relative: &[f64],
    errors: &[f64],
) -> std::io::Result<()> {
    for (index, frame) in painted.iter().enumerate() {
        // The first frame has none.
        let error = index.checked_sub(1).map(|index| errors[index].to_string());
        writeln!(
            file,
            "{},{},{index},{},{},{},{},{}",
            sequence.name,
            variant.name,
            frame.loss,
            relative[index],
            error.unwrap_or_default(),
            ms(frame.time),
            ms(frame.motion_time),
        )?;
    }
    Ok(())
}

impl Variant {
    fn paint(&self, sequence: &Sequence, vgg: &Arc<Vgg>, style: &StyleImage) -> Vec<Painted> {
        match self.painter {
            Painter::Stylizer => self.stylize(sequence, vgg, style, false),
            Painter::Resetting => self.stylize(sequence, vgg, style, true),
            Painter::Optimizer => self.optimize(sequence, vgg, style).expect("painted frames"),
        }
    }

    fn stylize(
        &self,
        sequence: &Sequence,
        vgg: &Arc<Vgg>,
        style: &StyleImage,
        reset: bool,
    ) -> Vec<Painted> {
        let stylizer = Stylizer::new(vgg.clone(), style.clone(), self.config.clone());
        let mut stylizer = stylizer.expect("a stylizer");
        let paint = |frame| {
            if reset {
                stylizer.reset();
            }
            let (time, painted) = timed(|| stylizer.stylize(frame, &|| false));
            let (image, report) = painted.expect("a painted frame");
            Painted {
                image,
                loss: self.loss(&report.losses),
                time,
                motion_time: report.motion_time,
            }
        };
        sequence.frames.iter().map(paint).collect()
    }

    fn optimize(
        &self,
        sequence: &Sequence,
        vgg: &Arc<Vgg>,
        style: &StyleImage,
    ) -> Result<Vec<Painted>> {
        let config = &self.config;
        let (h, w, _) = sequence.frames[0].dims3()?;
        let (content_layers, style_layers) = (&config.content_layers, &config.style_layers);
        let objective = Objective::new(
            vgg.clone(),
            (h, w),
            content_layers,
            style_layers,
            config.pooling,
        );
        let mut objective = objective.expect("an objective");
        let style = style.tensor(h.max(w), config.style_scale, config.color)?;
        objective.set_style(&style, &|| false).expect("style");
        let loss_weights = LossWeights::from(config);
        let image = matched(&sequence.frames[0], &Statistics::of(&style)?)?;
        let mut optimizer = optimizer(&image, config)?;
        let mut iterations = config.initial_iterations;
        let mut paint = |frame| {
            let budget = Budget {
                iterations,
                deadline: None,
            };
            let (time, outcome) = timed(|| {
                objective.set_content(frame, &|| false)?;
                optimizer.next_objective()?;
                optimizer.minimize(&image, budget, &mut |image, gradient| {
                    objective.evaluate(image, loss_weights, gradient, &|| false)
                })
            });
            iterations = config.iterations;
            Ok(Painted {
                image: image.copy()?,
                loss: self.loss(&outcome.expect("a painted frame").best),
                time,
                motion_time: Duration::ZERO,
            })
        };
        sequence.frames.iter().map(&mut paint).collect()
    }

    fn loss(&self, losses: &Losses) -> f64 {
        losses.total - self.config.temporal_weight * losses.temporal
    }
}
