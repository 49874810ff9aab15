//! Hot restart: what clients notice (nothing), and what is left when either side dies at any step.

mod detached;
mod failures;
pub(crate) mod generation;
mod killed;
mod load;
mod paths;
mod predecessors;
mod raw;
mod rivals;
mod under_load;
