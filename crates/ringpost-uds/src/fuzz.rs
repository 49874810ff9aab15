//! Parsers of what comes from outside, for fuzz targets. No part of the interface.

use crate::activation_error::ActivationError;

/// The names of the descriptors that these variables promise, as [`Activation::take`](crate::Activation::take)
/// reads them. Nothing is taken.
///
/// # Errors
///
/// As [`Activation::take`](crate::Activation::take), as far as the variables are concerned.
pub fn activation_names(
    variable: impl Fn(&'static str) -> Option<Vec<u8>>,
) -> Result<Vec<String>, ActivationError> {
    crate::activation::promised(variable)
}
