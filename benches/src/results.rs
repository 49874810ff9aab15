//! The record of one sample, as it is written to the JSON lines file.

use serde::{Deserialize, Serialize};

use crate::{
    meter::ClientReport,
    scenario::{Scenario, Workload},
};

/// One line. Fields that do not apply, or could not be measured, are null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) scenario: Scenario,
    pub(crate) contender: String,
    pub(crate) connections: usize,
    pub(crate) depth: Option<usize>,
    pub(crate) bytes: usize,
    pub(crate) repetition: usize,
    pub(crate) messages_per_s: f64,
    pub(crate) p50_ns: Option<u64>,
    pub(crate) p99_ns: Option<u64>,
    pub(crate) p999_ns: Option<u64>,
    pub(crate) server_cpu_ns_per_message: f64,
    pub(crate) syscalls_per_message: Option<f64>,
    pub(crate) client_cpu_ns_per_message: f64,
    /// Payload, without framing, in one direction.
    pub(crate) bytes_per_s: f64,
    /// Whether the processors were far apart before or after the sample.
    pub(crate) far: bool,
    pub(crate) probe_before_ns: Option<f64>,
    pub(crate) probe_after_ns: Option<f64>,
    /// How often the sample was taken until it was not far, or until no more was allowed.
    pub(crate) attempts: usize,
    /// Round-trip time by quantile.
    pub(crate) quantiles_ns: Vec<(f64, u64)>,
}

impl Line {
    pub(crate) fn new(
        workload: &Workload,
        contender: &str,
        repetition: usize,
        attempts: usize,
        probes_ns: [Option<f64>; 2],
        report: ClientReport,
    ) -> Self {
        let messages = report.messages as f64;
        let messages_per_s = messages * 1e9 / report.elapsed_ns as f64;
        Self {
            scenario: workload.scenario,
            contender: contender.to_owned(),
            connections: workload.connections,
            depth: workload.depth,
            bytes: workload.bytes,
            repetition,
            messages_per_s,
            p50_ns: report.p50_ns,
            p99_ns: report.p99_ns,
            p999_ns: report.p999_ns,
            server_cpu_ns_per_message: report.server_cpu_ns as f64 / messages,
            syscalls_per_message: report.syscalls_per_message,
            client_cpu_ns_per_message: report.client_cpu_ns as f64 / messages,
            bytes_per_s: messages_per_s * workload.bytes as f64,
            far: false,
            probe_before_ns: probes_ns[0],
            probe_after_ns: probes_ns[1],
            attempts,
            quantiles_ns: report.quantiles,
        }
    }
}
