// SPDX-License-Identifier: MPL-2.0

//! The GStreamer element `gatys`: all of the crate that depends on GStreamer.

mod controls;
mod dump;
mod frame;
mod imp;
mod load;
mod pace;
mod qos;
mod report;
mod settings;
mod stream;
mod timeline;

use crate::stylizer::config;
use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element `gatys`: paints each frame in the style of an image, by Gatys' optimisation.
    pub struct Gatys(ObjectSubclass<imp::Gatys>)
        @extends gst_video::VideoFilter, gst_base::BaseTransform, gst::Element, gst::Object;
}

/// A GLib enum type that mirrors an enum `$of` of the stylizer.
macro_rules! enumeration {
    (
        $(#[$doc:meta])* $name:ident, $gtype:literal, $of:path,
        { $($variant:ident, $nick:literal, $blurb:literal;)+ }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, glib::Enum)]
        #[repr(i32)]
        #[enum_type(name = $gtype)]
        pub enum $name {
            $(#[doc = $blurb] #[enum_value(name = $blurb, nick = $nick)] $variant,)+
        }

        impl From<$name> for $of {
            fn from(value: $name) -> Self {
                match value { $($name::$variant => Self::$variant,)+ }
            }
        }

        impl From<$of> for $name {
            fn from(value: $of) -> Self {
                match value { $(<$of>::$variant => Self::$variant,)+ }
            }
        }
    };
}

enumeration!(
    /// The optimisation algorithm.
    Optimizer, "GstGatysOptimizer", config::OptimizerKind, {
        Lbfgs, "lbfgs", "L-BFGS: learns the curvature, reaches the lowest loss in the same iterations";
        Adam, "adam", "Adam: steps of learning-rate, little memory";
    }
);

enumeration!(
    /// The image that the optimisation of a frame starts from.
    Init, "GstGatysInit", config::Init, {
        Previous, "previous", "The result of the frame before, moved as the property motion says; for a first frame, itself in the style's colours";
        Content, "content", "The frame itself";
        Noise, "noise", "Uniform noise, the same for each frame";
    }
);

enumeration!(
    /// How the previous result is moved to the next frame.
    Motion, "GstGatysMotion", config::MotionKind, {
        None, "none", "Brush strokes stay in place, and what changed in the frame is added under them";
        Flow, "flow", "Along the optical flow: brush strokes go with what they paint";
    }
);

enumeration!(
    /// The pooling between the blocks of the network.
    Pooling, "GstGatysPooling", crate::vgg::Pooling, {
        Avg, "avg", "Average pooling, which Gatys et al. recommend";
        Max, "max", "Max pooling, which VGG-19 was trained with on ImageNet";
    }
);

enumeration!(
    /// The image whose colours the result has.
    Color, "GstGatysColor", config::Color, {
        Style, "style", "The colours of the style image";
        Content, "content", "The colours of the frame: only luminance is painted";
    }
);

enumeration!(
    /// The normalisation of the losses.
    LossScale, "GstGatysLossScale", config::LossScale, {
        Relative, "relative", "Relative squared errors, alike for all sizes, layers and weights";
        Mean, "mean", "Content loss by its number of features";
        Paper, "paper", "The paper's formulas, Gram matrices by their number of positions";
    }
);

enumeration!(
    /// The precision of the network's features.
    Precision, "GstGatysPrecision", crate::vgg::Precision, {
        Auto, "auto", "The fastest that keeps the gradient's direction: f16 on GPUs with cuDNN, bf16 on CPUs with AMX, else f32";
        F32, "f32", "Single precision, on any device";
        Tf32, "tf32", "TensorFloat-32: convolutions of f32 rounded to 10 bits of fraction, on GPUs from Ampere on";
        Bf16, "bf16", "bfloat16 with sums in f32: on CPUs with AMX, and on GPUs from Ampere on";
        F16, "f16", "Half precision with sums in f32: on GPUs";
    }
);

/// Registers the element.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "gatys", gst::Rank::NONE, Gatys::static_type())
}
