//! The two processes of a sample, and what they are told.
//!
//! Both are this program, started again with a hidden subcommand and their parameters as one JSON
//! argument. The server prints its address when clients may connect, the client prints its report.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::{
    contenders::{self, Client, Server},
    meter::{Meter, Timing},
    payload::Template,
    scenario::Workload,
};

/// Parameters of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) contender: String,
    pub(crate) workload: Workload,
    /// The process that started this one, with which it has to end.
    pub(crate) parent_pid: i32,
    pub(crate) role: Role,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Role {
    Server { path: PathBuf },
    Client { address: String, server_pid: i32, tracepoint: Option<u64>, timing: Timing },
}

/// Runs one of the two processes.
pub(crate) fn run(order: &str) -> Result<()> {
    let order: Order = serde_json::from_str(order).context("parameters of the process")?;
    set_parent_process_death_signal(Some(Signal::KILL)).context("death signal")?;
    // The parent may have ended before that call.
    if getppid().map(Pid::as_raw_pid) != Some(order.parent_pid) {
        bail!("the benchmark has ended");
    }
    let contender = contenders::by_name(&order.contender)?;
    let workload = order.workload;
    let template = Template::new(workload.bytes);
    match order.role {
        Role::Server { path } => contender.serve(&Server { workload, path, template }),
        Role::Client { address, server_pid, tracepoint, timing } => {
            let meter = Meter::start(timing, server_pid, tracepoint)?;
            let client = Client { workload, address, template, meter };
            contender.drive(&client)?;
            println!("{}", serde_json::to_string(&client.meter.report()?)?);
            Ok(())
        }
    }
}
