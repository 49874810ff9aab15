//! ringpost-frame
