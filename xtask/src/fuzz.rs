//! `cargo xtask fuzz`: what reads other people's input, under libFuzzer.
//!
//! A target begins with its committed corpus, and adds to one of its own under `target/fuzz`, from which
//! the next run goes on. What it finds is in `fuzz/artifacts`: fixed, it belongs into the corpus.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, bail};

/// The version that is installed if there is none.
const CARGO_FUZZ: &str = "0.13.2";
/// Megabytes of memory that are a finding.
const MEMORY: u32 = 1024;
/// What libFuzzer says at the end.
const EXECUTED: &str = "stat::number_of_executed_units:";

#[derive(clap::Args)]
pub struct Arguments {
    /// How long each target runs
    #[arg(long, default_value_t = 600)]
    seconds: u32,
    /// Which targets; all if none is named
    targets: Vec<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let folder = shadow_e2e::root().join("fuzz");
    let all = targets(&folder)?;
    if let Some(unknown) = arguments.targets.iter().find(|target| !all.contains(target)) {
        bail!("there is no target {unknown}: there are {}", all.join(", "));
    }
    tools()?;
    let chosen = if arguments.targets.is_empty() { &all } else { &arguments.targets };
    let mut outcomes = Vec::new();
    for target in chosen {
        outcomes.push((target, fuzz(&folder, target, arguments.seconds)?));
    }
    let mut clean = true;
    for (target, outcome) in outcomes {
        let executions =
            outcome.executions.map_or_else(|| "?".to_owned(), |count| count.to_string());
        let end = if outcome.clean { "no finding" } else { "A FINDING, in fuzz/artifacts" };
        println!("{target:>14}: {executions:>11} executions, {end}");
        clean &= outcome.clean && outcome.executions.is_some();
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Outcome {
    executions: Option<u64>,
    clean: bool,
}

fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let sources = folder.join("fuzz_targets");
    let entries = sources.read_dir().with_context(|| format!("read {}", sources.display()))?;
    let mut targets = Vec::new();
    for entry in entries {
        let path = entry?.path();
        targets.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    targets.sort();
    Ok(targets)
}

/// What this needs besides the project's own toolchain.
fn tools() -> anyhow::Result<()> {
    if !nightly(&["rustc", "--version"]).is_ok_and(|output| output.status.success()) {
        bail!(
            "libFuzzer needs Rust's nightly toolchain, which is missing: run `rustup toolchain install \
             nightly --profile minimal`"
        );
    }
    if nightly(&["cargo", "fuzz", "--version"])?.status.success() {
        return Ok(());
    }
    println!("installing cargo-fuzz {CARGO_FUZZ}");
    let install = ["install", "--locked", "--quiet", "cargo-fuzz", "--version", CARGO_FUZZ];
    let status = Command::new("cargo").args(install).status();
    if !status.is_ok_and(|status| status.success()) {
        bail!(
            "cargo-fuzz is missing and could not be installed: run `cargo {}`",
            install.join(" ")
        );
    }
    Ok(())
}

fn nightly(line: &[&str]) -> std::io::Result<std::process::Output> {
    command(line).output()
}

fn command(line: &[&str]) -> Command {
    let mut command = Command::new("rustup");
    // Ours is the stable cargo, and cargo-fuzz would take it.
    command.args(["run", "nightly"]).args(line).env_remove("CARGO");
    command
}

fn fuzz(folder: &Path, target: &str, seconds: u32) -> anyhow::Result<Outcome> {
    let own = shadow_e2e::root().join("target/fuzz").join(target);
    std::fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
    let mut child = command(&["cargo", "fuzz", "run", target])
        .arg(own)
        .arg(folder.join("corpus").join(target))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg("-print_final_stats=1")
        .current_dir(folder)
        .stderr(Stdio::piped())
        .spawn()
        .context("can't run cargo fuzz")?;
    let mut executions = None;
    if let Some(said) = child.stderr.take() {
        for line in BufReader::new(said).lines() {
            let line = line.context("read what cargo fuzz says")?;
            if let Some(count) = line.strip_prefix(EXECUTED) {
                executions = count.trim().parse().ok();
            }
            eprintln!("{line}");
        }
    }
    let status = child.wait().context("wait for cargo fuzz")?;
    Ok(Outcome { executions, clean: status.success() })
}
