// SPDX-License-Identifier: MPL-2.0

//! The table of properties, and the conversion of their values for the stylizer.

use super::{Color, Init, LossScale, Motion, Optimizer, Pooling, Precision};
use crate::stylizer::config::{Config, LayerWeights, MAX_WEIGHT};
use crate::stylizer::device::DeviceChoice;
use crate::stylizer::resize::MAX_SIDE;
use crate::vgg::weights::WeightsSource;
use gst::glib::{self, ParamFlags, ParamSpec, Value};
use gst::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

/// Takes effect on the next frame and may be driven by a controller.
const CONTROLLABLE: ParamFlags = LIVE.union(gst::PARAM_FLAG_CONTROLLABLE);
/// Takes effect on the next frame; a style image, once it is loaded.
const LIVE: ParamFlags = ParamFlags::READWRITE.union(gst::PARAM_FLAG_MUTABLE_PLAYING);
/// May only change in NULL and READY.
const READY: ParamFlags = ParamFlags::READWRITE.union(gst::PARAM_FLAG_MUTABLE_READY);

/// A property: its specification, and the accessors of its field in the settings.
pub struct Property {
    pub spec: ParamSpec,
    pub get: fn(&Settings) -> Value,
    pub set: fn(&mut Settings, &Value),
}

/// The type of a property.
trait PropertyType: Sized {
    /// Takes a value, whose type GObject has already checked.
    fn set(&mut self, value: &Value);

    /// The lowest and highest value, or `()`.
    type Range;

    fn spec(
        name: &str,
        nick: &str,
        blurb: &str,
        default: Self,
        range: Self::Range,
        flags: ParamFlags,
    ) -> ParamSpec;
}

macro_rules! ranged {
    ($($type:ty, $spec:ident;)+) => {$(
        impl PropertyType for $type {
            type Range = (Self, Self);

            fn set(&mut self, value: &Value) {
                *self = value.get().unwrap_or(*self);
            }

            fn spec(
                name: &str, nick: &str, blurb: &str, default: Self, (minimum, maximum): Self::Range, flags: ParamFlags,
            ) -> ParamSpec {
                glib::$spec::builder(name).nick(nick).blurb(blurb)
                    .minimum(minimum).maximum(maximum).default_value(default).flags(flags).build()
            }
        }
    )+};
}

macro_rules! unranged {
    ($($type:ty, |$value:ident| $get:expr, |$name:ident, $default:ident| $builder:expr;)+) => {$(
        impl PropertyType for $type {
            type Range = ();

            fn set(&mut self, $value: &Value) {
                if let Ok(value) = $get {
                    *self = value;
                }
            }

            fn spec($name: &str, nick: &str, blurb: &str, $default: Self, (): (), flags: ParamFlags) -> ParamSpec {
                $builder.nick(nick).blurb(blurb).flags(flags).build()
            }
        }
    )+};
}

ranged! {
    f64, ParamSpecDouble;
    u32, ParamSpecUInt;
    u64, ParamSpecUInt64;
}

unranged! {
    bool, |value| value.get(), |name, default| glib::ParamSpecBoolean::builder(name).default_value(default);
    // Read as a path, because a string from C may not be UTF-8.
    Option<String>, |value| value.get().map(|text: Option<PathBuf>| text.map(|text| text.to_string_lossy().into_owned())), |name, default| glib::ParamSpecString::builder(name).default_value(default.as_deref());
    // None is set by default.
    Option<PathBuf>, |value| value.get(), |name, _default| glib::ParamSpecString::builder(name);
}

macro_rules! enums {
    ($($type:ty),+) => {
        unranged! {$(
            $type, |value| value.get(), |name, default| glib::ParamSpecEnum::builder_with_default(name, default);
        )+}
    };
}

enums!(
    Optimizer, Init, Motion, Pooling, Color, Precision, LossScale
);

