//! One suite for every engine: each sentence of the contract in [`engine`](crate::engine) is a test here, or
//! several, and each test runs on io_uring with shared and with plain blocks, on epoll, and (feature `sim`)
//! on the simulated engine and on io_uring over a simulated ring, without and with faults.
//!
//! * [`subjects`]: the engines.
//! * [`bench`](mod@bench): one of them with things to work on. Whatever happens is noted as a [`trace`],
//!   and the [`referee`] looks at each event.
//! * The other modules are the tests, by what they are about.
//!
//! A test is listed as `every` if it asks for nothing but the contract, so that it holds with faults too;
//! as `plain` if it asks for what an engine does when nothing disturbs it, such as that what can be done
//! is done by the next enter.

mod accepts;
#[cfg(feature = "sim")]
mod admission;
mod bench;
mod cancels;
mod polls;
mod programs;
mod receives;
mod recorded;
mod referee;
mod sends;
mod staging;
mod subjects;
mod trace;
mod waiting;

/// Says that a test is skipped, past the capture of what passing tests print.
pub(crate) fn skip(what: &str) {
    let _ =
        std::io::Write::write_all(&mut std::io::stderr(), format!("SKIPPED {what}\n").as_bytes());
}

/// Makes a test of each function, on each engine, with the shape in brackets or the usual one.
macro_rules! conformance {
    (
        every: $($every:ident $([$every_shape:expr])?)*;
        plain: $($plain:ident $([$plain_shape:expr])?)*;
    ) => {
        conformance!(@on uring_shared UringShared:
            $($every [$($every_shape)?])* $($plain [$($plain_shape)?])*);
        conformance!(@on uring_plain UringPlain:
            $($every [$($every_shape)?])* $($plain [$($plain_shape)?])*);
        conformance!(@on epoll OnEpoll:
            $($every [$($every_shape)?])* $($plain [$($plain_shape)?])*);
        #[cfg(feature = "sim")]
        conformance!(@on sim_shared simulated::SimShared:
            $($every [$($every_shape)?])* $($plain [$($plain_shape)?])*);
        #[cfg(feature = "sim")]
        conformance!(@on sim_plain simulated::SimPlain:
            $($every [$($every_shape)?])* $($plain [$($plain_shape)?])*);
        #[cfg(feature = "sim")]
        conformance!(@on sim_faults simulated::SimFaults: $($every [$($every_shape)?])*);
        #[cfg(feature = "sim")]
        conformance!(@on ring_shared simulated::RingShared:
            $($every [$($every_shape)?])* $($plain [$($plain_shape)?])*);
        #[cfg(feature = "sim")]
        conformance!(@on ring_plain simulated::RingPlain:
            $($every [$($every_shape)?])* $($plain [$($plain_shape)?])*);
        #[cfg(feature = "sim")]
        conformance!(@on ring_faults simulated::RingFaults: $($every [$($every_shape)?])*);
    };
    (@on $name:ident $($subject:ident)::+: $($test:ident [$($shape:expr)?])*) => {
        mod $name {
            #[allow(unused_imports, reason = "some lists name shapes, some are empty")]
            use super::*;
            type Held = crate::conformance::subjects::$($subject)::+;
            $(
                #[test]
                fn $test() {
                    let name = concat!(module_path!(), "::", stringify!($test));
                    let shape = conformance!(@shape $($shape)?);
                    crate::conformance::subjects::run::<Held>(name, shape, super::$test::<Held>);
                }
            )*
        }
    };
    (@shape) => { crate::conformance::bench::Shape::default() };
    (@shape $shape:expr) => { $shape };
}
use conformance;
