// SPDX-License-Identifier: MPL-2.0

/**
 * SECTION:element-gatys
 *
 * Paints each video frame in the style of an image: it solves the optimisation of Gatys, Ecker
 * and Bethge for the frame, starting from the result of the frame before.
 *
 * ## Example pipeline
 *
 * |[
 * gst-launch-1.0 filesrc location=in.mp4 ! decodebin ! videoconvert ! gatys style-image=starry_night.jpg ! videoconvert ! autovideosink sync=false
 * ]|
 */
use super::clock::{Position, elapsed, is_live};
use super::dump::Dump;
use super::frame::{self, to_image, write_image};
use super::latency::Latency;
use super::load;
use super::report;
use super::settings::{PROPERTIES, Settings, property};
use crate::stylizer::style::StyleImage;
use crate::stylizer::{self, Stylizer, device};
use gst::glib::{self, ParamSpec};
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::BaseTransformMode;
use gst_base::subclass::prelude::*;
use gst_video::subclass::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};
use once_cell::sync::Lazy;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

static CAT: Lazy<gst::DebugCategory> = Lazy::new(|| {
    gst::DebugCategory::new(
        "gatys",
        gst::DebugColorFlags::empty(),
        Some("Gatys style transfer"),
    )
});

/// The values of the properties, and what of them the stylizer does not know yet.
#[derive(Default)]
struct Shared {
    settings: Settings,
    /// Whether the stylizer's settings may differ from these.
    changed: bool,
    /// Whether the stylizer is there, so that a style image is to be loaded for it.
    started: bool,
    /// Counts the style images that were set: only the last one is taken up.
    style_serial: u64,
    /// Whether one is being loaded. Those set meanwhile wait for that.
    loading: bool,
    /// The style image for the next frame.
    style: Option<StyleImage>,
    /// Of the last frame.
    stats: Option<gst::Structure>,
    /// What the weights in use, or last in use, were recognised as.
    weights_info: Option<gst::Structure>,
}

/// What belongs to the streaming thread.
#[derive(Default)]
struct State {
    info: Option<VideoInfo>,
    stylizer: Option<Stylizer>,
    /// Whether no frame was made since the stylizer was reset.
    first: bool,
    /// Frames since the element started.
    frames: u64,
    position: Position,
    latency: Latency,
    dump: Dump,
    /// What was wrong with the settings, as far as it was warned of.
    refused: Vec<String>,
}

#[derive(Default)]
pub struct Gatys {
    shared: Mutex<Shared>,
    state: Mutex<State>,
    /// Either ends the frame that is computed: the element stops, or the pipeline flushes.
    stopping: AtomicBool,
    flushing: AtomicBool,
}

/// No lock is held while foreign code runs, so what a poisoned one guards is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[glib::object_subclass]
impl ObjectSubclass for Gatys {
    const NAME: &'static str = "GstGatys";
    type Type = super::Gatys;
    type ParentType = gst_video::VideoFilter;
}

