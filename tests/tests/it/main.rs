//! Real kernel, real sockets, real processes: one module for each group of properties.

mod access;
mod backpressure;
mod byte_stream_ends;
mod byte_streams;
mod byte_streams_tokio;
mod connecting;
mod connections;
mod descriptors;
mod dropped_futures;
mod ends;
mod hostile;
mod killed_peers;
mod outside;
mod passing;
mod passing_bounds;
mod passing_hostile;
mod plain_profiles;
mod pool;
mod python;
mod refused_uring;
mod restart;
mod roles;
mod runtime_end;
mod sizes;
mod spinning;
mod threads;
