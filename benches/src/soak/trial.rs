//! One soak of one engine: start, load, samples, end.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::{
    census::Census,
    clients::Kind,
    control::{Control, Reference},
    order::{Engine, Order, Role, Said, told},
    process::{ANSWER_WAIT_MAX, Footprint, Process, children},
    stamp::mix,
};
use crate::interrupt::Interrupt;

/// Between two samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at the processes.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest time in which a client may receive nothing.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Longest time for the server to be as it was before the load.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// Longest wait for the ends of all clients.
const STOP_MAX: Duration = Duration::from_secs(60);
/// How long the others may take to say why they failed as well.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// What a process says when its peer has ended.
const GONE: [&str; 5] =
    ["the peer is gone", "no server listens", "no such path", "Connection reset", "Broken pipe"];
/// Longest time for a client to have all that it keeps.
const WARM_MAX: Duration = Duration::from_secs(120);
/// Between the end of a client that was killed and the start of the next.
const RESURRECTION_PAUSE: Duration = Duration::from_millis(100);
pub(crate) const SERVER: &str = "server";

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) struct Trial {
    pub(crate) engine: Engine,
    pub(crate) seed: u64,
    pub(crate) length: Duration,
}

/// One look at one process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) engine: Engine,
    pub(crate) process: String,
    /// Since the load began.
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) census: Census,
    #[serde(flatten)]
    pub(crate) footprint: Footprint,
    #[serde(flatten)]
    pub(crate) reference: Reference,
}

/// What a trial found.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) engine: Engine,
    /// The server before any load.
    pub(crate) before: Census,
    /// The server when all load had ended.
    pub(crate) after: Census,
    /// Clients before their first connection and after their last one.
    pub(crate) clients: Vec<(String, Census, Census)>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) killed: u64,
    /// What was left in the directory of the sockets.
    pub(crate) residue: Vec<String>,
}

impl Trial {
    /// Runs to the end. An error is a failure at once: a process that ended, hung or complained.
    pub(crate) fn run(
        &self,
        interrupt: &Interrupt,
        progress: &ProgressBar,
        samples: &mut Vec<Sample>,
    ) -> Result<Record> {
        let directory = tempfile::Builder::new().prefix("ringpost-soak-").tempdir()?;
        let outcome =
            self.start(directory.path().into(), interrupt, progress).and_then(|mut crowd| {
                crowd.load(self, interrupt, progress, samples)?;
                crowd.end(interrupt)
            });
        match outcome {
            Ok(mut record) => {
                record.residue = fs::read_dir(directory.path())?
                    .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                    .collect::<Result<_>>()?;
                Ok(record)
            }
            Err(error) if interrupt.is_raised() => Err(error),
            Err(error) => Err(error.context(self.seed_text())),
        }
    }

    fn seed_text(&self) -> String {
        format!("engine {}, seed {}", self.engine.name(), self.seed)
    }

    fn start(
        &self,
        directory: PathBuf,
        interrupt: &Interrupt,
        progress: &ProgressBar,
    ) -> Result<Crowd> {
        let parent_pid = rustix::process::getpid().as_raw_nonzero().get();
        let order = Order { parent_pid, engine: self.engine, directory, role: Role::Server };
        let mut server = Process::start(SERVER, &order)?;
        let before = ready(&mut server, interrupt)?;
        let mut crowd = Crowd {
            order,
            seed: self.seed,
            engine: self.engine,
            server: Some(server),
            before,
            lasting: Vec::new(),
            crashing: None,
            next_crash: Instant::now(),
            killed: 0,
        };
        progress.set_message("connecting");
        for (number, kind) in (0..).zip(Kind::LASTING) {
            if let Err(error) = crowd.admit(kind, number, interrupt) {
                return Err(if interrupt.is_raised() {
                    error
                } else {
                    crowd.with_last_words(error)
                });
            }
        }
        Ok(crowd)
    }
}

fn ready(process: &mut Process, interrupt: &Interrupt) -> Result<Census> {
    match process.hear(ANSWER_WAIT_MAX, interrupt)? {
        Said::Ready(census) => Ok(*census),
        other => bail!("{} said {other:?} first", process.name),
    }
}