impl ObjectImpl for Gatys {
    fn properties() -> &'static [ParamSpec] {
        static SPECS: Lazy<Vec<ParamSpec>> = Lazy::new(|| {
            let settings = PROPERTIES.iter().map(|property| property.spec.clone());
            settings.chain(report::specs()).collect()
        });
        &SPECS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, spec: &ParamSpec) {
        let Some(property) = property(spec) else {
            return;
        };
        let mut shared = lock(&self.shared);
        (property.set)(&mut shared.settings, value);
        shared.changed = true;
        if spec.name() == "style-image" {
            shared.style_serial += 1;
            if shared.started && !std::mem::replace(&mut shared.loading, true) {
                drop(shared);
                self.obj().call_async(|element| element.imp().load_styles());
            }
        } else if shared.started && spec.flags().contains(gst::PARAM_FLAG_MUTABLE_READY) {
            drop(shared);
            self.warn(&format!("{} can only change in READY or NULL", spec.name()));
        }
    }

    fn property(&self, _id: usize, spec: &ParamSpec) -> glib::Value {
        let shared = lock(&self.shared);
        match property(spec) {
            Some(property) => (property.get)(&shared.settings),
            None if spec.name() == "weights-info" => shared.weights_info.to_value(),
            None => shared.stats.to_value(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // A gap's frame is painted like any other, and stays marked as one.
        self.obj().set_gap_aware(true);
    }
}

impl GstObjectImpl for Gatys {}

impl ElementImpl for Gatys {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: Lazy<gst::subclass::ElementMetadata> = Lazy::new(|| {
            gst::subclass::ElementMetadata::new(
                "Gatys style transfer",
                "Filter/Effect/Video",
                "Paints video in the style of an image by solving Gatys' optimisation for every frame",
                "The gst-plugin-gatys developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: Lazy<Vec<gst::PadTemplate>> = Lazy::new(|| {
            let template = |name, direction| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &frame::caps())
            };
            [
                ("sink", gst::PadDirection::Sink),
                ("src", gst::PadDirection::Src),
            ]
            .into_iter()
            .filter_map(|(name, direction)| template(name, direction).ok())
            .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        match transition {
            gst::StateChange::ReadyToPaused => self.stopping.store(false, Ordering::SeqCst),
            gst::StateChange::PausedToReady => self.stopping.store(true, Ordering::SeqCst),
            _ => (),
        }
        self.parent_change_state(transition)
    }
}

impl BaseTransformImpl for Gatys {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = {
            let mut shared = lock(&self.shared);
            shared.changed = false;
            shared.style = None;
            shared.stats = None;
            shared.started = true;
            shared.settings.clone()
        };
        let (stylizer, fallback) =
            load::stylizer(&settings).inspect_err(|_| lock(&self.shared).started = false)?;
        if let Some(reason) = fallback {
            gst::element_imp_warning!(self, gst::ResourceError::NotFound, ("{reason}"));
        }
        let weights_info = report::weights_info(stylizer.vgg());
        gst::info!(CAT, imp = self, "Weights: {weights_info}");
        lock(&self.shared).weights_info = Some(weights_info);
        self.flushing.store(false, Ordering::SeqCst);
        *lock(&self.state) = State {
            stylizer: Some(stylizer),
            first: true,
            ..State::default()
        };
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let state = std::mem::take(&mut *lock(&self.state));
        // What it held is given back without the lock.
        drop(state);
        let mut shared = lock(&self.shared);
        shared.started = false;
        shared.style = None;
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        match event.view() {
            EventView::FlushStart(_) => self.flushing.store(true, Ordering::SeqCst),
            EventView::FlushStop(_) => {
                self.flushing.store(false, Ordering::SeqCst);
                self.reset();
            }
            EventView::Segment(_) => self.reset(),
            _ => (),
        }
        self.parent_sink_event(event)
    }

    fn src_event(&self, event: gst::Event) -> bool {
        if let gst::EventView::Qos(qos) = event.view()
            && let (_, _, lateness, Some(timestamp)) = qos.get()
            && let Ok(lateness) = u64::try_from(lateness)
        {
            let lateness = gst::ClockTime::from_nseconds(lateness);
            lock(&self.state).position.late(timestamp, lateness);
        }
        self.parent_src_event(event)
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        let answered = BaseTransformImplExt::parent_query(self, direction, query);
        if answered
            && direction == gst::PadDirection::Src
            && let gst::QueryViewMut::Latency(query) = query.view_mut()
        {
            let own = lock(&self.state).latency.largest();
            let (live, min, max) = query.result();
            query.set(live, min + own, max.map(|max| max + own));
        }
        answered
    }

    /// What is known of a frame holds for the painting of it.
    fn transform_meta<'a>(
        &self,
        _output: &mut gst::BufferRef,
        _meta: gst::MetaRef<'a, gst::Meta>,
        _input: &'a gst::BufferRef,
    ) -> bool {
        true
    }

    /// Sees the frames that are dropped for being late, too.
    fn submit_input_buffer(
        &self,
        is_discont: bool,
        input: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if let Some(pts) = input.pts() {
            self.follow(pts, input.duration());
        }
        self.parent_submit_input_buffer(is_discont, input)
    }

    fn transform(
        &self,
        input: &gst::Buffer,
        output: &mut gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (info, mut stylizer, first) = self.begin(input)?;
        let begun = Instant::now();
        // Computed without a lock, so that properties, queries and state changes do not wait.
        let result = self.paint(&info, &mut stylizer, input, output);
        let time = elapsed(begun);
        if result.is_ok() {
            self.dump_motion(&stylizer, &info);
        }
        let device = device::name(stylizer.device());
        let precision = stylizer.vgg().precision();
        lock(&self.state).stylizer = Some(stylizer);
        let report = result?;
        let frame = {
            let mut state = lock(&self.state);
            state.first = false;
            state.frames += 1;
            state.frames - 1
        };
        self.report(report::structure(
            &report,
            input.pts(),
            frame,
            time,
            &device,
            precision,
        ));
        if !first && !report.scene_cut && report.reason.is_some() {
            let moved = lock(&self.state).latency.add(time);
            if moved {
                self.post(gst::message::Latency::builder().src(&*self.obj()).build());
            }
        }
        Ok(gst::FlowSuccess::Ok)
    }
}

