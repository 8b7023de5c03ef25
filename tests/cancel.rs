// SPDX-License-Identifier: MPL-2.0

//! A frame is abandoned as soon as it is cancelled.
#![cfg(feature = "plugin")]

mod common;

use candle_core::{Device, Tensor};
use common::painter::{PATIENCE, assert_ends, element, init};
use common::video::picture;
use common::{Files, NARROW, random_weights};
use gst::prelude::*;
use gstgatys::stylizer::config::{Color, Config, OptimizerKind};
use gstgatys::stylizer::style::StyleImage;
use gstgatys::stylizer::{Error, Stylizer};
use gstgatys::vgg::Vgg;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// The layers of one pass of the default objective: up to conv5_1.
const LAYERS: usize = 13;
/// The layers of the pass that computes the content features of a frame: up to conv4_2.
const CONTENT_LAYERS: usize = 10;

struct Library {
    vgg: Arc<Vgg>,
    style: StyleImage,
    config: Config,
    frame: Tensor,
}

impl Library {
    fn new(config: Config) -> Self {
        let files = Files::new();
        let values = picture(24, 20, 0).concat();
        let values = values.into_iter().map(|value| f32::from(value) / 255.0);
        Self {
            vgg: Arc::new(Vgg::new(&random_weights(&NARROW), &Device::Cpu).unwrap()),
            style: StyleImage::load(&files.style).unwrap(),
            config,
            frame: Tensor::from_vec(values.collect(), (20, 24, 3), &Device::Cpu).unwrap(),
        }
    }

    fn stylizer(&self) -> Stylizer {
        Stylizer::new(self.vgg.clone(), self.style.clone(), self.config.clone()).unwrap()
    }

    /// Paints a frame that is cancelled at call number `at` of the callback. Returns the result and
    /// the number of calls.
    fn paint(&self, stylizer: &mut Stylizer, at: usize) -> (Result<Vec<f32>, Error>, usize) {
        let questions = AtomicUsize::new(0);
        let result = stylizer.stylize(&self.frame, &|| {
            questions.fetch_add(1, Ordering::SeqCst) >= at
        });
        let values = result.map(|(image, _)| image.flatten_all().unwrap().to_vec1().unwrap());
        (values, questions.into_inner())
    }

    /// Cancels the frame that follows `before` others at each possible point: once its motion is
    /// known, and before each layer of the content pass and of `passes` whole passes.
    fn check(&self, before: usize, passes: usize) {
        let painted = |count: usize| {
            let mut stylizer = self.stylizer();
            for _ in 0..count {
                self.paint(&mut stylizer, usize::MAX).0.unwrap();
            }
            stylizer
        };
        let (_, questions) = self.paint(&mut painted(before), usize::MAX);
        // One call after the motion, and one before each layer: no layer is computed without it.
        assert_eq!(questions, 1 + CONTENT_LAYERS + passes * LAYERS);

        let first = self.paint(&mut painted(0), usize::MAX).0.unwrap();
        for at in 0..questions {
            let mut stylizer = painted(before);
            let (result, asked) = self.paint(&mut stylizer, at);
            assert!(matches!(result, Err(Error::Cancelled)), "{at}");
            assert_eq!(asked, at + 1, "it was asked again after it had said yes");
            // The cancelled frame has left no trace.
            stylizer.reset();
            let again = self.paint(&mut stylizer, usize::MAX).0.unwrap();
            assert!(again == first, "{at}: the frame after is another");
        }
    }
}

#[test]
fn no_layer_is_computed_once_cancelled() {
    for optimizer in [OptimizerKind::Lbfgs, OptimizerKind::Adam] {
        let library = Library::new(Config {
            optimizer,
            initial_iterations: 2,
            iterations: 3,
            ..Config::default()
        });
        // A pass for the style, which later frames reuse; and forward and backward for each iteration.
        library.check(0, 1 + 2 * 2);
        library.check(1, 2 * 3);
    }
}

#[test]
fn nor_is_any_for_grey_and_small_images() {
    let library = Library::new(Config {
        color: Color::Content,
        max_size: Some(17),
        initial_iterations: 1,
        n_threads: 1,
        ..Config::default()
    });
    library.check(0, 1 + 2);
}

/// A pipeline whose frames take longer than any test, except for first frames.
struct Endless {
    pipeline: gst::Pipeline,
    bus: gst::Bus,
    /// The time stamps of the frames that enter the element.
    started: mpsc::Receiver<gst::ClockTime>,
    _files: Files,
}

impl Endless {
    fn new() -> Self {
        Self::with_iterations(100_000)
    }

