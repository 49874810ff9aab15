//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{scenario::Scenario, soak};

/// Measures ringpost and its peers on this machine, in pairs of processes.
#[derive(Debug, Parser)]
#[command(name = "bench", version, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) options: Options,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// End within 90 seconds: shorter samples, fewer points in the sweep (longer with --seconds or many --repetitions)
    #[arg(long)]
    pub(crate) quick: bool,
    /// Measure only this scenario (may be repeated)
    #[arg(long = "scenario", value_name = "NAME")]
    pub(crate) scenarios: Vec<Scenario>,
    /// Measure only this contender (may be repeated)
    #[arg(long = "contender", value_name = "NAME")]
    pub(crate) contenders: Vec<String>,
    /// Write the JSON lines to this file instead of results.jsonl in the report's directory
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// List scenarios and contenders, and measure nothing
    #[arg(long)]
    pub(crate) list: bool,
    /// Samples of each contender in each scenario
    #[arg(long, value_name = "N", default_value = "3", value_parser = positive_count)]
    pub(crate) repetitions: usize,
    /// Length of the measured part of a sample
    #[arg(long, value_name = "S", value_parser = positive_seconds)]
    pub(crate) seconds: Option<f64>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One of the two processes of a sample
    #[command(hide = true)]
    Role { order: String },
    /// Loads ringpost for minutes with everything at once, and fails unless all figures stay flat
    Soak(soak::Options),
    /// One of the processes of a soak
    #[command(hide = true)]
    SoakRole { order: String },
}

fn positive_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=1000) => Ok(count),
        _ => Err("expected a number from 1 to 1000".to_owned()),
    }
}

fn positive_seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds from 0.01 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Options, clap::Error> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Arguments::try_parse_from(words).map(|arguments| arguments.options)
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_measure_everything() -> Result<(), clap::Error> {
        let options = parse("")?;
        assert!(!options.quick && !options.list);
        assert!(options.scenarios.is_empty() && options.contenders.is_empty());
        assert_eq!((options.repetitions, options.seconds), (3, None));
        Ok(())
    }

    #[test]
    fn choices_accumulate() -> Result<(), clap::Error> {
        let options = parse(
            "--quick --scenario fanin --scenario bulk --contender epoll --contender epoll-et+spin \
             --json out.jsonl --repetitions 5 --seconds 0.25",
        )?;
        assert!(options.quick);
        assert_eq!(options.scenarios, [Scenario::Fanin, Scenario::Bulk]);
        assert_eq!(options.contenders, ["epoll", "epoll-et+spin"]);
        assert_eq!(options.json, Some(PathBuf::from("out.jsonl")));
        assert_eq!((options.repetitions, options.seconds), (5, Some(0.25)));
        Ok(())
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--scenario none", "--repetitions 0", "--seconds 0", "--seconds x", "extra"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_role_is_recognised() -> Result<(), clap::Error> {
        let arguments = Arguments::try_parse_from(["bench", "role", "{}"])?;
        assert!(matches!(arguments.command, Some(Command::Role { order }) if order == "{}"));
        Ok(())
    }
}
