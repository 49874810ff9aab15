//! Hot restart: what clients notice (nothing), and what is left when either side dies at any step.

pub(crate) mod generation;
mod load;
mod under_load;
