//! Real sockets, real processes, real races.

mod activation;
mod addresses;
mod adopt;
mod bind;
mod child;
mod connect;
mod credentials;
mod environment;
mod lifecycle;
mod paths;
mod permissions;
mod process;
mod race;
mod support;
