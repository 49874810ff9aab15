//! The examples, run as what they are: programs that talk to other processes.

mod clients;
mod echo;
mod forward;
mod program;
mod quickstart;
mod restart;
mod worker_pool;
