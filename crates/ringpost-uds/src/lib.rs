//! ringpost-uds
