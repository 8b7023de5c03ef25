// SPDX-License-Identifier: MPL-2.0

//! Makes the stylizer, and what it needs, from the settings. Errors name the property, its value and
//! the cause.

use super::settings::{InvalidSetting, Settings, weights_by_name};
use crate::stylizer::config::{Config, ConfigError};
use crate::stylizer::style::{self, StyleImage};
use crate::stylizer::{self, Stylizer, device};
use crate::vgg::weights::WeightsSource;
use crate::vgg::{Precision, Vgg, shared};
use gst::{ErrorMessage, ResourceError, error_msg};
use std::fmt::Display;
use std::panic::{UnwindSafe, catch_unwind};
use std::path::Path;

/// The longest cause of an error that quotes a file, in characters.
const MAX_CAUSE: usize = 1000;

/// The stylizer that `settings` describe, and why it is on the CPU if `device=auto` found no usable
/// GPU in a build with CUDA.
pub fn stylizer(settings: &Settings) -> Result<(Stylizer, Option<String>), ErrorMessage> {
    let invalid = |error: InvalidSetting| error_msg!(ResourceError::Settings, ("{error}"));
    let config = settings.config().map_err(invalid)?;
    let choice = settings.device().map_err(invalid)?;
    let path = settings.style_image.as_deref();
    let style = style(path).map_err(|error| error_msg!(unreadable(path), ("{error}")))?;
    let (device, fallback) = choice.open().map_err(|error| {
        let name = settings.device.as_deref().unwrap_or_default();
        let code = match error {
            device::Error::Cuda(..) => ResourceError::NotFound,
            device::Error::Unknown(_) | device::Error::NoCuda => ResourceError::Settings,
        };
        error_msg!(code, ("device={name}: {error}"))
    })?;
    let source = settings.weights();
    let precision = Precision::from(settings.precision);
    let vgg = Vgg::shared(&source, &device, precision).map_err(|error| match error {
        shared::Error::Precision(error) => {
            error_msg!(ResourceError::Settings, ("precision={precision}: {error}"))
        }
        error => {
            let code = match &source {
                WeightsSource::BuiltIn => ResourceError::OpenRead,
                WeightsSource::File(path) => unreadable(Some(path)),
            };
            error_msg!(code, ("{}", weights_error(&source, &error)))
        }
    })?;
    let stylizer = Stylizer::new(vgg, style, config)
        .map_err(|error| error_msg!(ResourceError::Settings, ("{error}")))?;
    let fallback =
        fallback.map(|reason| format!("device=auto takes {}: {reason}", device::name(&device)));
    Ok((stylizer, fallback))
}

/// The code of the error of a file that cannot be used, or was not named.
fn unreadable(path: Option<&Path>) -> ResourceError {
    match path.map(|path| path.try_exists()) {
        None | Some(Ok(false)) => ResourceError::NotFound,
        Some(Ok(true) | Err(_)) => ResourceError::OpenRead,
    }
}

fn weights_error(source: &WeightsSource, error: &shared::Error) -> String {
    let path = match source {
        WeightsSource::BuiltIn => return format!("the built-in weights: {error}"),
        WeightsSource::File(path) => path,
    };
    let named = match weights_by_name(path) {
        Some(named) => format!(
            "; there is no {} either (weights/get.sh makes it for the name imagenet), nor one in the system's data directories",
            named.display()
        ),
        None => String::new(),
    };
    format!("weights=‘{}’: {}{named}", path.display(), printable(error))
}

/// An error that quotes a file, fit for a terminal: with blanks for control characters, and not of any length.
fn printable(error: &impl Display) -> String {
    let error = error.to_string().replace(char::is_control, " ");
    match error.char_indices().nth(MAX_CAUSE) {
        Some((end, _)) => format!("{}…", &error[..end]),
        None => error,
    }
}

/// Loads the image that `style-image` names.
pub fn style(path: Option<&Path>) -> Result<StyleImage, String> {
    let path = path.ok_or("style-image is not set: the path of an image is needed")?;
    decode(path, StyleImage::load)
}

