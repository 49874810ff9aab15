//! ringpost-testkit
