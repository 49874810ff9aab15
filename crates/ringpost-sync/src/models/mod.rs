//! Loom models of the protocols, and their twins.
//!
//! A *model* is a small program over the real protocol; loom runs it in every interleaving and with
//! every stale read that the memory model allows, up to a bound of preemptions. A *twin* is the
//! same program over a protocol that is wrong in one way ([`Mutation`]), and loom must find that.
//!
//! `cargo xtask loom` runs everything in the [`models!`] table, each entry in a process of its
//! own, and reports. Under plain `cargo test` with `--cfg loom` each entry is a test.
//!
//! # What is not modelled
//!
//! Blocking in the kernel is a mutex and a condition variable ([`bell::Bell`]): no order of
//! completions, no errno, no timeouts. A wake-up for another reason is another thread that rings.
//! Loom itself reads `SeqCst` as `AcqRel` (nothing here uses it), never fails a
//! weak compare-exchange without reason (nothing here uses one), and does not reorder
//! relaxed operations within a thread. The queue is a model: see `primitive`.

mod bell;
mod harness;
mod lease;
mod mailbox;
mod oneshot;
mod shutdown;
mod wake;

use crate::mutation::Mutation;

macro_rules! models {
    ($($id:ident: $program:path, $shows:literal { $($twin:ident => $mutation:ident,)* })*) => {
        $(
            mod $id {
                use super::*;

                #[test]
                fn holds() {
                    harness::holds($program);
                }

                $(
                    #[test]
                    fn $twin() {
                        let path = concat!(module_path!(), "::", stringify!($twin));
                        harness::is_caught(harness::test_path(path), Mutation::$mutation, $program);
                    }
                )*
            }
        )*

        /// The table for `cargo xtask loom`, one line an entry, fields separated by tabs.
        #[test]
        fn catalogue() {
            harness::print_binary();
            $(
                harness::print_model(concat!(module_path!(), "::", stringify!($id)), $shows);
                $(harness::print_twin(stringify!($twin));)*
            )*
        }
    };
}

models! {
    l1: wake::one_producer, "wake word, one producer: no wake-up is lost" {
        notify_relaxed => NotifyRelaxed,
        notify_skips_when_pending => NotifySkipsWhenPending,
        take_relaxed => TakeRelaxed,
        park_ignores_pending => ParkIgnoresPending,
        unpark_forgets_pending => UnparkForgetsPending,
    }

    l2: wake::two_producers, "wake word, two producers: no wake-up lost, one ring per period" {
        notify_rings_always => NotifyRingsAlways,
        notify_skips_when_pending => NotifySkipsWhenPending,
        take_relaxed => TakeRelaxed,
        unpark_forgets_pending => UnparkForgetsPending,
    }

    l3: wake::overlapping_periods, "wake word without a sequence: a late ring does no harm" {
        park_ignores_pending => ParkIgnoresPending,
        notify_relaxed => NotifyRelaxed,
        unpark_forgets_pending => UnparkForgetsPending,
    }

    l4: mailbox::push_pop_close, "mailbox: each item ends once; none is stuck after close" {
        late_push_keeps_item => LatePushKeepsItem,
        close_relaxed => CloseRelaxed,
    }

    l5: oneshot::send_poll_drop, "oneshot: value ends once, the latest waker is woken" {
        send_wakes_early => SendWakesEarly,
        drop_wakes_nobody => DropWakesNobody,
        poll_keeps_old_waker => PollKeepsOldWaker,
        poll_no_recheck => PollNoRecheck,
    }

    l7: lease::return_after_last_reader, "lease: a block comes back once, after its last reader" {
        acquire_split => LeaseAcquireSplit,
        release_split => LeaseReleaseSplit,
        release_relaxed => LeaseReleaseRelaxed,
        no_fence => LeaseNoFence,
        return_announced_early => ReturnAnnouncedEarly,
        return_no_recheck => ReturnNoRecheck,
        starved_ignores_return => StarvedIgnoresReturn,
    }

    l8: lease::outlives_reactor, "lease: the pool outlives its reactor, no block is lost" {
        release_split => LeaseReleaseSplit,
    }

    l12: shutdown::last_handle, "shutdown: the loop ends, accepted requests are served" {
        seal_silent => SealSilent,
        seal_after_wake => SealAfterWake,
        sealed_relaxed => SealedRelaxed,
        late_push_keeps_item => LatePushKeepsItem,
    }
}