/// Decodes a style image. A panic of the decoder is an error like any other: it would make the element
/// unusable or, beside the stream, abort the process.
fn decode(
    path: &Path,
    load: impl FnOnce(&Path) -> Result<StyleImage, style::Error> + UnwindSafe,
) -> Result<StyleImage, String> {
    match catch_unwind(|| load(path)) {
        Ok(style) => style.map_err(|error| style_fault(path, &error)),
        Err(_) => Err(style_fault(path, &"the image decoder panicked")),
    }
}

fn style_fault(path: &Path, cause: &dyn Display) -> String {
    format!("style-image=‘{}’: {cause}", path.display())
}

/// Gives a running stylizer the style image from `path`. An error says why it cannot be used: the one in use
/// is kept.
pub fn apply_style(path: &Path, style: StyleImage, stylizer: &mut Stylizer) -> Result<(), String> {
    let applied = stylizer.set_style(style);
    applied.map_err(|error| style_fault(path, &error))
}

/// What is wrong with a value that cannot be used. Two are equal if it is the same value.
#[derive(Clone)]
pub struct Refusal {
    pub cause: String,
    /// The settings with which frames do not fit into memory: the cause also says how much is free,
    /// which varies.
    too_large: Option<Config>,
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        match (&self.too_large, &other.too_large) {
            (Some(config), Some(other)) => config.with_memory_of(other) == *config,
            (None, None) => self.cause == other.cause,
            _ => false,
        }
    }
}

/// Gives a running stylizer the settings. Where one cannot be used, the value in use is kept; the
/// result says what was wrong with each of those.
pub fn apply(settings: &Settings, stylizer: &mut Stylizer) -> Vec<Refusal> {
    let in_use = stylizer.config().clone();
    let (mut config, invalid) = settings.config_or(&in_use);
    let refusal = |cause: String, too_large| Refusal { cause, too_large };
    let mut refused: Vec<Refusal> = invalid
        .iter()
        .map(|invalid| refusal(invalid.to_string(), None))
        .collect();
    while let Err(error) = stylizer.set_config(config.clone()) {
        let too_large = matches!(error, stylizer::Error::Memory(_)).then(|| config.clone());
        refused.push(refusal(error.to_string(), too_large));
        match error {
            stylizer::Error::Config(ConfigError::NoLoss) => {
                (config.alpha, config.beta) = (in_use.alpha, in_use.beta);
            }
            stylizer::Error::Config(ConfigError::TooDeep { property, .. }) => match property {
                "content-layers" => config.content_layers = in_use.content_layers.clone(),
                _ => config.style_layers = in_use.style_layers.clone(),
            },
            stylizer::Error::Memory(_) => config = config.with_memory_of(&in_use),
            stylizer::Error::Threads(_) if config.n_threads != in_use.n_threads => {
                config.n_threads = in_use.n_threads;
            }
            _ => break,
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_quote_files_in_printable_characters() {
        let quoting = |value: String| {
            let (key, expected) = ("std", "numbers are needed");
            let source = WeightsSource::File("a.pth".into());
            let error = crate::vgg::weights::Error::Metadata {
                key,
                value,
                expected,
            };
            weights_error(&source, &shared::Error::Weights(error))
        };
        let error = quoting("\x1b]0;title\x07é\0\u{9b}1m".into());
        assert!(error.contains("‘ ]0;title é  1m’"), "{error:?}");
        let error = quoting("1".repeat(1 << 20));
        assert!(error.starts_with("weights=‘a.pth’: its metadata give std as ‘111"));
        assert!(error.contains("111…") && error.len() < 2 * MAX_CAUSE);
    }

    #[test]
    fn a_decoder_that_panics_is_an_error() {
        let error = decode(Path::new("a.png"), |_| panic!("of a decoder, for a test"));
        assert_eq!(
            error.unwrap_err(),
            "style-image=‘a.png’: the image decoder panicked"
        );
    }
}