    /// A pipeline with this number of iterations per frame.
    fn with_iterations(iterations: u32) -> Self {
        init();
        let files = Files::new();
        let make = gst::ElementFactory::make;
        let source = make("videotestsrc").build().unwrap();
        let caps = gst::Caps::builder("video/x-raw")
            .field("format", "RGB")
            .field("width", 512)
            .field("height", 512)
            .field("framerate", gst::Fraction::new(10, 1));
        let filter = make("capsfilter")
            .property("caps", caps.build())
            .build()
            .unwrap();
        let gatys = element(&files);
        gatys.set_property("initial-iterations", 1u32);
        gatys.set_property("iterations", iterations);
        let sink = make("fakesink").build().unwrap();
        let pipeline = gst::Pipeline::new();
        pipeline
            .add_many([&source, &filter, &gatys, &sink])
            .unwrap();
        gst::Element::link_many([&source, &filter, &gatys, &sink]).unwrap();

        let (sender, started) = mpsc::channel();
        let pad = gatys.static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let buffer = info.buffer().unwrap();
            // The receiver is gone once the test has ended.
            let _ = sender.send(buffer.pts().unwrap());
            gst::PadProbeReturn::Ok
        })
        .unwrap();
        let bus = pipeline.bus().unwrap();
        Self {
            pipeline,
            bus,
            started,
            _files: files,
        }
    }

    /// Plays until the endless frame, the second one, has begun.
    fn play(&self) {
        self.pipeline.set_state(gst::State::Playing).unwrap();
        self.await_endless(gst::ClockTime::ZERO);
    }

    /// Waits until the frame after the one at `first` has begun, and checks the report of the one at `first`.
    fn await_endless(&self, first: gst::ClockTime) {
        assert_eq!(self.started.recv_timeout(PATIENCE).unwrap(), first);
        let second = self.started.recv_timeout(PATIENCE).unwrap();
        assert_eq!(second, first + gst::ClockTime::from_mseconds(100));
        let reports = self.reports();
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].get::<u64>("pts").unwrap(), first.nseconds());
        assert_eq!(reports[0].get::<u32>("iterations").unwrap(), 1);
    }

    fn reports(&self) -> Vec<gst::Structure> {
        let pop = || self.bus.pop_filtered(&[gst::MessageType::Element]);
        let messages = std::iter::from_fn(pop);
        messages
            .map(|message| message.structure().unwrap().to_owned())
            .collect()
    }

    /// Asserts that `action` does not wait for the frame; returns its result.
    fn at_once<T: Send + 'static>(
        &self,
        action: impl FnOnce(&gst::Pipeline) -> T + Send + 'static,
    ) -> T {
        let (sender, receiver) = mpsc::channel();
        let pipeline = self.pipeline.clone();
        let thread = std::thread::spawn(move || {
            // The receiver is gone if the test gave up.
            let _ = sender.send(action(&pipeline));
        });
        let result = receiver.recv_timeout(PATIENCE);
        let result = result.expect("it waits for the frame");
        thread.join().unwrap();
        result
    }

    fn stop(self) {
        let stopped = self.at_once(|pipeline| pipeline.set_state(gst::State::Null));
        assert_eq!(stopped, Ok(gst::StateChangeSuccess::Success));
    }
}

#[test]
fn stopping_does_not_wait_for_the_frame() {
    let endless = Endless::new();
    endless.play();
    let stopped = endless.at_once(|pipeline| pipeline.set_state(gst::State::Ready));
    // Not Async: the streaming thread has ended.
    assert_eq!(stopped, Ok(gst::StateChangeSuccess::Success));
    let messages = std::iter::from_fn(|| endless.bus.pop());
    for message in messages {
        assert_ne!(message.type_(), gst::MessageType::Error, "{message:?}");
        assert_ne!(message.type_(), gst::MessageType::Element, "{message:?}");
    }
    // It can play again.
    endless.play();
    endless.stop();
}

#[test]
fn seeking_does_not_wait_for_the_frame() {
    let endless = Endless::new();
    endless.play();
    for seconds in [30, 0, 7] {
        let position = seconds * gst::ClockTime::SECOND;
        let sought =
            endless.at_once(move |pipeline| pipeline.seek_simple(gst::SeekFlags::FLUSH, position));
        sought.unwrap();
        // Nothing is reported about the cancelled frame; the next is a first one.
        endless.await_endless(position);
    }
    endless.stop();
}

/// The frame before an EOS is still wanted.
#[test]
fn the_end_of_the_stream_waits_for_the_frame() {
    let frames = Endless::with_iterations(20);
    let (sender, arrived) = mpsc::channel();
    let sink = frames.pipeline.iterate_sinks().next().unwrap().unwrap();
    let pad = sink.static_pad("sink").unwrap();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        sender.send(info.buffer().unwrap().pts().unwrap()).unwrap();
        gst::PadProbeReturn::Ok
    })
    .unwrap();
    frames.play();
    assert!(frames.at_once(|pipeline| pipeline.send_event(gst::event::Eos::new())));
    assert_ends(&frames.bus);
    let late: Vec<gst::ClockTime> = frames.started.try_iter().collect();
    let arrived: Vec<gst::ClockTime> = arrived.try_iter().collect();
    assert_eq!(arrived.len(), 2 + late.len());
    frames.stop();
}
