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
use super::Precision;
use super::controls::{Controls, Pending};
use super::dump::MotionDump;
use super::frame;
use super::load;
use super::qos::QosEvent;
use super::report;
use super::settings::{PROPERTIES, property};
use super::stream::StreamState;
use super::timeline::FrameTime;
use crate::stylizer::Stylizer;
use crate::threads::lock;
use crate::vgg::Vgg;
use crate::vgg::weights::WeightsSource;
use gst::glib::{self, ParamSpec};
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::BaseTransformMode;
use gst_base::subclass::prelude::*;
use gst_video::VideoInfo;
use gst_video::subclass::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

mod paint;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "gatys",
        gst::DebugColorFlags::empty(),
        Some("Gatys style transfer"),
    )
});

/// The weights, and the properties `device` and `precision`.
type NetworkSource = (WeightsSource, Option<String>, Precision);

/// None of these locks is held while foreign code runs, so what a poisoned one guards is whole.
#[derive(Default)]
pub struct Gatys {
    controls: Controls,
    stream: Mutex<StreamState>,
    /// For the streaming thread alone.
    dump: Mutex<MotionDump>,
    /// Kept in READY with what it was made from, so that the next start need not load it.
    network: Mutex<Option<(NetworkSource, Arc<Vgg>)>>,
    /// Either of these cancels the frame that is being painted.
    stopping: AtomicBool,
    flushing: AtomicBool,
}

#[glib::object_subclass]
impl ObjectSubclass for Gatys {
    const NAME: &'static str = "GstGatys";
    type Type = super::Gatys;
    type ParentType = gst_video::VideoFilter;
}

impl ObjectImpl for Gatys {
    fn properties() -> &'static [ParamSpec] {
        static SPECS: LazyLock<Vec<ParamSpec>> = LazyLock::new(|| {
            let settings = PROPERTIES.iter().map(|property| property.spec.clone());
            settings.chain(report::specs()).collect()
        });
        &SPECS
    }

    fn set_property(&self, _id: usize, value: &glib::Value, spec: &ParamSpec) {
        let Some(property) = property(spec) else {
            return;
        };
        match self.controls.set(property, value) {
            Pending::Nothing => (),
            Pending::LoadStyle => self.obj().call_async(|element| element.imp().load_style()),
            Pending::Restart => {
                self.warn(&format!("{} can only change in READY or NULL", spec.name()));
            }
        }
    }

    fn property(&self, _id: usize, spec: &ParamSpec) -> glib::Value {
        match property(spec) {
            Some(property) => self.controls.get(property),
            None if spec.name() == "weights-info" => self.controls.weights_info().to_value(),
            None => self.controls.stats().to_value(),
        }
    }

    fn constructed(&self) {
        self.parent_constructed();
        // A gap buffer is painted like any other, and keeps its GAP flag.
        self.obj().set_gap_aware(true);
    }
}

impl GstObjectImpl for Gatys {}

impl ElementImpl for Gatys {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
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
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(frame::pad_templates);
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
        // Pads take data before `start` is done, which loads a network, and the base class forgets the caps
        // that come meanwhile. So what is pushed waits; handlers that `start` calls must not wait for it.
        let element = self.obj();
        let sink = element.sink_pad();
        let _waits = (transition == gst::StateChange::ReadyToPaused).then(|| sink.stream_lock());
        let changed = self.parent_change_state(transition);
        if transition == gst::StateChange::ReadyToNull {
            *lock(&self.network) = None;
        }
        changed
    }
}