/// All processes of a trial.
struct Crowd {
    order: Order,
    seed: u64,
    engine: Engine,
    server: Option<Process>,
    before: Census,
    lasting: Vec<Lasting>,
    crashing: Option<Process>,
    next_crash: Instant,
    killed: u64,
}

/// A client that lives as long as the load.
struct Lasting {
    process: Process,
    before: Census,
    messages: u64,
    /// When its number of messages last rose.
    moved: Instant,
}

impl Crowd {
    fn client(&self, kind: Kind, number: u64) -> Result<Process> {
        let seed = mix(self.seed ^ mix(number + 1));
        let order = Order { role: Role::Client { kind, seed }, ..self.order.clone() };
        Process::start(kind.name(), &order)
    }

    fn server(&mut self) -> Result<&mut Process> {
        self.server.as_mut().context("the server has been ended")
    }

    fn load(
        &mut self,
        trial: &Trial,
        interrupt: &Interrupt,
        progress: &ProgressBar,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        for client in &mut self.lasting {
            client.moved = Instant::now();
        }
        let mut control = Control::start()?;
        let start = Instant::now();
        let mut next_sample = start + SAMPLE_EVERY;
        while start.elapsed() < trial.length {
            interrupt.check()?;
            if let Err(error) = self.look() {
                return Err(self.with_last_words(error));
            }
            if Instant::now() >= next_sample {
                next_sample += SAMPLE_EVERY;
                let first = samples.len();
                if let Err(error) = self.sample(start, control.take(), interrupt, samples) {
                    return Err(if interrupt.is_raised() {
                        error
                    } else {
                        self.with_last_words(error)
                    });
                }
                progress.set_position(start.elapsed().as_secs().min(trial.length.as_secs()));
                progress.set_message(live(&samples[first..]));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Starts a client and waits until it has all its lasting connections, and has used them.
    fn admit(&mut self, kind: Kind, number: u64, interrupt: &Interrupt) -> Result<()> {
        let mut process = self.client(kind, number)?;
        let before = ready(&mut process, interrupt)?;
        let end = Instant::now() + WARM_MAX;
        while process.sample(interrupt)?.0.messages < kind.warm_messages() {
            ensure!(Instant::now() < end, "client {kind} is not warm within {WARM_MAX:?}");
            thread::sleep(LOOK_EVERY);
        }
        self.lasting.push(Lasting { process, before, messages: 0, moved: Instant::now() });
        Ok(())
    }

    /// Nobody has ended who should not, and who was killed comes again.
    fn look(&mut self) -> Result<()> {
        self.server()?.check()?;
        for client in &mut self.lasting {
            client.process.check()?;
        }
        match &mut self.crashing {
            None if Instant::now() >= self.next_crash => {
                let number = Kind::LASTING.len() as u64 + self.killed;
                self.crashing = Some(self.client(Kind::Crash, number)?);
            }
            None => {}
            Some(process) => {
                if let Some(status) = process.try_wait()? {
                    let signal = status.signal();
                    ensure!(signal == Some(SIGKILL), process.reason().unwrap_or_default());
                    self.killed += 1;
                    self.crashing = None;
                    self.next_crash = Instant::now() + RESURRECTION_PAUSE;
                }
            }
        }
        Ok(())
    }

    fn sample(
        &mut self,
        start: Instant,
        reference: Reference,
        interrupt: &Interrupt,
        samples: &mut Vec<Sample>,
    ) -> Result<()> {
        let engine = self.engine;
        let record = |process: &mut Process| -> Result<Sample> {
            let (census, footprint) = process.sample(interrupt)?;
            let lost = census.blocks_lost();
            ensure!(lost == 0, "{}: {lost} receive blocks are lost or doubled", process.name);
            let seconds = start.elapsed().as_secs_f64();
            let process = process.name.clone();
            Ok(Sample { engine, process, seconds, census, footprint, reference })
        };
        samples.push(record(self.server()?)?);
        for client in &mut self.lasting {
            let sample = record(&mut client.process)?;
            if sample.census.messages > client.messages {
                client.messages = sample.census.messages;
                client.moved = Instant::now();
            }
            let still = client.moved.elapsed();
            ensure!(
                still < STALL_MAX,
                "client {} has received nothing for {still:?}, after {} messages on {} connections",
                client.process.name,
                client.messages,
                sample.census.connections_made
            );
            samples.push(sample);
        }
        Ok(())
    }

    /// The reason of a failure is often another process's, which says it a moment later. Those that failed only
    /// because their peer did are left out.
    fn with_last_words(&mut self, error: anyhow::Error) -> anyhow::Error {
        thread::sleep(LAST_WORDS);
        let mut words = vec![format!("{error:#}")];
        let server = self.server.iter_mut();
        let all = server.chain(self.lasting.iter_mut().map(|client| &mut client.process));
        for process in all {
            if let Ok(Some(_)) = process.try_wait() {
                words.extend(process.reason());
            }
        }
        let (causes, mut consequences): (Vec<_>, Vec<_>) =
            words.into_iter().partition(|text| !GONE.iter().any(|gone| text.contains(gone)));
        if !causes.is_empty() {
            consequences = vec![format!("{} others ended with it", consequences.len())];
        }
        anyhow::anyhow!([causes, consequences].concat().join("\n  "))
    }

    /// Ends the load in good order, then the server.
    fn end(&mut self, interrupt: &Interrupt) -> Result<Record> {
        if let Some(mut process) = self.crashing.take() {
            // It ends itself.
            let end = Instant::now() + ANSWER_WAIT_MAX;
            while process.try_wait()?.is_none() {
                ensure!(Instant::now() < end, "the client that is to be killed lives on");
                thread::sleep(LOOK_EVERY);
            }
            self.killed += 1;
        }
        for client in &mut self.lasting {
            client.process.tell(told::STOP)?;
        }
        let end = Instant::now() + STOP_MAX;
        let mut clients = Vec::new();
        for mut client in std::mem::take(&mut self.lasting) {
            let left = end.saturating_duration_since(Instant::now());
            let said = client.process.hear(left, interrupt);
            let after = match said.map_err(|error| self.with_last_words(error))? {
                Said::Done(census) => *census,
                other => bail!("{} said {other:?} instead of its end", client.process.name),
            };
            clients.push((client.process.name.clone(), client.before, after));
            client.process.finish(ANSWER_WAIT_MAX, interrupt)?;
        }
        let before = self.before.clone();
        let after = self.settle(&before, interrupt)?;
        let server = self.server.take().context("the server has been ended")?;
        server.terminate()?;
        server.finish(ANSWER_WAIT_MAX, interrupt)?;
        let left = children()?;
        ensure!(left.is_empty(), "children are left: {left:?}");
        Ok(Record {
            engine: self.engine,
            before,
            after,
            clients,
            samples: Vec::new(),
            killed: self.killed,
            residue: Vec::new(),
        })
    }

    /// Waits until the server is as it was before the load; tells how near it came if it never is.
    fn settle(&mut self, before: &Census, interrupt: &Interrupt) -> Result<Census> {
        let end = Instant::now() + SETTLE_MAX;
        let mut closest: Option<(usize, Census)> = None;
        loop {
            let (now, _) = self.server()?.sample(interrupt)?;
            let left = super::verdict::leftovers(before, &now).len();
            if closest.as_ref().is_none_or(|(least, _)| left < *least) {
                closest = Some((left, now));
            }
            if left == 0 || Instant::now() >= end {
                return closest.map(|(_, census)| census).context("no look at the server");
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

fn live(samples: &[Sample]) -> String {
    let Some(server) = samples.iter().find(|sample| sample.process == SERVER) else {
        return String::new();
    };
    let delay = samples.iter().find(|sample| sample.process == Kind::Pingpong.name());
    format!(
        "{} conn, {} fd, {} MiB, p50 {} µs",
        server.census.connections_open,
        server.census.descriptors,
        server.footprint.anonymous_kib / 1024,
        delay.map_or(0, |delay| delay.census.p50_ns / 1000)
    )
}

const SIGKILL: i32 = signal_hook::consts::SIGKILL;
