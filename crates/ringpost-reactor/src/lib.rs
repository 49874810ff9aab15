//! ringpost-reactor