impl BaseTransformImpl for Gatys {
    const MODE: BaseTransformMode = BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.controls.start();
        let source = (
            settings.weights(),
            settings.device.clone(),
            settings.precision,
        );
        // Freed before another one is loaded.
        lock(&self.network).take_if(|(in_use, _)| *in_use != source);
        let (stylizer, fallback) =
            load::stylizer(&settings).inspect_err(|_| self.controls.stop())?;
        if let Some(reason) = fallback {
            gst::element_imp_warning!(self, gst::ResourceError::NotFound, ("{reason}"));
        }
        let weights_info = report::weights_info(stylizer.vgg());
        gst::info!(CAT, imp = self, "Weights: {weights_info}");
        self.controls.set_weights_info(weights_info);
        self.obj().notify("weights-info");
        *lock(&self.network) = Some((source, stylizer.vgg().clone()));
        self.flushing.store(false, Ordering::SeqCst);
        *lock(&self.stream) = StreamState::new(stylizer);
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        let stream = std::mem::take(&mut *lock(&self.stream));
        // Freed after the lock is released.
        drop(stream);
        *lock(&self.dump) = MotionDump::default();
        self.controls.stop();
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        match event.view() {
            EventView::FlushStart(_) => self.flushing.store(true, Ordering::SeqCst),
            EventView::FlushStop(_) => {
                self.flushing.store(false, Ordering::SeqCst);
                lock(&self.stream).reset();
            }
            EventView::StreamStart(event) => {
                // Not `stream_id`: an identifier that is not UTF-8 is none.
                let id = event.structure().map(|fields| fields.get("stream-id"));
                if let Some(Ok(id)) = id {
                    lock(&self.stream).set_id(id);
                }
            }
            _ => (),
        }
        self.parent_sink_event(event)
    }

    fn src_event(&self, event: gst::Event) -> bool {
        let qos = match event.view() {
            gst::EventView::Qos(event) => self.now().and_then(|now| QosEvent::new(event, now)),
            _ => None,
        };
        let resets = lock(&self.stream).resets;
        let handled = self.parent_src_event(event);
        if let Some(qos) = qos {
            let mut stream = lock(&self.stream);
            // The way upstream may take long enough for a flushing seek.
            if stream.resets == resets {
                stream.set_qos(qos);
                drop(stream);
                self.skip_late_frames();
            }
        }
        handled
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        let answered = BaseTransformImplExt::parent_query(self, direction, query);
        if answered
            && direction == gst::PadDirection::Src
            && let gst::QueryViewMut::Latency(query) = query.view_mut()
        {
            let own = lock(&self.stream).pace.latency();
            let (live, min, max) = query.result();
            query.set(
                live,
                min.saturating_add(own),
                max.map(|max| max.saturating_add(own)),
            );
        }
        answered
    }

    /// Whatever describes a frame describes its painting: all metas are copied.
    fn transform_meta<'a>(
        &self,
        _output: &mut gst::BufferRef,
        _meta: gst::MetaRef<'a, gst::Meta>,
        _input: &'a gst::BufferRef,
    ) -> bool {
        true
    }

    /// Called for every frame, those that QoS drops before `transform` included.
    fn submit_input_buffer(
        &self,
        is_discont: bool,
        input: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if let Some(pts) = input.pts() {
            self.reset_after_jump(pts, input.duration());
        }
        self.parent_submit_input_buffer(is_discont, input)
    }

    /// In place of `VideoFilterImpl::transform_frame`, which would push an unwritten buffer where one cannot be
    /// mapped.
    fn transform(
        &self,
        input: &gst::Buffer,
        output: &mut gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if self.is_cancelled() {
            return Err(gst::FlowError::Flushing);
        }
        if input.size() == 0 && input.flags().contains(gst::BufferFlags::GAP) {
            return Ok(self.skip_gap(input));
        }
        if let Some(pts) = input.pts() {
            self.sync_controlled_properties(pts);
        }
        self.with_stylizer(|stylizer| self.paint_frame(stylizer, input, output))
            .unwrap_or(Err(gst::FlowError::NotNegotiated))?;
        self.skip_late_frames();
        lock(&self.stream).qos = None;
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
        let fits = self.with_stylizer(|stylizer| {
            let before = stylizer.replace_frame_size(Some(size));
            // With the settings that the first frame will have: a smaller `max-size` may have been set since.
            self.apply_settings(stylizer);
            let fits = stylizer.check_memory(size);
            if fits.is_err() {
                // The caps before remain in force, and will not be offered again.
                stylizer.replace_frame_size(before);
                self.controls.apply_again();
            }
            fits
        });
        let Some(Err(error)) = fits else {
            lock(&self.stream).set_info(in_info);
            return Ok(());
        };
        // GStreamer offers refused caps again, with the query or the buffer that follows.
        if lock(&self.stream).too_large.replace(size) != Some(size) {
            self.out_of_memory(&error);
        }
        Err(gst::loggable_error!(CAT, "{error}"))
    }
}