/// Generates `Settings`, its defaults and `PROPERTIES` from rows of
/// `field: type = default, range, "name", "nick", "blurb", flags;`.
macro_rules! properties {
    (
        let $defaults:ident = $config:expr;
        $($field:ident: $type:ty = $default:expr, $range:expr, $name:literal, $nick:literal, $blurb:expr, $flags:expr;)+
    ) => {
        /// The values of the properties, as they were set. A path that is not set is None and never empty; a
        /// device that is not set is `auto`.
        #[derive(Clone, Debug)]
        pub struct Settings { $(pub $field: $type,)+ }

        impl Default for Settings {
            fn default() -> Self {
                let $defaults = $config;
                Self { $($field: $default,)+ }
            }
        }

        /// The properties.
        pub static PROPERTIES: LazyLock<Vec<Property>> = LazyLock::new(|| {
            let defaults = Settings::default();
            vec![$(Property {
                spec: <$type>::spec($name, $nick, $blurb, defaults.$field.clone(), $range, $flags),
                get: |settings| settings.$field.to_value(),
                set: |settings, value| {
                    settings.$field.set(value);
                    settings.normalise();
                },
            },)+]
        });
    };
}

properties! {
    let config = Config::default();

    style_image: Option<PathBuf> = None, (),
        "style-image", "Style image",
        "Path of the image whose style is painted: PNG, JPEG or WebP. Required. Changed while playing, \
         it is loaded in the background and used as soon as it is ready; a first frame waits for it", LIVE;
    style_scale: f64 = config.style_scale, (0.05, 4.0),
        "style-scale", "Style scale",
        "Longest side of the style image relative to the longest side that is optimised: smaller makes finer \
         strokes. The image is enlarged to at most twice its own size", CONTROLLABLE;
    alpha: f64 = config.alpha, (0.0, MAX_WEIGHT),
        "alpha", "Content weight", "Weight of the content loss: higher keeps more of the frame", CONTROLLABLE;
    beta: f64 = config.beta, (0.0, MAX_WEIGHT),
        "beta", "Style weight", "Weight of the style loss: higher paints more freely", CONTROLLABLE;
    content_layers: Option<String> = Some(config.content_layers.to_string()), (),
        "content-layers", "Content layers",
        "Layers whose features are to match the frame's, separated by commas, each with or without a weight: conv4_2 \
         or conv3_1:0.3,conv4_2:0.7. Without weights they share 1 equally. The layers are conv1_1 to conv5_4; \
         the built-in weights end at conv5_1", LIVE;
    style_layers: Option<String> = Some(config.style_layers.to_string()), (),
        "style-layers", "Style layers",
        "Layers whose feature correlations are to match the style's, written like content-layers. The deeper, the \
         larger the patterns", LIVE;
    iterations: u32 = config.iterations, (1, 100_000),
        "iterations", "Iterations",
        "Iterations for each frame after the first, one evaluation of loss and gradient each. The first iteration only \
         evaluates the starting image, so 1 changes nothing", CONTROLLABLE;
    initial_iterations: u32 = config.initial_iterations, (1, 100_000),
        "initial-iterations", "Initial iterations",
        "Iterations for the first frame, and the first after a scene cut, a seek, a change of format or, in a \
         recording, a gap of over a second", CONTROLLABLE;
    time_budget: u64 = 0, (0, u64::MAX),
        "time-budget", "Time budget",
        "Nanoseconds after which a frame's optimisation stops and the best image so far is sent (0 = none). A frame \
         gets at least two iterations", CONTROLLABLE;
    optimizer: Optimizer = config.optimizer.into(), (),
        "optimizer", "Optimizer", "How the image is improved", LIVE;
    learning_rate: f64 = config.learning_rate, (1e-6, 1.0),
        "learning-rate", "Learning rate",
        "Adam's step relative to the range of a pixel; L-BFGS finds its own", CONTROLLABLE;
    lbfgs_history: u32 = config.lbfgs_history, (1, 1000),
        "lbfgs-history", "L-BFGS history", "Steps that L-BFGS remembers: more need more memory, and mostly fewer iterations", CONTROLLABLE;
    init: Init = config.init.into(), (),
        "init", "Start", "The image that a frame's optimisation starts from", LIVE;
    noise: f64 = config.noise, (0.0, 1.0),
        "noise", "Noise",
        "Share of noise in the starting image of a frame that does not continue from the previous result (0 = none, 1 = only noise)", CONTROLLABLE;
    seed: u64 = config.seed, (0, u64::MAX),
        "seed", "Seed", "Seed of the noise", CONTROLLABLE;
    tv_weight: f64 = config.tv_weight, (0.0, MAX_WEIGHT),
        "tv-weight", "Total variation weight",
        "Weight of the squared differences between neighbouring pixels: higher makes it smoother", CONTROLLABLE;
    temporal_weight: f64 = config.temporal_weight, (0.0, MAX_WEIGHT),
        "temporal-weight", "Temporal weight",
        "Weight of the mean squared difference to the previous result warped by the motion, where that is reliable: higher \
         flickers less. Needs motion=flow", CONTROLLABLE;
    motion: Motion = config.motion.into(), (),
        "motion", "Motion", "How the previous result becomes the start of a frame", LIVE;
    scene_cut: f64 = config.scene_cut, (0.0, 1.0),
        "scene-cut", "Scene cut",
        "Change from which a frame begins another scene, which is painted from scratch with initial-iterations (1 = \
         never)", CONTROLLABLE;
    skip_still: bool = config.skip_still, (),
        "skip-still", "Skip still frames",
        "While the picture stays the same except for noise, refine its painting until it has converged, then repeat it", LIVE;
    motion_dump: Option<PathBuf> = None, (),
        "motion-dump", "Motion dump",
        "Folder, created if missing, for pictures of how each painted frame moved since the one before, of the size \
         that is optimised: flow-000123.png for frame 123 of the messages, whose hue is the direction (right is red, \
         down yellow, left sky blue, up violet) and whose saturation is the length (white is at rest, full colour is the frame's \
         longest motion, or 1 pixel where all are shorter); and mask-000123.png, white where that is reliable, grey \
         where two motions meet, black where the previous frame hid what is seen. There are none for frames whose motion \
         is not estimated: first, still and repeated ones. If it cannot be written, a warning is posted once \
         (empty = no pictures)", LIVE;
    pooling: Pooling = config.pooling.into(), (),
        "pooling", "Pooling", "How the network halves its features", LIVE;
    max_size: u32 = config.max_size.unwrap_or(0), (0, MAX_SIDE),
        "max-size", "Maximum size",
        "Longest side that is optimised (0 = the frame's own, up to 32768); a larger frame is scaled down and its result up again. \
         The time of a frame grows with its square", CONTROLLABLE;
    color: Color = config.color.into(), (),
        "color", "Colour", "Where the colours come from", LIVE;
    weights: Option<PathBuf> = None, (),
        "weights", "Weights",
        "The network's weights: path of a VGG-19's safetensors, PyTorch, Keras (HDF5) or .npz file, recognised by its \
         content; or the name of one in gst-plugin-gatys below a data directory (empty = built in). weights-info says \
         what was recognised", READY;
    n_threads: u32 = config.n_threads, (0, 1024),
        "n-threads", "Threads",
        "CPU threads of this element while it paints, at most 8 per core (0 = one per core, or as many as RAYON_NUM_THREADS says)", CONTROLLABLE;
    post_messages: bool = true, (),
        "post-messages", "Post messages",
        "Post an element message named gatys for each frame, with the fields of stats", LIVE;
    device: Option<String> = Some("auto".into()), (),
        "device", "Device",
        "auto, cpu, cuda or cuda:N. auto is the first GPU if this build has CUDA and the GPU works, else the CPU", READY;
    precision: Precision = Precision::Auto, (),
        "precision", "Precision",
        "What the network's features are computed in; sums are always f32. One that the device lacks is an error: CPUs have \
         f32, and bf16 with AMX; GPUs with cuDNN have all, tf32 and bf16 from Ampere on. auto is f16 on those, bf16 with AMX, else f32", READY;
    loss_scale: LossScale = config.loss_scale.into(), (),
        "loss-scale", "Loss scale", "What the losses are divided by before alpha and beta", LIVE;
    frame_interval: u32 = config.frame_interval, (1, 100_000),
        "frame-interval", "Frame interval",
        "Paint every n-th frame and repeat its result for the others", CONTROLLABLE;
}

