// SPDX-License-Identifier: MPL-2.0

//! Loads what the settings name; errors name the property, the path and the cause.

use super::settings::{Invalid, Settings};
use crate::stylizer::Stylizer;
use crate::stylizer::device;
use crate::stylizer::style::StyleImage;
use crate::vgg::Vgg;
use crate::vgg::weights::Source;
use gst::{ErrorMessage, ResourceError, error_msg};
use std::path::Path;

/// A stylizer as `settings` have it, and why it is not on the GPU where `device=auto` had to do
/// without one.
pub fn stylizer(settings: &Settings) -> Result<(Stylizer, Option<String>), ErrorMessage> {
    let invalid = |error: Invalid| error_msg!(ResourceError::Settings, ("{error}"));
    let config = settings.config().map_err(invalid)?;
    let choice = settings.device().map_err(invalid)?;
    let Some(path) = settings.style_path() else {
        return Err(error_msg!(
            ResourceError::NotFound,
            ("style-image is not set: the path of an image is needed")
        ));
    };
    let style = style(&path).map_err(|error| error_msg!(ResourceError::OpenRead, ("{error}")))?;
    let (device, fallback) = choice.open().map_err(|error| {
        let name = settings.device.as_deref().unwrap_or_default();
        error_msg!(ResourceError::OpenRead, ("device={name}: {error}"))
    })?;
    let source = settings.weights();
    let vgg = Vgg::shared(&source, &device).map_err(|error| {
        let name = match &source {
            Source::BuiltIn => "those built in".into(),
            Source::File(path) => format!("‘{}’", path.display()),
        };
        error_msg!(ResourceError::OpenRead, ("weights={name}: {error}"))
    })?;
    let stylizer = Stylizer::new(vgg, style, config)
        .map_err(|error| error_msg!(ResourceError::Settings, ("{error}")))?;
    let fallback =
        fallback.map(|reason| format!("device=auto takes {}: {reason}", device::name(&device)));
    Ok((stylizer, fallback))
}

/// Loads a style image.
pub fn style(path: &Path) -> Result<StyleImage, String> {
    StyleImage::load(path).map_err(|error| format!("style-image=‘{}’: {error}", path.display()))
}
