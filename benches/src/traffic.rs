//! The client's side of the two shapes of traffic, without any I/O: what to send next, and what to
//! make of what arrives. Every contender drives these, so that all of them do the same work.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};

use crate::{
    meter::{OneWayPhases, Recorder},
    payload::{self, Inspector, Template},
};

/// Request and reply on one connection.
#[derive(Debug)]
pub(crate) struct Exchange {
    template: Arc<Template>,
    replies: Inspector,
    next_request: u64,
    sent: VecDeque<Instant>,
}

impl Exchange {
    pub(crate) fn new(template: Arc<Template>, depth: usize) -> Self {
        Self {
            replies: Inspector::new(Arc::clone(&template)),
            template,
            next_request: 0,
            sent: VecDeque::with_capacity(depth),
        }
    }

    /// Writes the next request; `now` may be a little before, but not after it is handed over.
    pub(crate) fn request(&mut self, now: Instant, payload: &mut [u8]) {
        self.template.fill(self.next_request, true, payload);
        self.next_request += 1;
        self.sent.push_back(now);
    }

    /// Checks and records the next reply; `now` has to be read after it arrived.
    pub(crate) fn reply(
        &mut self,
        now: Instant,
        payload: &[u8],
        recorder: &mut Recorder,
    ) -> Result<()> {
        self.replies.inspect(payload)?;
        let sent = self.sent.pop_front().context("a reply to no request")?;
        recorder.reply(sent, now);
        Ok(())
    }
}

/// One-way traffic on one connection.
///
/// ```text
/// while sender.is_open() {
///     while sender.has_time() { fill or stamp some messages; send them }
///     fill_last; send it; flush
///     receive one message; sender.acknowledged(it)?
/// }
/// sender.finish()
/// ```
#[derive(Debug)]
pub(crate) struct OneWaySender {
    template: Arc<Template>,
    phases: OneWayPhases,
    next: u64,
    last: Option<u64>,
}

impl OneWaySender {
    pub(crate) fn new(template: Arc<Template>, recorder: Recorder) -> Self {
        Self { template, phases: OneWayPhases::new(recorder), next: 0, last: None }
    }

    /// Whether there is another phase to send in.
    pub(crate) fn is_open(&self) -> bool {
        self.phases.is_open()
    }

    /// Whether the phase has time left; reads the clock, so ask once per batch.
    pub(crate) fn has_time(&self) -> bool {
        self.phases.has_time()
    }

    /// Writes the next message, all of it.
    pub(crate) fn fill(&mut self, payload: &mut [u8]) {
        self.template.fill(self.next, false, payload);
        self.count();
    }

    /// Writes the last message of the phase, which the receiver answers.
    pub(crate) fn fill_last(&mut self, payload: &mut [u8]) {
        self.template.fill(self.next, true, payload);
        self.last = Some(self.next);
        self.count();
    }

    /// Numbers the next message in a buffer that holds an earlier one.
    pub(crate) fn stamp(&mut self, payload: &mut [u8]) {
        payload::stamp(self.next, false, payload);
        self.count();
    }

    /// Ends the phase with the receiver's answer to its last message.
    pub(crate) fn acknowledged(&mut self, payload: &[u8]) -> Result<()> {
        let last = self.last.take().context("an acknowledgement of nothing")?;
        let mut expected = vec![0; self.template.length()];
        self.template.fill(last, true, &mut expected);
        ensure!(payload == expected, "the acknowledgement is not the last message");
        self.phases.acknowledged();
        Ok(())
    }

    pub(crate) fn finish(self) {
        self.phases.finish();
    }

    fn count(&mut self) {
        self.next += 1;
        self.phases.sent(1);
    }
}