/// The table's property with a specification's name, if there is one.
pub fn property(spec: &ParamSpec) -> Option<&'static Property> {
    PROPERTIES
        .iter()
        .find(|property| property.spec.name() == spec.name())
}

/// A property's value that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{property}=‘{value}’: {cause}")]
pub struct InvalidSetting {
    property: &'static str,
    value: String,
    cause: String,
}

impl InvalidSetting {
    fn new(property: &'static str, value: &str, cause: impl ToString) -> Self {
        Self {
            property,
            value: value.into(),
            cause: cause.to_string(),
        }
    }
}

impl Settings {
    /// Gives values that mean the same one form, so that they compare equal.
    fn normalise(&mut self) {
        for path in [
            &mut self.style_image,
            &mut self.motion_dump,
            &mut self.weights,
        ] {
            path.take_if(|path| path.as_os_str().is_empty());
        }
        self.device.get_or_insert_with(|| "auto".into());
    }

    /// The stylizer's configuration.
    pub fn config(&self) -> Result<Config, InvalidSetting> {
        let (config, refused) = self.config_or(&Config::default());
        refused.into_iter().next().map_or(Ok(config), Err)
    }

    /// The stylizer's configuration, with the layers `in_use` for those that cannot be used.
    pub fn config_or(&self, in_use: &Config) -> (Config, Vec<InvalidSetting>) {
        let mut refused = Vec::new();
        let mut layers = |property, list: &Option<String>, in_use: &LayerWeights| {
            let list = list.as_deref().unwrap_or_default();
            list.parse().unwrap_or_else(|error| {
                refused.push(InvalidSetting::new(property, list, error));
                in_use.clone()
            })
        };
        let content_layers = layers(
            "content-layers",
            &self.content_layers,
            &in_use.content_layers,
        );
        let style_layers = layers("style-layers", &self.style_layers, &in_use.style_layers);
        let config = Config {
            style_scale: self.style_scale,
            alpha: self.alpha,
            beta: self.beta,
            content_layers,
            style_layers,
            iterations: self.iterations,
            initial_iterations: self.initial_iterations,
            time_budget: (self.time_budget > 0).then(|| Duration::from_nanos(self.time_budget)),
            optimizer: self.optimizer.into(),
            learning_rate: self.learning_rate,
            lbfgs_history: self.lbfgs_history,
            init: self.init.into(),
            noise: self.noise,
            seed: self.seed,
            tv_weight: self.tv_weight,
            temporal_weight: self.temporal_weight,
            motion: self.motion.into(),
            scene_cut: self.scene_cut,
            skip_still: self.skip_still,
            pooling: self.pooling.into(),
            max_size: (self.max_size > 0).then_some(self.max_size),
            color: self.color.into(),
            loss_scale: self.loss_scale.into(),
            frame_interval: self.frame_interval,
            n_threads: self.n_threads,
        };
        (config, refused)
    }

