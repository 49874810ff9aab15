//! What does the `forward` example cost in front of PostgreSQL?
//!
//! Starts a PostgreSQL of its own and lets `pgbench` talk to it directly, through `forward` on either
//! engine, and through `socat` if it is installed. Short runs of all of them are interleaved, in another
//! order each round; the medians are shown, and the least and the greatest. Everything runs on this host,
//! so the proxy takes its processor time from the server and its clients: the figures are those of a
//! machine that is busy.
//!
//! ```text
//! cargo run --release --package ringpost-tests --example forward_postgres -- [--clients 1,8,64] [--rounds 5]
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use ringpost::EngineChoice;
use ringpost_testkit::process::listens_at;
use ringpost_tests::software::client;
use ringpost_tests::software::example::Forwarder;
use ringpost_tests::software::postgres::Server;
use ringpost_tests::software::programs;
use ringpost_tests::software::service::{Home, Service};

#[derive(Debug, Parser)]
#[command(about = "Measures PostgreSQL directly and behind proxies")]
struct Arguments {
    /// Connections that pgbench keeps busy; one table for each number
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64], value_parser = clap::value_parser!(u16).range(1..=150))]
    clients: Vec<u16>,
    /// What a transaction does
    #[arg(long, value_enum, default_value_t = Work::Select)]
    work: Work,
    /// Runs of each contender
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Seconds of each run
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=20))]
    seconds: u16,
    /// How the forwarders wait: `never`, `adaptive` or `always` spinning
    #[arg(long, default_value = "adaptive", value_parser = ["never", "adaptive", "always"])]
    spin: String,
    /// Leaves out those that are not named
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Work {
    /// One prepared statement that finds one row
    Select,
    /// As `select`, with the statement as text
    SelectSimple,
    /// Seven statements that write to four tables
    Write,
    /// One statement whose result has 100 KB
    Bulk,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    build_example()?;
    let Some(server) = Server::start("forward_postgres", &[("shared_buffers", "256MB")]) else {
        bail!("nothing to measure");
    };
    let mut bench = Bench { server, home: Home::new(), contenders: Vec::new() };
    bench.run(bench.server.directory(), &["--initialize", "--quiet", "--scale=10"])?;
    bench.start_contenders(&arguments)?;
    for clients in &arguments.clients {
        println!(
            "\n{clients} clients, {:?}, {} x {} s",
            arguments.work, arguments.rounds, arguments.seconds
        );
        print!("{}", bench.measure(&arguments, *clients)?);
    }
    Ok(())
}

/// The example of this source, optimised as this program is.
fn build_example() -> Result<()> {
    // Set by `cargo run`; without it, what has been built is what is measured.
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--package", "ringpost", "--example", "forward"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    ensure!(command.status().context("cargo")?.success(), "the example does not build");
    Ok(())
}

struct Contender {
    name: &'static str,
    /// The directory of the socket.
    host: PathBuf,
    /// The process whose processor time is read.
    pid: Option<u32>,
    /// Ends with this.
    _process: Option<Proxy>,
}

enum Proxy {
    Forward { _process: Forwarder },
    Socat { _process: Service },
}

struct Bench {
    contenders: Vec<Contender>,
    server: Server,
    home: Home,
}

/// One run.
struct Sample {
    transactions_per_second: f64,
    /// Processor time of the proxy for each transaction, if it is one process.
    proxy_us: Option<f64>,
}

impl Bench {
    fn start_contenders(&mut self, arguments: &Arguments) -> Result<()> {
        let wanted = |name: &str| {
            arguments.contenders.is_empty() || arguments.contenders.iter().any(|one| one == name)
        };
        let mut contenders = Vec::new();
        if wanted("direct") {
            let host = self.server.directory().to_owned();
            contenders.push(Contender { name: "direct", host, pid: None, _process: None });
        }
        let engines =
            [("forward-uring", EngineChoice::Uring), ("forward-epoll", EngineChoice::Epoll)];
        for (name, engine) in engines.into_iter().filter(|(name, _)| wanted(name)) {
            let process =
                Forwarder::start_with(engine, &self.server.socket(), &["--spin", &arguments.spin]);
            contenders.push(Contender {
                name,
                host: process.directory().to_owned(),
                pid: Some(process.id()),
                _process: Some(Proxy::Forward { _process: process }),
            });
        }
        match programs::find("socat") {
            Some(socat) if wanted("socat") => contenders.push(self.start_socat(&socat)?),
            None if wanted("socat") => println!("socat is not installed, and not compared"),
            _ => {}
        }
        self.contenders = contenders;
        Ok(())
    }

