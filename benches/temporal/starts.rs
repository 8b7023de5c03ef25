// SPDX-License-Identifier: MPL-2.0

//! The starts of a frame beside each other, at equal iterations: the warping error of the results,
//! their loss relative to a long optimisation of each frame from scratch, and the time on motion.

use crate::clips::{Material, materials, mean, style};
use crate::common::problem::network;
use crate::common::timing::{argument, median, ms, text, timed};
use candle_core::{Result, Tensor};
use gstgatys::stylizer::Stylizer;
use gstgatys::stylizer::config::{Config, Init, MotionKind};
use gstgatys::stylizer::objective::{Balance, Losses, Objective};
use gstgatys::stylizer::optimizer::{Budget, optimizer};
use gstgatys::stylizer::style::StyleImage;
use gstgatys::vgg::{Precision, Vgg};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// Who paints.
enum Painter {
    Stylizer,
    /// A stylizer that is told to forget before each frame.
    Forgetful,
    /// An optimiser that goes on from the last result, pixel by pixel, with what it learned: what
    /// the stylizer does where nothing moves.
    Optimizer,
}

struct Row {
    name: String,
    painter: Painter,
    config: Config,
}

/// A painted frame.
struct Painted {
    image: Tensor,
    /// Without the temporal term, which not all rows have.
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
    let materials = materials(count, width);
    println!(
        "{count} frames, {width} wide; {} iterations for the first and {} for each later one.\n",
        base.initial_iterations, base.iterations
    );
    println!(
        "| clip | end-point error, pixels | seen before | warping error of the clip itself, 1e-3 |"
    );
    println!("|---|---|---|---|");
    for material in &materials {
        let error = material.end_point_error();
        let error = error.map_or("?".into(), |error| format!("{error:.2}"));
        let warping = mean(material.warping_errors(&material.frames).into_iter());
        let visible = 100.0 * material.visible();
        println!(
            "| {} | {error} | {visible:.1} % | {:.3} |",
            material.name,
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
    let rows = rows(&base, converged, weight);
    for material in &materials {
        let mut best: Option<Vec<f64>> = None;
        for row in &rows {
            let painted = row.paint(material, &vgg, &style);
            let losses = || painted.iter().map(|frame| frame.loss);
            let best = best.get_or_insert_with(|| losses().collect());
            let relative: Vec<f64> = losses()
                .zip(best)
                .map(|(loss, best)| loss / *best)
                .collect();
            let images: Vec<Tensor> = painted.iter().map(|frame| frame.image.clone()).collect();
            let errors = material.warping_errors(&images);
            println!("{}", line(material, row, &painted, &relative, &errors));
            if let Some(file) = &mut csv {
                write(file, material, row, &painted, &relative, &errors).expect("lines");
            }
        }
    }
}

/// The first one is what the losses of the others are relative to.
fn rows(base: &Config, converged: u32, weight: usize) -> Vec<Row> {
    let row = |name: &str, painter, config| Row {
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
        row(
            &format!("{converged} iterations from scratch"),
            Painter::Forgetful,
            long,
        ),
        row("init=content", Painter::Stylizer, content),
        row("unmoved", Painter::Optimizer, base.clone()),
        row("motion=none", Painter::Stylizer, base.clone()),
        row("motion=flow", Painter::Stylizer, flow),
        row(
            &format!("motion=flow temporal-weight={weight}"),
            Painter::Stylizer,
            temporal,
        ),
    ]
}

/// A line of the table: means and medians over all frames but the first, which all rows but the
/// long one begin alike.
fn line(
    material: &Material,
    row: &Row,
    painted: &[Painted],
    relative: &[f64],
    errors: &[f64],
) -> String {
    let later = || painted.iter().skip(1);
    let parts = later().map(|frame| frame.motion_time.as_secs_f64() / frame.time.as_secs_f64());
    format!(
        "| {} | {} | {:.3} | {:.3} | {:.1} ms, {:.1} % |",
        material.name,
        row.name,
        1e3 * mean(errors.iter().copied()),
        mean(relative.iter().skip(1).copied()),
        median(later().map(|frame| ms(frame.motion_time)).collect()),
        100.0 * median(parts.collect()),
    )
}

fn write(
    file: &mut File,
    material: &Material,
    row: &Row,
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
            material.name,
            row.name,
            frame.loss,
            relative[index],
            error.unwrap_or_default(),
            ms(frame.time),
            ms(frame.motion_time),
        )?;
    }
    Ok(())
}

impl Row {
    fn paint(&self, material: &Material, vgg: &Arc<Vgg>, style: &StyleImage) -> Vec<Painted> {
        match self.painter {
            Painter::Stylizer => self.stylize(material, vgg, style, false),
            Painter::Forgetful => self.stylize(material, vgg, style, true),
            Painter::Optimizer => self.optimize(material, vgg, style).expect("painted frames"),
        }
    }

    fn stylize(
        &self,
        material: &Material,
        vgg: &Arc<Vgg>,
        style: &StyleImage,
        forget: bool,
    ) -> Vec<Painted> {
        let stylizer = Stylizer::new(vgg.clone(), style.clone(), self.config.clone());
        let mut stylizer = stylizer.expect("a stylizer");
        let paint = |frame| {
            if forget {
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
        material.frames.iter().map(paint).collect()
    }

    fn optimize(
        &self,
        material: &Material,
        vgg: &Arc<Vgg>,
        style: &StyleImage,
    ) -> Result<Vec<Painted>> {
        let config = &self.config;
        let (h, w, _) = material.frames[0].dims3()?;
        let (content_layers, style_layers) = (&config.content_layers, &config.style_layers);
        let objective = Objective::new(
            vgg.clone(),
            (h, w),
            content_layers,
            style_layers,
            config.pooling,
        );
        let mut objective = objective.expect("an objective");
        let style = style.tensor(h.max(w), config.style_scale)?;
        objective.set_style(&style, &|| false).expect("style");
        let balance = Balance::from(config);
        let image = material.frames[0].copy()?;
        let mut optimizer = optimizer(&image, config)?;
        let mut iterations = config.initial_iterations;
        let mut paint = |frame| {
            let budget = Budget {
                iterations,
                deadline: None,
            };
            let (time, outcome) = timed(|| {
                objective.set_content(frame, &|| false)?;
                optimizer.minimize(&image, budget, &mut |image, gradient| {
                    objective.evaluate(image, balance, gradient, &|| false)
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
        material.frames.iter().map(&mut paint).collect()
    }

    fn loss(&self, losses: &Losses) -> f64 {
        losses.total - self.config.temporal_weight * losses.temporal
    }
}
