//! Runs one model and reports on lines that `cargo xtask loom` reads.
#![expect(clippy::disallowed_types, reason = "counts executions from outside the model")]

use std::panic::{self, PanicHookInfo};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use loom::model::Builder;

use crate::mutation::{self, Mutation};

/// What a model is: it passes one or more small programs to [`Explorer::check`].
pub(super) type Model = fn(&Explorer);

/// Has loom explore programs, and counts the executions.
pub(super) struct Explorer {
    executions: Arc<AtomicUsize>,
}

impl Explorer {
    fn new() -> Self {
        Self { executions: Arc::new(AtomicUsize::new(0)) }
    }

    /// Runs a program in every way that the bounds allow.
    pub(super) fn check(&self, program: impl Fn() + Send + Sync + 'static) {
        self.check_within(usize::MAX, program);
    }

    /// The same for a program that is too large for more than `preemptions_max`.
    pub(super) fn check_within(
        &self,
        preemptions_max: usize,
        program: impl Fn() + Send + Sync + 'static,
    ) {
        let mut builder = Builder::new();
        let preemptions = builder.preemption_bound.unwrap_or(PREEMPTIONS);
        builder.preemption_bound = Some(preemptions.min(preemptions_max));
        builder.max_branches = BRANCHES_MAX;
        let executions = Arc::clone(&self.executions);
        builder.check(move || {
            executions.fetch_add(1, Ordering::Relaxed);
            program();
        });
    }
}

/// Passes if no execution of the model fails.
pub(super) fn holds(model: Model) {
    let explorer = Explorer::new();
    model(&explorer);
    report("holds", &explorer.executions, "");
}

/// Passes if an execution of the model fails when the protocol is wrong in this way.
///
/// `test` is the path of the test that calls this. The model runs in a process of its own, which
/// ends at the first panic: loom's objects do not survive the unwinding of a deadlock, and a panic
/// while panicking would end every other test too.
pub(super) fn is_caught(test: &str, mutation: Mutation, model: Model) {
    if env::var_os(CHILD_VARIABLE).is_some() {
        run_twin(mutation, model);
    }
    let mut command = Command::new(env::current_exe().expect("a running program has a path"));
    command.args(["--exact", test, "--nocapture"]).env(CHILD_VARIABLE, "1");
    command.stdin(Stdio::null());
    let child = command.spawn().expect("this program can be started again");
    let status = wait(child, TWIN_TIME_MAX);
    assert!(
        status.success(),
        "{mutation:?} was not caught ({status}): the model proves too little"
    );
}

/// The process of one twin: success if a panic shows that the fault was found.
fn run_twin(mutation: Mutation, model: Model) -> ! {
    mutation::select(mutation);
    let explorer = Explorer::new();
    let executions = Arc::clone(&explorer.executions);
    panic::set_hook(Box::new(move |panic| {
        let found = describe(panic);
        if found.contains("exceeded maximum") {
            report("limit", &executions, &found); // of loom, which shows nothing
            process::exit(1);
        }
        report("caught", &executions, &found);
        process::exit(0);
    }));
    model(&explorer);
    report("survived", &explorer.executions, "");
    process::exit(1);
}

/// Waits for a child, at most this long.
fn wait(mut child: Child, time_max: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if start.elapsed() > time_max {
            child.kill().expect("a child can be killed");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The name under which the test harness knows something in this module.
pub(super) fn test_path(path: &'static str) -> &'static str {
    path.split_once("::").expect("test names do not carry the crate").1
}

pub(super) fn print_binary() {
    let binary = env::current_exe().expect("a running program has a path");
    println!("\nloom\tbinary\t{}", binary.display());
}

pub(super) fn print_model(path: &'static str, shows: &str) {
    println!("loom\tmodel\t{}\t{shows}", test_path(path));
}

/// A twin of the model printed last.
pub(super) fn print_twin(name: &str) {
    println!("loom\ttwin\t{name}");
}

fn report(verdict: &str, executions: &AtomicUsize, found: &str) {
    println!("\nloom\t{verdict}\t{}\t{found}", executions.load(Ordering::Relaxed));
}

/// The first line of a panic.
fn describe(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("a panic without text");
    let first = text.lines().next().unwrap_or_default();
    // Loom names the threads that are stuck with numbers that say little.
    first.split("; threads").next().unwrap_or_default().to_owned()
}

/// The bound if the environment does not set `LOOM_MAX_PREEMPTIONS`.
const PREEMPTIONS: usize = 3;
/// Loom counts each operation of an execution as a branch; ours make some hundreds at most.
const BRANCHES_MAX: usize = 10_000;
const TWIN_TIME_MAX: Duration = Duration::from_secs(60);
/// Set in the process that runs one twin.
const CHILD_VARIABLE: &str = "RINGPOST_LOOM_TWIN";
