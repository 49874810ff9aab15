//! Flags that say how a runtime works.

use clap::{Args, ValueEnum};
use ringpost::{EngineChoice, Runtime, RuntimeBuilder, Spin};

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct EngineFlags {
    /// What drives the sockets; auto takes io_uring where it works
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    engine: Engine,
    /// Whether to look for work for a while before sleeping
    #[arg(long, value_enum, default_value_t = SpinPolicy::Adaptive)]
    spin: SpinPolicy,
}

impl EngineFlags {
    pub(crate) fn runtime(&self) -> RuntimeBuilder {
        let engine = match self.engine {
            Engine::Auto => EngineChoice::Auto,
            Engine::Uring => EngineChoice::Uring,
            Engine::Epoll => EngineChoice::Epoll,
        };
        let spin = match self.spin {
            SpinPolicy::Never => Spin::Never,
            SpinPolicy::Adaptive => Spin::default(),
            SpinPolicy::Always => Spin::Always,
        };
        Runtime::builder().engine(engine).spin(spin)
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Engine {
    Auto,
    Uring,
    Epoll,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SpinPolicy {
    Never,
    Adaptive,
    Always,
}
