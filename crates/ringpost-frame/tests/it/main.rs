//! Whole streams: the specification's example and vectors, every way to cut a stream, and tokio's codec as the measure.

mod properties;
mod specification;
mod tokio_codec;
mod vectors;