impl VideoFilterImpl for Gatys {
    fn set_info(
        &self,
        incaps: &gst::Caps,
        in_info: &VideoInfo,
        outcaps: &gst::Caps,
        out_info: &VideoInfo,
    ) -> Result<(), gst::LoggableError> {
        self.parent_set_info(incaps, in_info, outcaps, out_info)?;
        let size = (in_info.height() as usize, in_info.width() as usize);
        let stylizer = {
            let mut state = lock(&self.state);
            state.info = Some(in_info.clone());
            state.stylizer.take()
        };
        let fits = stylizer.as_ref().map(|it| it.check_memory(size));
        lock(&self.state).stylizer = stylizer;
        if let Some(Err(error)) = fits {
            gst::element_imp_error!(self, gst::ResourceError::NoSpaceLeft, ("{error}"));
            return Err(gst::loggable_error!(CAT, "{error}"));
        }
        self.reset();
        Ok(())
    }
}

impl Gatys {
    /// Loads the style image that was set last and hands it to the next frame, until no other was
    /// set meanwhile.
    fn load_styles(&self) {
        loop {
            let (serial, settings) = {
                let shared = lock(&self.shared);
                (shared.style_serial, shared.settings.clone())
            };
            let loaded = load::style(&settings);
            let mut shared = lock(&self.shared);
            if serial != shared.style_serial && shared.started {
                continue;
            }
            shared.loading = false;
            match loaded {
                _ if !shared.started => (),
                Ok(style) => shared.style = Some(style),
                Err(error) => {
                    drop(shared);
                    self.warn(&error);
                }
            }
            return;
        }
    }

    /// Says that something that was set cannot be used.
    fn warn(&self, cause: &str) {
        gst::element_imp_warning!(
            self,
            gst::ResourceError::Settings,
            ("{cause}; what was in use stays in use")
        );
    }

    /// Starts anew with the next frame, wherever that is in time.
    fn reset(&self) {
        lock(&self.state).position = Position::default();
        self.start_anew();
    }

    fn start_anew(&self) {
        let mut state = lock(&self.state);
        state.first = true;
        if let Some(stylizer) = &mut state.stylizer {
            stylizer.reset();
        }
    }

    /// Takes the stylizer out of the state, with the settings and the style for this frame. True
    /// where the frame is a first one.
    fn begin(&self, input: &gst::Buffer) -> Result<(VideoInfo, Stylizer, bool), gst::FlowError> {
        if self.cancelled() {
            return Err(gst::FlowError::Flushing);
        }
        if let Some(pts) = input.pts() {
            let time = self
                .obj()
                .segment()
                .downcast_ref::<gst::ClockTime>()
                .and_then(|s| s.to_stream_time(pts));
            if let Some(time) = time
                && let Err(error) = self.obj().sync_values(time)
            {
                gst::warning!(CAT, imp = self, "properties cannot be controlled: {error}");
            }
        }
        let (changed, style) = {
            let mut shared = lock(&self.shared);
            let changed = std::mem::take(&mut shared.changed).then(|| shared.settings.clone());
            (changed, shared.style.take())
        };
        let (info, mut stylizer, first) = {
            let mut state = lock(&self.state);
            match (state.info.clone(), state.stylizer.take()) {
                (Some(info), Some(stylizer)) => (info, stylizer, state.first),
                _ => return Err(gst::FlowError::NotNegotiated),
            }
        };
        if let Some(style) = style {
            stylizer.set_style(style);
        }
        if let Some(settings) = changed {
            self.configure(&mut stylizer, &settings);
        }
        Ok((info, stylizer, first))
    }

