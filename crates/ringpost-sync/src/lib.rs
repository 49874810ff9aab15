//! ringpost-sync
