//! `cargo xtask ci`: everything CI runs, in the order in which it is cheapest to fail.
//!
//! Tests that need the cluster run inside the lab's network; nothing is skipped: what can't run
//! fails.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail};
use shadow_lab::Lab;

/// The version that `deny.toml` is written for.
const CARGO_DENY: &str = "0.20.2";

/// Debian packages that tests run against: a broker and a registry of their own on loopback.
const PACKAGES: [&str; 4] = ["rabbitmq-server", "python3-pika", "docker-registry", "apache2-utils"];

pub fn run() -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    packages()?;
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])?;
    cargo(&["xtask", "crds", "--check"])?;
    cargo(&["xtask", "docs", "--check"])?;
    cargo(&["xtask", "check-deps"])?;
    deny()?;
    cargo(&["xtask", "sim"])?;
    let lab = shadow_lab::up(2)?;
    let tested = with_lab(&lab);
    shadow_lab::down()?;
    tested?;
    println!("ci: all passed in {} s", begun.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

fn with_lab(lab: &Lab) -> anyhow::Result<()> {
    crate::image::push_all_for_chaos(lab)?;
    // Built before the network is entered: from inside no package registry is reached.
    cargo(&["test", "--workspace", "--no-run", "--quiet"])?;
    let broker = lab.rabbitmq();
    let host = format!("{}:{}@{}", broker.user, broker.password, broker.host);
    // Building the tests has replaced this program's file by the same one.
    let xtask = shadow_e2e::root().join("target/debug/xtask");
    let rabbitmqctl = format!(
        "{} lab exec control env HOME=/var/lib/rabbitmq RABBITMQ_NODENAME=rabbit@localhost rabbitmqctl",
        xtask.display()
    );
    let mut tests = Command::new("cargo");
    tests
        .args(["test", "--workspace", "--offline", "--no-fail-fast"])
        .env("CI", "true")
        .env("SHADOW_TEST_AMQP_URL", format!("amqp://{host}:{}/%2f", broker.amqp_port))
        .env("SHADOW_TEST_MANAGEMENT_URL", format!("http://{host}:{}", broker.management_port))
        .env("SHADOW_TEST_RABBITMQCTL", rabbitmqctl)
        .env("RUST_BACKTRACE", "0");
    in_network(lab, tests)?;
    cargo(&["xtask", "chaos", "--cut", "--no-build"])
}

/// Runs `command` inside the lab's network. A thread of its own enters it: the child inherits the
/// network of the thread that starts it.
fn in_network(lab: &Lab, mut command: Command) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            lab.enter()?;
            finish(&mut command)
        });
        run.join().map_err(|_| anyhow::anyhow!("the thread in the lab's network panicked"))?
    })
}

fn packages() -> anyhow::Result<()> {
    let missing: Vec<&str> = PACKAGES
        .into_iter()
        .filter(|name| {
            let query = Command::new("dpkg-query")
                .args(["--show", "--showformat=${db:Status-Status}", name])
                .output();
            !query.is_ok_and(|output| output.stdout == b"installed")
        })
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    finish(Command::new("apt-get").args(["update", "-qq"]))?;
    finish(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(missing)
            .env("DEBIAN_FRONTEND", "noninteractive")
            // The tests start their own; the packages' services stay off.
            .env("RUNLEVEL", "1"),
    )
}

/// Licences, sources and banned crates. Advisories come from a database on the network, which a
/// run that must always give the same answer leaves out: `cargo deny check advisories`.
fn deny() -> anyhow::Result<()> {
    let tools = shadow_lab::cache().join(format!("tools/cargo-deny-{CARGO_DENY}"));
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        let root = tools.display().to_string();
        let install = ["install", "cargo-deny", "--locked", "--version", CARGO_DENY, "--quiet"];
        cargo(&[&install[..], &["--root", &root]].concat())?;
    }
    finish(
        Command::new(program)
            .args(["--log-level", "error", "check"])
            .args(["bans", "licenses", "sources"]),
    )
}

fn cargo(arguments: &[&str]) -> anyhow::Result<()> {
    finish(Command::new("cargo").args(arguments))
}

fn finish(command: &mut Command) -> anyhow::Result<()> {
    // Without the environment: it has credentials.
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    println!("+ {line}");
    let status = command.status().with_context(|| format!("can't run {line}"))?;
    if !status.success() {
        bail!("`{line}` ended with {status}");
    }
    Ok(())
}