    /// Gives the stylizer the settings; each that cannot be used is warned of once.
    fn configure(&self, stylizer: &mut Stylizer, settings: &Settings) {
        let refused = load::apply(settings, stylizer);
        let earlier = std::mem::replace(&mut lock(&self.state).refused, refused.clone());
        for cause in refused.iter().filter(|cause| !earlier.contains(cause)) {
            self.warn(cause);
        }
    }

    /// Starts anew where a frame does not follow the last one in time.
    fn follow(&self, pts: gst::ClockTime, duration: Option<gst::ClockTime>) {
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>();
        let running_time = segment.and_then(|segment| segment.to_running_time(pts));
        let mut state = lock(&self.state);
        let jump = state.position.follow(pts, duration, running_time);
        drop(state);
        if let Some(jump) = jump
            && !(jump.is_elapsed() && is_live(self.obj().sink_pad()))
        {
            gst::debug!(CAT, imp = self, "starting anew after a jump to {pts}");
            self.start_anew();
        }
    }

    fn cancelled(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.flushing.load(Ordering::SeqCst)
    }

    /// Makes the frame in `output` of the one in `input`.
    fn paint(
        &self,
        info: &VideoInfo,
        stylizer: &mut Stylizer,
        input: &gst::Buffer,
        output: &mut gst::BufferRef,
    ) -> Result<stylizer::Report, gst::FlowError> {
        let unmapped = |error: glib::BoolError| {
            self.fail("a frame's memory cannot be used", &error.to_string())
        };
        let input = VideoFrameRef::from_buffer_ref_readable(input, info).map_err(unmapped)?;
        let mut output = VideoFrameRef::from_buffer_ref_writable(output, info).map_err(unmapped)?;
        let failed = |error: candle_core::Error| {
            self.fail("a frame cannot be converted", &error.to_string())
        };
        let image = to_image(&input).map_err(failed)?;
        let (image, report) = stylizer
            .stylize(&image, &|| self.cancelled())
            .map_err(|error| match error {
                stylizer::Error::Cancelled => gst::FlowError::Flushing,
                error => self.fail("a frame cannot be stylised", &error.to_string()),
            })?;
        write_image(&image, &input, &mut output).map_err(failed)?;
        Ok(report)
    }

    /// Writes pictures of how the frame moved, where a folder is set for them.
    fn dump_motion(&self, stylizer: &Stylizer, info: &VideoInfo) {
        let Some(folder) = lock(&self.shared).settings.dump_folder() else {
            lock(&self.state).dump = Dump::default();
            return;
        };
        let (mut dump, frame) = {
            let mut state = lock(&self.state);
            (std::mem::take(&mut state.dump), state.frames)
        };
        let size = (info.height() as usize, info.width() as usize);
        if let Err(error) = dump.add(&folder, stylizer, frame, size) {
            gst::element_imp_warning!(
                self,
                gst::ResourceError::Write,
                ("{error}; no more pictures are written there")
            );
        }
        lock(&self.state).dump = dump;
    }

    fn fail(&self, what: &str, cause: &str) -> gst::FlowError {
        gst::element_imp_error!(self, gst::StreamError::Failed, ("{what}: {cause}"));
        gst::FlowError::Error
    }

    fn report(&self, structure: gst::Structure) {
        gst::debug!(CAT, imp = self, "{structure}");
        let post = {
            let mut shared = lock(&self.shared);
            shared.stats = Some(structure.clone());
            shared.settings.post_messages
        };
        if post {
            self.post(
                gst::message::Element::builder(structure)
                    .src(&*self.obj())
                    .build(),
            );
        }
    }

    fn post(&self, message: gst::Message) {
        // Without a bus there is nobody to tell.
        let _ = self.obj().post_message(message);
    }
}