    /// The device to compute on.
    pub fn device(&self) -> Result<DeviceChoice, InvalidSetting> {
        let value = self.device.as_deref().unwrap_or_default();
        value
            .parse()
            .map_err(|error| InvalidSetting::new("device", value, error))
    }

    /// Where the weights are read from: a file, else a name in a data directory.
    pub fn weights(&self) -> WeightsSource {
        let Some(path) = self.weights.clone() else {
            return WeightsSource::BuiltIn;
        };
        match weights_by_name(&path) {
            Some(named) if named.exists() => WeightsSource::File(named),
            _ => WeightsSource::File(path),
        }
    }
}

/// The path of the weights called `path` in the user's data directory or the first of the system's that has them,
/// unless `path` has several components or is itself a file.
pub fn weights_by_name(path: &Path) -> Option<PathBuf> {
    if path.components().count() != 1 || path.is_file() {
        return None;
    }
    let named = |directory: PathBuf| {
        let mut named = directory
            .join("gst-plugin-gatys")
            .join(path)
            .into_os_string();
        named.push(".safetensors");
        PathBuf::from(named)
    };
    let of_user = named(glib::user_data_dir());
    let of_system = glib::system_data_dirs().into_iter().map(named);
    let mut all = std::iter::once(of_user.clone()).chain(of_system);
    Some(all.find(|named| named.exists()).unwrap_or(of_user))
}