    fn start_socat(&self, socat: &Path) -> Result<Contender> {
        let to = self.server.socket();
        let path = self
            .home
            .join(to.file_name().context("a path to a socket")?.to_str().context("ASCII")?);
        let mut command = self.home.command(socat);
        // A process for each connection; its blocks as large as they may be useful.
        command.arg("-b65536").arg(format!("UNIX-LISTEN:{},fork,backlog=1024", path.display()));
        command.arg(format!("UNIX-CONNECT:{}", to.display()));
        // It may be another user.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(self.server.directory(), mode)?;
        let process = Service::start(&mut command, self.home.join("log"), || listens_at(&path));
        let host = self.home.path().to_owned();
        let process = Some(Proxy::Socat { _process: process });
        Ok(Contender { name: "socat", host, pid: None, _process: process })
    }

    fn measure(&self, arguments: &Arguments, clients: u16) -> Result<String> {
        let mut samples: Vec<Vec<Sample>> = self.contenders.iter().map(|_| Vec::new()).collect();
        for round in 0..usize::from(arguments.rounds) {
            for turn in 0..samples.len() {
                let index = (round + turn) % samples.len();
                samples[index].push(self.sample(arguments, clients, &self.contenders[index])?);
            }
        }
        let mut table = String::from(
            "               per second  of direct    least  greatest  proxy CPU of a transaction\n",
        );
        let rates = |samples: &[Sample]| -> Vec<f64> {
            let mut rates: Vec<f64> =
                samples.iter().map(|one| one.transactions_per_second).collect();
            rates.sort_by(f64::total_cmp);
            rates
        };
        let direct = self.contenders.iter().zip(&samples).find(|(one, _)| one.name == "direct");
        let direct = direct.map(|(_, samples)| median(&rates(samples)));
        for (contender, samples) in self.contenders.iter().zip(&samples) {
            let rates = rates(samples);
            let mut proxy: Vec<f64> = samples.iter().filter_map(|one| one.proxy_us).collect();
            proxy.sort_by(f64::total_cmp);
            let rate = median(&rates);
            let share = direct.map_or(f64::NAN, |direct| 100.0 * rate / direct);
            let (least, greatest) = (rates.first(), rates.last());
            write!(
                table,
                "{:<14} {rate:>10.0} {share:>8.0} % {:>8.0} {:>9.0}",
                contender.name,
                least.copied().unwrap_or_default(),
                greatest.copied().unwrap_or_default(),
            )?;
            if !proxy.is_empty() {
                write!(table, "  {:.1} µs", median(&proxy))?;
            }
            table.push('\n');
        }
        Ok(table)
    }

    fn sample(&self, arguments: &Arguments, clients: u16, contender: &Contender) -> Result<Sample> {
        let (clients, seconds) = (clients.to_string(), arguments.seconds.to_string());
        let mut words = vec!["--no-vacuum", "--client", &clients, "--time", &seconds];
        words.extend(match arguments.work {
            Work::Select => ["--select-only", "--protocol=prepared"],
            Work::SelectSimple => ["--select-only", "--protocol=simple"],
            Work::Write => ["--builtin=tpcb-like", "--protocol=prepared"],
            Work::Bulk => ["--file=/dev/stdin", "--protocol=simple"],
        });
        let before = contender.pid.map(processor_time).transpose()?;
        let output = self.run(&contender.host, &words)?;
        let after = contender.pid.map(processor_time).transpose()?;
        let number = |start: &str, stop: &str| -> Option<f64> {
            let (_, rest) = output.split_once(start)?;
            rest.split_once(stop)?.0.trim().parse().ok()
        };
        let rate = number("\ntps = ", " ").with_context(|| output.clone())?;
        let transactions = number("actually processed: ", "\n").with_context(|| output.clone())?;
        let used = before.zip(after).map(|(before, after)| after - before);
        Ok(Sample {
            transactions_per_second: rate,
            proxy_us: used.map(|used| used.as_secs_f64() * 1e6 / transactions),
        })
    }

    fn run(&self, host: &Path, words: &[&str]) -> Result<String> {
        let outcome = client::run(self.server.program("pgbench", host).args(words), BULK);
        ensure!(outcome.status.success(), "{outcome}\n{}", self.server.log());
        Ok(outcome.text().to_owned())
    }
}

fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// What a process has used, in user space and in the kernel (proc(5), stat, fields 14 and 15).
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a line of proc(5)")?;
    let ticks: Vec<u64> =
        fields.split(' ').skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 1000 / per_second))
}

const BULK: &str = "select repeat('x', 100000);\n";