impl Gatys {
    /// Loads the style image beside the stream, for the next frame.
    fn load_style(&self) {
        if let Err(error) = self.controls.load_style(load::style) {
            self.warn(&error);
        }
    }

    /// Sends a buffer without a picture on as an event: downstream goes on showing the last painting.
    fn skip_gap(&self, gap: &gst::Buffer) -> gst::FlowSuccess {
        if let Some(pts) = gap.pts() {
            let event = gst::event::Gap::new(pts, gap.duration());
            self.obj().src_pad().push_event(event);
        }
        gst_base::BASE_TRANSFORM_FLOW_DROPPED
    }

    /// Has the base class drop the next frames up to the first that can be in time.
    ///
    /// By itself, the base class drops frames for the lateness of the last one alone. Where painting one
    /// takes longer than the next is away, each would be late again, and most sinks show no late frames.
    fn skip_late_frames(&self) {
        let skip = self
            .now()
            .and_then(|now| lock(&self.stream).first_in_time(now));
        if let Some((first, proportion)) = skip {
            gst::log!(CAT, imp = self, "frames before {first} would be late");
            // A nanosecond less, as the base class drops a frame at just that time, too.
            self.obj().update_qos(proportion, -1, first);
        }
    }

    /// The clock's running time. None while it stands still, or without a clock.
    fn now(&self) -> Option<gst::ClockTime> {
        let obj = self.obj();
        let is_playing = obj.current_state() == gst::State::Playing;
        is_playing.then(|| obj.current_running_time()).flatten()
    }

    /// Resets the stylizer where a frame does not follow the last one in time.
    fn reset_after_jump(&self, pts: gst::ClockTime, duration: Option<gst::ClockTime>) {
        let segment = self.time_segment();
        let now = self.now();
        let mut stream = lock(&self.stream);
        let duration = stream.frame_duration(duration);
        let jumps = stream.advance(FrameTime::new(pts, duration, segment.as_ref()), now);
        drop(stream);
        if jumps {
            gst::debug!(CAT, imp = self, "starting anew after a jump to {pts}");
        }
    }

    fn time_segment(&self) -> Option<gst::FormattedSegment<gst::ClockTime>> {
        self.obj().segment().downcast::<gst::ClockTime>().ok()
    }

    /// Sets the properties that have controllers to their values at a frame's stream time.
    fn sync_controlled_properties(&self, pts: gst::ClockTime) {
        let segment = self.time_segment();
        let stream_time = segment.and_then(|segment| segment.to_stream_time(pts));
        if let Some(time) = stream_time
            && let Err(error) = self.obj().sync_values(time)
        {
            gst::warning!(CAT, imp = self, "properties cannot be controlled: {error}");
        }
    }

    /// Lends the stylizer to `work`, if there is one. No lock is held meanwhile, so that properties, queries
    /// and state changes do not wait.
    fn with_stylizer<T>(&self, work: impl FnOnce(&mut Stylizer) -> T) -> Option<T> {
        let mut stylizer = lock(&self.stream).take_stylizer()?;
        let result = work(&mut stylizer);
        lock(&self.stream).put_back(stylizer);
        Some(result)
    }
}
