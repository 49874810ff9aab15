//! Takes one sample: two processes, a private directory, a probe before and after.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, getpid};

use crate::{
    interrupt::Interrupt,
    meter::{ClientReport, Timing},
    probe::Probe,
    process::Process,
    role::{Order, Role},
    scenario::Workload,
};

/// What stays the same from sample to sample.
#[derive(Debug)]
pub(crate) struct Sampler {
    pub(crate) timing: Timing,
    pub(crate) tracepoint: Option<u64>,
    pub(crate) interrupt: Interrupt,
    pub(crate) probe: Probe,
}

/// A sample and the state of the machine around it.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) report: ClientReport,
    pub(crate) probes_ns: [Option<f64>; 2],
}

impl Sampler {
    pub(crate) fn take(&mut self, contender: &str, workload: &Workload) -> Result<Sample> {
        let before = self.probe.measure();
        let report = self.run(contender, workload)?;
        let after = self.probe.measure();
        Ok(Sample { report, probes_ns: [before, after] })
    }

    fn run(&self, contender: &str, workload: &Workload) -> Result<ClientReport> {
        let directory = tempfile::Builder::new()
            .prefix("ringpost-bench-")
            .tempdir()
            .context("directory for the socket")?;
        let order = |role| Order {
            contender: contender.to_owned(),
            workload: *workload,
            parent_pid: Pid::as_raw_pid(getpid()),
            role,
        };
        let path = directory.path().join("socket");
        let order_server = order(Role::Server { path });
        let mut server = Process::start("server", &order_server, &self.interrupt)?;
        let address = server.line(START_LIMIT)?;
        let order_client = order(Role::Client {
            address,
            server_pid: server.pid()?,
            tracepoint: self.tracepoint,
            timing: self.timing,
        });
        let mut client = Process::start("client", &order_client, &self.interrupt)?;
        let line = match client.line(self.timing.total() + END_LIMIT) {
            Ok(line) => line,
            // If the server has failed, that is why the client has.
            Err(error) => {
                self.interrupt.check()?;
                return Err(match server.finish(FAILURE_LIMIT) {
                    Ok(()) => error,
                    Err(cause) => error.context(cause),
                });
            }
        };
        let report = serde_json::from_str(&line).context("report of the client")?;
        client.finish(END_LIMIT)?;
        server.finish(END_LIMIT)?;
        Ok(report)
    }
}

const START_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(10);
const FAILURE_LIMIT: Duration = Duration::from_millis(500);
